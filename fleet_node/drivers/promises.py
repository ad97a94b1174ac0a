"""What a driver promises by its types, checked before it is believed: names, limits, schemas, signatures."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import jsonschema_rs

from fleet_node.drivers.api import MAX_OUTPUT_BYTES, Action, Driver, Outcome, OutcomeState, Sample
from fleet_node.drivers.schema_rules import MAX_SCHEMA_BYTES, SchemaLimitError, check_schema, encode_schema

MAX_ACTIONS: Final = 128
MAX_TIMEOUT_S: Final = 7 * 24 * 3600.0
MAX_DESCRIPTION_CHARS: Final = 300
MAX_SERIES_NAME_CHARS: Final = 128
MAX_UNIT_CHARS: Final = 32
MAX_LABELS: Final = 16
MAX_LABEL_CHARS: Final = 128
DRIVER_FAULTS: Final = (Exception, SystemExit)
"""What a driver's code may raise wherever it is called: a stranger's `sys.exit()` must not end the node."""

_DRIVER_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_VERB = re.compile(r"[a-z][a-z0-9_-]{0,47}")


class BrokenPromise(Exception):
    """A driver does not keep to its interface; the text tells its author what to change."""


@dataclass(frozen=True, slots=True)
class CheckedAction:
    """An action that keeps its promises.

    Args:
        action: with a schema that nobody else holds a reference to.
        schema_bytes: that schema as it is sent.
        validator: that schema, compiled.
    """

    action: Action
    schema_bytes: bytes
    validator: jsonschema_rs.Draft202012Validator


def checked_driver(driver: object, name: str) -> None:
    """Refuse an object that is no driver of that name.

    Raises:
        BrokenPromise: says what to change.
    """
    if not isinstance(driver, Driver):
        raise BrokenPromise("it lacks name, version, actions, run, sample or close; see docs/drivers.md")
    if driver.name != name or not _DRIVER_NAME.fullmatch(name):
        raise BrokenPromise(f"its name must be that of its entry point, {name!r}, and match {_DRIVER_NAME.pattern}")
    if not _is_line(driver.version, 64):
        raise BrokenPromise("its version must be a printable string of 1 to 64 characters")
    for method in ("run", "close"):
        if not inspect.iscoroutinefunction(getattr(driver, method)):
            raise BrokenPromise(f"{method} must be a coroutine function (async def)")
    for method in ("actions", "sample"):
        if not callable(getattr(driver, method)) or inspect.iscoroutinefunction(getattr(driver, method)):
            raise BrokenPromise(f"{method} must be a plain function (def)")


def checked_actions(driver: Driver) -> list[CheckedAction]:
    """The driver's actions, each checked and its schema compiled.

    Raises:
        BrokenPromise: says what to change.
    """
    try:
        actions = list(driver.actions())
    except DRIVER_FAULTS as error:
        raise BrokenPromise(f"actions() raised {type(error).__name__}") from None
    if len(actions) > MAX_ACTIONS:
        raise BrokenPromise(f"it has more than {MAX_ACTIONS} actions")
    checked: dict[str, CheckedAction] = {}
    for action in actions:
        if not isinstance(action, Action):
            raise BrokenPromise(f"actions() holds a {type(action).__name__} instead of an Action")
        one = _checked_action(action, driver.name)
        if action.name in checked:
            raise BrokenPromise(f"{action.name} is there twice")
        checked[action.name] = one
    return list(checked.values())


def _checked_action(action: Action, driver: str) -> CheckedAction:
    if not _is_action_name(action.name, driver):
        raise BrokenPromise(f"an action's name must be {driver}.<verb>, the verb matching {_VERB.pattern}")
    _check_fields(action)
    if not isinstance(action.arguments_schema, Mapping):
        raise BrokenPromise(f"{action.name}: arguments_schema must be a mapping")
    try:
        schema_bytes = encode_schema(action.arguments_schema)
        if len(schema_bytes) > MAX_SCHEMA_BYTES:
            raise SchemaLimitError(f"the schema takes {len(schema_bytes)} bytes; {MAX_SCHEMA_BYTES} are allowed in all")
        # Read back what was written: nothing that the driver still holds can change what is checked, sent
        # and used.
        schema = json.loads(schema_bytes)
        check_schema(schema)
    except SchemaLimitError as error:
        raise BrokenPromise(f"{action.name}: {error}") from None
    try:
        validator = jsonschema_rs.Draft202012Validator(schema, mask="the value", offline=True)
    except jsonschema_rs.ValidationError as error:
        place = "/".join(str(part) for part in error.schema_path)
        raise BrokenPromise(f"{action.name}: not valid under draft 2020-12 (at {place}): {error.message}") from None
    return CheckedAction(replace(action, arguments_schema=schema), schema_bytes, validator)


def _check_fields(action: Action) -> None:
    if not _is_line(action.description, MAX_DESCRIPTION_CHARS):
        raise BrokenPromise(f"{action.name}: description must be one line of 1 to {MAX_DESCRIPTION_CHARS} characters")
    if not _is_flag(action.idempotent) or not _is_flag(action.protected):
        raise BrokenPromise(f"{action.name}: idempotent and protected must be True or False")
    if not _is_number(action.timeout_s) or not 0 < action.timeout_s <= MAX_TIMEOUT_S:
        raise BrokenPromise(f"{action.name}: timeout_s must be above 0 and at most {MAX_TIMEOUT_S:g}")
    if not _is_number(action.max_output_bytes) or not 2 <= action.max_output_bytes <= MAX_OUTPUT_BYTES:
        raise BrokenPromise(f"{action.name}: max_output_bytes must be from 2 to {MAX_OUTPUT_BYTES}")
    if action.ordering_key is not None and not callable(action.ordering_key):
        raise BrokenPromise(f"{action.name}: ordering_key must be a function or None")


def keeps_outcome_promise(outcome: object) -> bool:
    """Whether what a run returned is an Outcome of the declared types; its output is judged when it is encoded."""
    if not isinstance(outcome, Outcome):
        return False
    said: Any = outcome  # whatever the driver really put there
    return (
        isinstance(said.state, OutcomeState)
        and isinstance(said.output, (dict, Mapping))  # dict: a look, where an ABC costs a search
        and isinstance(said.reason, str)
        and isinstance(said.error, str)
        and isinstance(said.truncated, bool)
    )


def keeps_sample_promise(sample: object) -> bool:
    """Whether a sample can be sent: bounded, finite, and of text that UTF-8 can carry."""
    return (
        isinstance(sample, Sample)
        and _is_line(sample.name, MAX_SERIES_NAME_CHARS)
        and _is_line(sample.unit, MAX_UNIT_CHARS)
        and _are_labels(sample.labels)
        and sample.kind in ("gauge", "counter")
        and _is_number(sample.value)
    )


# The types of api.py say all this already; a driver that nobody type-checked says something else at run time.


def _is_action_name(name: object, driver: str) -> bool:
    if not isinstance(name, str):
        return False
    prefix, _, verb = name.partition(".")
    return prefix == driver and _VERB.fullmatch(verb) is not None


def _is_line(value: object, max_chars: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= max_chars and value.isprintable()


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)  # what is merely truthy is no promise


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond a double
        return False


def _are_labels(value: object) -> bool:
    return isinstance(value, tuple) and len(value) <= MAX_LABELS and all(_is_label(one) for one in value)


def _is_label(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(_is_line(one, MAX_LABEL_CHARS) for one in value)
