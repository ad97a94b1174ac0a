"""Schemas that a node may send, and those that would be a program that never ends."""

import json
from typing import Any

import pytest

from fleet.schema import MAX_DEPTH, SchemaLimitError, check_all_schema_limits, check_schema_limits


def raw(schema: Any) -> bytes:
    return json.dumps(schema).encode()


def nested(levels: int) -> Any:
    schema: Any = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


def doubling(count: int) -> dict[str, Any]:
    """Small on the wire, 2^count parts once followed."""
    definitions: dict[str, Any] = {"d0": {"type": "string"}}
    for number in range(1, count):
        both = {"$ref": f"#/$defs/d{number - 1}"}
        definitions[f"d{number}"] = {"allOf": [both, both]}
    return {"$defs": definitions, "$ref": f"#/$defs/d{count - 1}"}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"pattern": {"type": "string", "maxLength": 5}}, "required": ["pattern"]},
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "additionalProperties": False},
        {"$defs": {"port": {"type": "integer"}}, "properties": {"a": {"$ref": "#/$defs/port"}}},
        {"oneOf": [{"const": 1}, True], "if": {"type": "object"}, "then": {"minProperties": 1}},
        {"enum": [{"$ref": "data, not a schema", "pattern": "("}]},
        nested(MAX_DEPTH - 1),
        doubling(8),
    ],
)
def test_taken(schema: dict[str, Any]) -> None:
    check_schema_limits(raw(schema))


@pytest.mark.parametrize(
    "schema",
    [
        {"pattern": "(a+)+$"},
        {"properties": {"a": {"items": {"pattern": "x"}}}},
        {"patternProperties": {"x": {}}},
        {"$ref": "https://example.com/schema"},
        {"$ref": "#"},
        {"$ref": "#/$defs/none"},
        {"properties": {"a": {"$ref": "file:///etc/passwd"}}},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"},
        {"$dynamicRef": "#x"},
        {"$id": "https://example.com/"},
        {"$schema": "http://json-schema.org/draft-07/schema#"},
        {"properties": {"a": {"$defs": {}}}},
        {"properties": []},
        {"allOf": {}},
        {"items": "string"},
        {"$defs": []},
        nested(MAX_DEPTH),
        doubling(16),
        ["a list"],
        "text",
    ],
)
def test_refused_with_a_sentence(schema: Any) -> None:
    with pytest.raises(SchemaLimitError) as caught:
        check_schema_limits(raw(schema))
    assert len(str(caught.value)) > 15


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 5_000, b"{" + b" " * 70_000 + b"}"])
def test_bytes_that_are_no_schema(text: bytes) -> None:
    with pytest.raises(SchemaLimitError):
        check_schema_limits(text)


def test_no_schema_takes_any_object() -> None:
    check_schema_limits(b"")


def test_all_schemas_of_a_node_share_one_limit() -> None:
    one = raw({"title": "x" * 20_000})
    check_all_schema_limits([one] * 3)
    with pytest.raises(SchemaLimitError):
        check_all_schema_limits([one] * 4)
