"""The text of operators' requests: whatever field it stands in, it is a name, a reference or one line, and goes to the
database, into audit rows and onto terminals. Arguments of commands are bytes, and are judged by their schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from fleet.errors import Reason, Refusal

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class _Field(NamedTuple):
    name: str
    repeated: bool
    mapping: bool
    nested: bool


def check_texts(request: Message) -> None:
    """Refuse control characters: no database stores a NUL, and no name holds a line break.

    Raises:
        Refusal: INVALID_ARGUMENT with the field.
    """
    wrong = _wrong_text(request)
    if wrong is not None:
        path, text = wrong
        raise Refusal(
            Reason.INVALID_ARGUMENT,
            f"the field {path} holds a control character, in {text[:80]!r}: write it on one line, without any",
        )


def _wrong_text(message: Message) -> tuple[str, str] | None:
    """The first text with a control character, and its field."""
    for name, repeated, mapping, nested in _fields(message.DESCRIPTOR):
        value: Any = getattr(message, name)
        if mapping:
            texts: Iterable[str] = chain.from_iterable(value.items())
        elif nested:
            for each in value if repeated else (value,):
                wrong = _wrong_text(each)
                if wrong is not None:
                    return f"{name}.{wrong[0]}", wrong[1]
            continue
        else:
            texts = value if repeated else (value,)
        for text in texts:
            if _CONTROL.search(text):
                return name, text
    return None


@lru_cache(maxsize=256)
def _fields(descriptor: Descriptor) -> tuple[_Field, ...]:
    """Fields of a message that hold text, themselves or in what they hold. Maps are from text to text."""
    found: list[_Field] = []
    for field in descriptor.fields:
        inner = field.message_type
        if inner is None:
            if field.type == FieldDescriptor.TYPE_STRING:
                found.append(_Field(field.name, field.is_repeated, mapping=False, nested=False))
        elif _fields(inner):
            found.append(_Field(field.name, field.is_repeated, inner.GetOptions().map_entry, nested=True))
    return tuple(found)
