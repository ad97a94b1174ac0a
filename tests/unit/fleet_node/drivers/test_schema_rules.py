from typing import Any

import pytest

from fleet.schema import MAX_DEPTH as MAX_SCHEMA_DEPTH
from fleet.schema import MAX_EXPANDED_SCHEMAS, MAX_REFERENCE_CHAIN
from fleet_node.drivers.schema_rules import SchemaLimitError, check_schema, encode_schema


def obj(**more: Any) -> dict[str, Any]:
    return {"type": "object", **more}


def nested(levels: int) -> dict[str, Any]:
    """A schema whose document has exactly that many levels."""
    inner: Any = {"type": "string"}
    for _ in range(levels - 2):
        inner = {"not": inner}
    return obj(additionalProperties=inner)


def doubling(levels: int) -> dict[str, Any]:
    definitions: dict[str, Any] = {
        f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]} for n in range(levels)
    }
    definitions[f"d{levels}"] = {"type": "object"}
    return {"type": "object", "$defs": definitions, "allOf": [{"$ref": "#/$defs/d0"}]}


def chain(length: int) -> dict[str, Any]:
    definitions: dict[str, Any] = {f"d{n}": {"not": {"$ref": f"#/$defs/d{n + 1}"}} for n in range(length - 1)}
    definitions[f"d{length - 1}"] = True
    return obj(**{"$defs": definitions})


def has_pattern() -> dict[str, str]:
    return {"pattern": "(a+)+$"}


REFUSED = {
    "no type": {},
    "a list at the root": {"type": "array"},
    "object or null at the root": {"type": ["object", "null"]},
    "another draft": obj(**{"$schema": "http://json-schema.org/draft-07/schema#"}),
    "pattern": obj(properties={"a": has_pattern()}),
    "pattern at the root": obj(pattern="x"),
    "pattern in a definition that nothing uses": obj(**{"$defs": {"a": has_pattern()}}),
    "pattern in propertyNames": obj(propertyNames=has_pattern()),
    "pattern in an item of a list": obj(properties={"a": {"prefixItems": [True, has_pattern()]}}),
    "pattern under then": obj(**{"if": True, "then": {"properties": {"a": has_pattern()}}}),
    "pattern in dependentSchemas": obj(dependentSchemas={"a": has_pattern()}),
    "patternProperties": obj(patternProperties={"^a": True}),
    "a reference to the web": obj(properties={"a": {"$ref": "https://example.com/schema"}}),
    "a reference to a file": obj(properties={"a": {"$ref": "file:///etc/passwd"}}),
    "a reference into an unknown keyword": obj(properties={"a": {"$ref": "#/x-hidden"}}),
    "a reference to the root": obj(properties={"a": {"$ref": "#"}}),
    "a reference to nothing": obj(properties={"a": {"$ref": "#/$defs/gone"}}),
    "a reference that is no string": obj(properties={"a": {"$ref": 5}}),
    "a definition that names itself": obj(**{"$defs": {"a": {"$ref": "#/$defs/a"}}}),
    "two definitions in a circle": obj(
        **{"$defs": {"a": {"not": {"$ref": "#/$defs/b"}}, "b": {"items": {"$ref": "#/$defs/a"}}}}
    ),
    "$dynamicRef": obj(properties={"a": {"$dynamicRef": "#x"}}),
    "$anchor": obj(properties={"a": {"$anchor": "x"}}),
    "$id, which would move what # means": obj(properties={"a": {"$id": "https://example.com/"}}),
    "$defs below the root": obj(properties={"a": {"$defs": {"b": True}}}),
    "a keyword of nobody's": obj(**{"x-widget": {"pattern": "x"}}),
    "properties as a list": obj(properties=[True]),
    "allOf as an object": obj(allOf={"a": True}),
    "$defs as a list": obj(**{"$defs": [True]}),
    "a number for a schema": obj(items=5),
    "one level too deep": nested(MAX_SCHEMA_DEPTH + 1),
    "definitions that double each other": doubling(15),
    "a long chain of definitions": chain(MAX_REFERENCE_CHAIN + 2),
    "two thousand definitions in a chain": chain(2000),
}


@pytest.mark.parametrize("schema", REFUSED.values(), ids=REFUSED.keys())
def test_refuses(schema: dict[str, Any]) -> None:
    with pytest.raises(SchemaLimitError) as refused:
        check_schema(schema)
    assert str(refused.value)


ACCEPTED = {
    "the least": obj(),
    "the dialect named": obj(**{"$schema": "https://json-schema.org/draft/2020-12/schema"}),
    "a property that is called pattern": obj(properties={"pattern": {"type": "string"}, "$ref": True}),
    "pattern inside a default": obj(properties={"a": {"default": {"pattern": "x", "$ref": "y"}}}),
    "a reference used twice": obj(
        properties={"a": {"$ref": "#/$defs/x"}, "b": {"$ref": "#/$defs/x"}}, **{"$defs": {"x": {"type": "string"}}}
    ),
    "as deep as allowed": nested(MAX_SCHEMA_DEPTH),
    "a chain as long as allowed": chain(MAX_REFERENCE_CHAIN),
    "doubling within the limit": doubling(9),
    "conditions": obj(**{"if": {"required": ["a"]}, "then": {"required": ["b"]}, "else": False}),
}


@pytest.mark.parametrize("schema", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_accepts(schema: dict[str, Any]) -> None:
    check_schema(schema)


def test_a_wide_schema_without_references_is_bounded_too() -> None:
    with pytest.raises(SchemaLimitError, match="parts"):
        check_schema(obj(properties={str(number): True for number in range(MAX_EXPANDED_SCHEMAS)}))


def test_a_refusal_says_where() -> None:
    with pytest.raises(SchemaLimitError, match="#/properties/host/items/pattern"):
        check_schema(obj(properties={"host": {"items": {"pattern": "x"}}}))


@pytest.mark.parametrize("value", [{1}, float("nan"), b"x", "\ud800"])
def test_what_is_not_json_is_refused(value: object) -> None:
    with pytest.raises(SchemaLimitError):
        encode_schema(obj(default=value))
