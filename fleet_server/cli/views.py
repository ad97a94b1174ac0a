"""Messages as JSON that programs can rely on, and small words that several nouns show.

One rule set makes every field, so nothing is forgotten and nothing is named twice (docs/fleetctl.md, "JSON"):
an int64 that ends in `_ms` is a moment: the name loses `_ms`, the value is RFC 3339 in UTC, null when it never
happened; bytes are lower-case hex, but `arguments` and `output` are the JSON that they hold and `detail` is its exact
text; an enum is its word without the prefix; a message that is absent is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from fleet_server.cli.terminal import Styled, state_cell

_JSON_FIELDS = frozenset({"arguments", "output", "arguments_schema"})
_TEXT_FIELDS = frozenset({"detail"})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_json(message: Message) -> dict[str, object]:
    """A message as a JSON object."""
    values: dict[str, object] = {}
    fields: Sequence[Any] = message.DESCRIPTOR.fields
    for field in fields:
        value: Any = getattr(message, field.name)
        if _is_map(field):
            values[field.name] = dict(sorted(value.items()))
        elif field.is_repeated:
            values[json_name(field)] = [_scalar(field, item) for item in value]
        elif field.message_type is not None and not message.HasField(field.name):
            values[field.name] = None
        else:
            values[json_name(field)] = _scalar(field, value)
    return values


def json_name(field: FieldDescriptor) -> str:
    """Name of a field in the JSON."""
    return field.name.removesuffix("_ms") if _is_moment(field) else field.name


def json_type(field: FieldDescriptor) -> str:
    """What the JSON holds for a field, in words; for the reference."""
    if _is_map(field):
        return "object"
    if _is_moment(field):
        word = "time"
    elif field.message_type is not None:
        word = field.message_type.name
    elif field.enum_type is not None:
        word = "word"
    elif field.name in _JSON_FIELDS:
        word = "JSON"
    elif field.type == FieldDescriptor.TYPE_BYTES:
        word = "text" if field.name in _TEXT_FIELDS else "hex"
    elif field.type == FieldDescriptor.TYPE_STRING:
        word = "text"
    elif field.type == FieldDescriptor.TYPE_BOOL:
        word = "true or false"
    else:
        word = "number"
    return f"array of {word}" if field.is_repeated else word


def moment(at_ms: int) -> str | None:
    """Unix milliseconds as RFC 3339 in UTC with milliseconds; None for 0."""
    if not at_ms:
        return None
    try:
        moment_utc = _EPOCH + timedelta(milliseconds=at_ms)
    except OverflowError:
        return None
    return moment_utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment_text(at_ms: int) -> str:
    """As `moment`, to the second and with a space; "-" for 0."""
    text = moment(at_ms)
    return f"{text[:10]} {text[11:19]}Z" if text else "-"


def enum_word(descriptor: EnumDescriptor, number: int) -> str:
    """An enum value without its prefix: COMMAND_STATE_SENT is "SENT"; a value from a newer server is its number."""
    value = descriptor.values_by_number.get(number)
    if value is None:
        return str(number)
    zero = descriptor.values_by_number[0].name
    return value.name.removeprefix(zero.removesuffix("UNSPECIFIED"))


def labels_text(labels: Iterable[tuple[str, str]]) -> str:
    """Labels as "a=1 b=2", sorted."""
    return " ".join(f"{key}={value}" for key, value in sorted(labels))


def enum_cell(descriptor: EnumDescriptor, number: int) -> Styled:
    """An enum value in its colour."""
    return state_cell(enum_word(descriptor, number))


def output_text(output: bytes, *, arguments: bytes = b"") -> str:
    """A driver's result on one line: "key=value key=value" for an object.

    Args:
        output: as the node sent it.
        arguments: what the command was given: members that only repeat it are left out, as empty ones are.
    """
    given = _object(arguments)
    try:
        value = json.loads(output) if output else None
    except (ValueError, RecursionError):
        return output.decode("utf-8", "replace")
    if isinstance(value, dict):
        return " ".join(
            f"{key}={_compact(item)}"
            for key, item in value.items()
            if item not in ("", None) and not (key in given and given[key] == item)
        )
    return "" if value is None else _compact(value)


def grouped_hex(value: bytes) -> str:
    """A SHA-256 as pairs with colons, as openssl prints it."""
    return value.hex(":").upper()


def _object(raw: bytes) -> dict[str, object]:
    try:
        value = json.loads(raw) if raw else None
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _compact(value: object) -> str:
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return f"[{len(value)} rows]" if len(value) > 1 else "[1 row]"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _is_moment(field: FieldDescriptor) -> bool:
    return field.type == FieldDescriptor.TYPE_INT64 and field.name.endswith("_ms")


def _scalar(field: FieldDescriptor, value: Any) -> object:
    if field.message_type is not None:
        return to_json(value)
    if _is_moment(field):
        return moment(value)
    if field.enum_type is not None:
        return enum_word(field.enum_type, value)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _bytes(field.name, value)
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no NaN
    return value


def _bytes(name: str, value: bytes) -> object:
    if name in _TEXT_FIELDS:
        return value.decode("utf-8", "replace")
    if name not in _JSON_FIELDS:
        return value.hex()
    try:
        return json.loads(value) if value else None
    except (ValueError, RecursionError):  # a node may send anything; it is shown as the text that it is
        return value.decode("utf-8", "replace")
