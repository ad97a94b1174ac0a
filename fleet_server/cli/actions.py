"""The actions that a node offers, with their arguments as `fleetctl run` takes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fleet.prose import wrapped
from fleet_server.cli.terminal import Styled, printable, styled

if TYPE_CHECKING:
    from fleet.v1 import gateway_pb2

_MOST_CHOICES = 12


def describe(drivers: Sequence[gateway_pb2.DriverDescriptor], *, colour: bool, width: int | None) -> str:
    """Every action: its name, driver and notes; what it does; its arguments.

    Args:
        drivers: as the node declared them.
        colour: whether to write escape sequences.
        width: columns of the terminal; None for pipes.
    """
    lines: list[str] = []
    for driver in drivers:
        for action in driver.actions:
            notes = [f"{driver.name} {driver.version}", *_notes(action)]
            name = styled(Styled(action.action, bold=True), colour=colour)
            lines.append(f"{name}  {styled(Styled(', '.join(notes), dim=True), colour=colour)}")
            told = (action.description, " ".join(arguments(action.arguments_schema)))
            lines += ["  " + wrapped(printable(text), width, indent=2) for text in told if text]
    return "\n".join(lines)


def arguments(schema: bytes) -> Iterator[str]:
    """The arguments of a JSON Schema as `--arg` takes them, the required ones first, the others in brackets.

    Args:
        schema: as a node sent it: it may be anything.
    """
    try:
        told: Any = json.loads(schema) if schema else {}
    except (ValueError, RecursionError):
        return
    properties = told.get("properties") if isinstance(told, dict) else None
    if not isinstance(properties, dict):
        return
    required = told.get("required")
    needed = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    for name in sorted(properties, key=lambda each: each not in needed):
        about = properties[name]
        text = f"{name}{_value(about if isinstance(about, dict) else {})}"
        yield text if name in needed else f"[{text}]"


def _value(about: Mapping[str, Any]) -> str:
    """ "=TEXT" for text, ":=…" for what is written as JSON."""
    choices = about.get("enum")
    if isinstance(choices, list) and choices:
        shown = [each if isinstance(each, str) else json.dumps(each) for each in choices[:_MOST_CHOICES]]
        more = "|…" if len(choices) > _MOST_CHOICES else ""
        return f"{'=' if all(isinstance(each, str) for each in choices) else ':='}{'|'.join(shown)}{more}"
    kind = about.get("type")
    if kind == "string":
        return "=TEXT"
    if kind in ("integer", "number"):
        return f":={_range(about, 'WHOLE' if kind == 'integer' else 'NUMBER')}"
    return {"boolean": ":=true|false", "array": ":=[…]", "object": ":={…}"}.get(str(kind), ":=JSON")


def _range(about: Mapping[str, Any], word: str) -> str:
    least, most = about.get("minimum"), about.get("maximum")
    if not isinstance(least, int | float) or not isinstance(most, int | float):
        return word
    return f"{least:g}..{most:g}" if max(abs(least), abs(most)) < 1e6 else f"{least}..{most}"


def _notes(action: gateway_pb2.ActionDescriptor) -> list[str]:
    return [word for word, holds in (("protected", action.protected), ("idempotent", action.idempotent)) if holds]
