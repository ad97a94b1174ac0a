"""A message as a list of fields that a person, or another language, can put together again."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_TYPES = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_MESSAGE: "message",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_ENUM: "enum",
}


def fields_of(message: Message) -> list[dict[str, Any]]:
    """Set fields in order of number; a repeated field stands once per element, a map once per entry in key order."""
    return [
        {"number": field.number, "name": field.name, "type": _TYPES[field.type], "value": _shown(field, element)}
        for field, value in message.ListFields()
        for element in _elements(field, value)
    ]


def _elements(field: FieldDescriptor, value: Any) -> list[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return sorted(value.items())
    return list(value) if field.is_repeated else [value]


def _shown(field: FieldDescriptor, element: Any) -> Any:
    if isinstance(element, tuple):
        names = (("key", 1, element[0]), ("value", 2, element[1]))
        return [{"number": n, "name": name, "type": "string", "value": value} for name, n, value in names]
    if isinstance(element, Message):
        return fields_of(element)
    return element.hex() if isinstance(element, bytes) else element
