"""No control character of an operator gets past the admin service, whatever field it stands in."""

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2
from fleet_server.admin.texts import check_texts

REQUESTS = {method.name: method.input_type for method in admin_pb2.DESCRIPTOR.services_by_name["Admin"].methods}


def written(message_type: Descriptor, text: str) -> Iterator[tuple[str, Message]]:
    """Requests with `text` in one field each, every field that takes text in turn."""
    for field in message_type.fields:
        request: Any = message_factory.GetMessageClass(message_type)()
        inner = field.message_type
        if field.type == FieldDescriptor.TYPE_STRING:
            if field.is_repeated:
                getattr(request, field.name).append(text)
            else:
                setattr(request, field.name, text)
            yield field.name, request
        elif inner is not None and inner.GetOptions().map_entry:
            getattr(request, field.name)["key"] = text
            yield f"{field.name} value", request
            request = message_factory.GetMessageClass(message_type)()
            getattr(request, field.name)[text] = "value"
            yield f"{field.name} key", request
        elif inner is not None:
            for name, part in written(inner, text):
                request = message_factory.GetMessageClass(message_type)()
                place = getattr(request, field.name)
                (place.add() if field.is_repeated else place).MergeFrom(part)
                yield f"{field.name}.{name}", request


FIELDS = [(f"{method}.{name}", request) for method, kind in REQUESTS.items() for name, request in written(kind, "a\0b")]


def test_the_fields_that_take_text_are_all_known() -> None:
    names = {name for name, _ in FIELDS}
    assert {
        "IssueCommands.idempotency_key",
        "IssueCommands.commands.action",
        "IssueCommands.selector.patterns",
        "LabelNodes.set key",
        "LabelNodes.set value",
        "LabelNodes.remove",
        "DecideEnrollment.reason",
        "ListNodes.page.token",
    } <= names
    assert len(names) == len(FIELDS) >= 39


@pytest.mark.parametrize(("field", "request_"), FIELDS, ids=[name for name, _ in FIELDS])
def test_a_control_character_is_refused_in_every_field(field: str, request_: Message) -> None:
    with pytest.raises(Refusal) as caught:
        check_texts(request_)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert field.split(".", 1)[1].split(" ", maxsplit=1)[0] in caught.value.detail
    assert "\0" not in caught.value.detail


@pytest.mark.parametrize("char", ["\0", "\n", "\r", "\t", "\x1b", "\x7f", "\x85", "\x9f"])
def test_every_control_character_is_refused(char: str) -> None:
    with pytest.raises(Refusal):
        check_texts(admin_pb2.GetNodeRequest(node=f"pump{char}1"))


def test_other_text_is_taken_and_arguments_are_not_looked_at() -> None:
    check_texts(
        admin_pb2.IssueCommandsRequest(
            selector=admin_pb2.Selector(patterns=["pump-*", "site=köln"]),
            commands=[admin_pb2.CommandSpec(action="exec.run", arguments=b'{"text": "a\\n\\u0000"}\n')],
            idempotency_key="\N{SNOWMAN} 7",
        )
    )
    check_texts(admin_pb2.WhoAmIRequest())
