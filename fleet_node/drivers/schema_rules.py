"""What the JSON Schema of an action's arguments may hold (docs/protocol.md, "What a node says of itself").
Pure.

A schema travels to the server, which compiles and runs it, and to browsers, which draw forms from it: whoever
writes one writes a small program for other machines. So it is draft 2020-12 cut down to what ends soon for
every input:

- no `pattern` or `patternProperties`: regular expressions differ between languages and some never end;
- `$ref` only to `#/$defs/<name>`, never round in a circle, and the schema that results from following every
  `$ref` has at most MAX_EXPANDED_SCHEMAS parts: forty lines of `$defs` that double each other make a
  validator run for years;
- only the keywords in the tables below, so that nothing hides where this check does not look;
- at most MAX_SCHEMA_DEPTH levels and MAX_SCHEMA_BYTES in all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

MAX_SCHEMA_BYTES = 64 * 1024
"""Of all schemas of one node together."""

MAX_SCHEMA_DEPTH = 16
"""Levels of objects and lists in one schema document."""

MAX_REFERENCE_CHAIN = 16
"""Definitions that lead from one to the next: with the depth, this bounds the recursion of whoever follows
them.
"""

MAX_EXPANDED_SCHEMAS = 4096
"""Subschemas in one schema after each `$ref` is replaced by what it names."""

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_ONE_SCHEMA = frozenset({
    "items", "additionalProperties", "contains", "propertyNames", "not", "if", "then", "else",
    "unevaluatedItems", "unevaluatedProperties",
})  # fmt: skip
_LIST_OF_SCHEMAS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_MAP_OF_SCHEMAS = frozenset({"properties", "dependentSchemas"})
_PLAIN = frozenset({
    "type", "enum", "const", "required", "dependentRequired", "format",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "minLength", "maxLength", "minItems", "maxItems", "uniqueItems", "minContains", "maxContains",
    "minProperties", "maxProperties",
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment",
})  # fmt: skip
_ROOT_ONLY = frozenset({"$schema", "$defs"})
_DEFINITION = re.compile(r"#/\$defs/([A-Za-z0-9_.-]{1,64})")


class SchemaError(ValueError):
    """A schema is not acceptable; the text says where, what, and what to do."""


def encode_schema(schema: Mapping[str, Any]) -> bytes:
    """The one text of a schema: what is checked, compiled, sent and shown.

    Raises:
        SchemaError: it holds something that JSON cannot carry.
    """
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")
    except (TypeError, ValueError, RecursionError):
        raise SchemaError("the schema is not JSON; use only dict, list, str, int, float, bool and None") from None


def check_schema(schema: Mapping[str, Any]) -> None:
    """Refuse a schema that is not within the rules above. Whether its keywords have sensible values is the
    compiler's job.

    Args:
        schema: parsed JSON, at most MAX_SCHEMA_BYTES.

    Raises:
        SchemaError: the first thing that is wrong.
    """
    _check_depth(schema)
    if schema.get("$schema", DIALECT) != DIALECT:
        raise SchemaError(f"$schema must be {DIALECT}, or be left out")
    if schema.get("type") != "object":
        raise SchemaError('arguments are an object: give the schema "type": "object" at its root')
    definitions = schema.get("$defs", {})
    if not isinstance(definitions, Mapping):
        raise SchemaError("$defs must be an object of schemas")
    sizes: dict[str, int] = {}
    for name, definition in definitions.items():
        _expanded_size(definition, f"#/$defs/{name}", definitions, sizes, (name,))
    root = {key: value for key, value in schema.items() if key not in _ROOT_ONLY}
    _expanded_size(root, "#", definitions, sizes, ())


def _check_depth(schema: Mapping[str, Any]) -> None:
    level: list[object] = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        below: list[object] = []
        for value in level:
            children = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
            below.extend(child for child in children if isinstance(child, Mapping | list))
        if not below:
            return
        level = below
    raise SchemaError(f"nested more than {MAX_SCHEMA_DEPTH} levels deep; move parts to $defs")


def _expanded_size(
    schema: object, place: str, definitions: Mapping[str, Any], sizes: dict[str, int], path: tuple[str, ...]
) -> int:
    """Subschemas under this one with each `$ref` followed; `sizes` remembers definitions, `path` is the way
    here.
    """
    if isinstance(schema, bool):
        return 1
    if not isinstance(schema, Mapping):
        raise SchemaError(f"{place}: a schema must be an object, true or false")
    size = 1
    for part_place, part in _parts(schema, place):
        size += _expanded_size(part, part_place, definitions, sizes, path)
    if "$ref" in schema:
        size += _referenced_size(schema["$ref"], place, definitions, sizes, path)
    if size > MAX_EXPANDED_SCHEMAS:
        raise SchemaError(f"{place}: more than {MAX_EXPANDED_SCHEMAS} parts once $ref is followed; make it smaller")
    return size


def _referenced_size(
    reference: object,
    place: str,
    definitions: Mapping[str, Any],
    sizes: dict[str, int],
    path: tuple[str, ...],
) -> int:
    match = _DEFINITION.fullmatch(reference) if isinstance(reference, str) else None
    if match is None:
        raise SchemaError(f"{place}: $ref may only name #/$defs/<name> of the same schema")
    name = match[1]
    if name not in definitions:
        raise SchemaError(f"{place}: $ref names #/$defs/{name}, which does not exist")
    if name in path:
        raise SchemaError(f"{place}: $ref leads back to #/$defs/{name}; write the levels out instead of recursing")
    if len(path) >= MAX_REFERENCE_CHAIN:
        raise SchemaError(f"{place}: more than {MAX_REFERENCE_CHAIN} definitions lead from one to the next")
    if name not in sizes:
        sizes[name] = _expanded_size(definitions[name], f"#/$defs/{name}", definitions, sizes, (*path, name))
    return sizes[name]


def _parts(schema: Mapping[str, Any], place: str) -> Iterator[tuple[str, object]]:
    """The subschemas right under a schema, each with its place.

    Raises:
        SchemaError: a keyword is not allowed, or its value has the wrong shape.
    """
    for keyword, value in schema.items():
        here = f"{place}/{keyword}"
        if keyword in _PLAIN or keyword == "$ref":
            continue
        if keyword in _ONE_SCHEMA:
            yield here, value
        elif keyword in _LIST_OF_SCHEMAS:
            if not isinstance(value, list):
                raise SchemaError(f"{here}: must be a list of schemas")
            for number, part in enumerate(value):
                yield f"{here}/{number}", part
        elif keyword in _MAP_OF_SCHEMAS:
            if not isinstance(value, Mapping):
                raise SchemaError(f"{here}: must be an object of schemas")
            for name, part in value.items():
                yield f"{here}/{name}", part
        elif keyword in _ROOT_ONLY:
            raise SchemaError(f"{here}: allowed at the root only")
        else:
            raise SchemaError(f"{here}: not an allowed keyword (no pattern, no identifiers, no extensions); remove it")
