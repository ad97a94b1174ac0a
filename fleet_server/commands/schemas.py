"""Arguments against the JSON Schema that a node advertised for the action. A schema is a stranger's program: compiled
once,
never followed out of its document, never trusted to be well formed."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import jsonschema_rs

from fleet.errors import Reason
from fleet.v1 import gateway_pb2
from fleet_server.commands.rules import Spec
from fleet_server.nodes.record import DriverSet

_MAX_COMPILED = 4096
_MAX_SCHEMA_BYTES = 64 * 1024
_SHOWN_ACTIONS = 8
_SHOWN_CHARS = 300


@dataclass(frozen=True, slots=True)
class Objection:
    """Why a node cannot be given a request."""

    reason: Reason
    detail: str


def _follow_nothing(uri: str) -> NoReturn:
    # Otherwise a node's schema makes the server fetch URLs and read files.
    raise ValueError(f"the schema refers to {uri}, outside its document")


class ActionSchemas:
    """Compiled validators, by driver set and action: nodes of one version share them. Belongs to the writer thread."""

    def __init__(self) -> None:
        self._compiled: OrderedDict[tuple[bytes, str], Any] = OrderedDict()

    def object_to(self, drivers: DriverSet, specs: tuple[Spec, ...]) -> Objection | None:
        """First objection of a driver set to specs; None when it takes them all."""
        for no, spec in enumerate(specs, start=1):
            which = f"{spec.action} (command {no} of {len(specs)})" if len(specs) > 1 else spec.action
            objection = self._object_to_one(drivers, spec, which)
            if objection is not None:
                return objection
        return None

    def _object_to_one(self, drivers: DriverSet, spec: Spec, which: str) -> Objection | None:
        action = drivers.actions.get(spec.action)
        if action is None:
            return Objection(Reason.UNKNOWN_ACTION, _unknown(spec.action, drivers.actions))
        try:
            validator = self._validator(drivers.sha256, action)
            error = next(validator.iter_errors(spec.value), None)
        except (ValueError, OverflowError, RecursionError) as problem:
            detail = f"{spec.action}: the node's schema cannot judge these arguments ({_cut(str(problem))})"
            return Objection(Reason.ARGUMENTS_INVALID, detail)
        if error is None:
            return None
        path = "/".join(str(part) for part in error.instance_path)
        detail = f"the arguments of {which} are refused at /{path}: {_cut(error.message)}"
        return Objection(Reason.ARGUMENTS_INVALID, detail)

    def _validator(self, drivers_sha256: bytes, action: gateway_pb2.ActionDescriptor) -> Any:
        key = (drivers_sha256, action.action)
        validator = self._compiled.get(key)
        if validator is None:
            validator = self._compiled[key] = _compile(action.arguments_schema)
            if len(self._compiled) > _MAX_COMPILED:
                self._compiled.popitem(last=False)
        return validator


def _compile(schema: bytes) -> Any:
    if len(schema) > _MAX_SCHEMA_BYTES:
        raise ValueError("the schema is larger than 64 KiB")
    parsed = json.loads(schema or b"{}")
    return jsonschema_rs.validator_for(parsed, retriever=_follow_nothing)


def _unknown(action: str, offered: Mapping[str, object]) -> str:
    names = sorted(offered)
    shown = ", ".join(names[:_SHOWN_ACTIONS]) + (" and more" if len(names) > _SHOWN_ACTIONS else "")
    return f"the node offers no action {action!r}; it offers {shown or 'none'}"


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"
