"""What the JSON Schema of an action's arguments may hold (docs/protocol.md, "What a node says of itself"). Pure.

The server compiles and runs what a node sends, so a node must not be able to send a program that never ends. Draft
2020-12, cut down:

- no `pattern` and `patternProperties`: expressions differ between languages, and some run for years;
- `$ref` only to `#/$defs/<name>` of the same document, never in a circle, and at most MAX_EXPANDED_SCHEMAS parts once
  every `$ref` is followed: forty definitions that double each other are small on the wire and endless when run;
- only the keywords listed here, so that nothing hides where this check does not look;
- at most MAX_DEPTH levels of objects and lists.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MAX_SCHEMA_BYTES = 64 * 1024
MAX_DEPTH = 16
MAX_EXPANDED_SCHEMAS = 4096
MAX_REFERENCE_CHAIN = 16
DIALECT = "https://json-schema.org/draft/2020-12/schema"

_ONE = frozenset({
    "items", "additionalProperties", "contains", "propertyNames", "not", "if", "then", "else",
    "unevaluatedItems", "unevaluatedProperties",
})  # fmt: skip
_LIST = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_MAP = frozenset({"properties", "dependentSchemas"})
_PLAIN = frozenset({
    "type", "enum", "const", "required", "dependentRequired", "format",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "minLength", "maxLength", "minItems", "maxItems", "uniqueItems", "minContains", "maxContains",
    "minProperties", "maxProperties",
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$ref",
})  # fmt: skip
_ROOT = frozenset({"$schema", "$defs"})
_REFERENCE = re.compile(r"#/\$defs/([A-Za-z0-9_.-]{1,64})")


class SchemaLimitError(ValueError):
    """A schema is outside these limits. The text says where and what to do."""


def check_all_schema_limits(raws: Iterable[bytes]) -> None:
    """Check every schema of one node; together they hold at most MAX_SCHEMA_BYTES.

    Raises:
        SchemaLimitError: the first thing that is wrong.
    """
    schemas = list(raws)
    total_bytes = sum(len(raw) for raw in schemas)
    if total_bytes > MAX_SCHEMA_BYTES:
        raise SchemaLimitError(
            f"the schemas of this node hold {total_bytes} bytes together; at most {MAX_SCHEMA_BYTES} are taken"
        )
    for raw in schemas:
        check_schema_limits(raw)


def check_schema_limits(raw: bytes) -> None:
    """Check one schema as it travels: UTF-8 JSON. Empty means that any object passes.

    Raises:
        SchemaLimitError: the first thing that is wrong.
    """
    if not raw:
        return
    if len(raw) > MAX_SCHEMA_BYTES:
        raise SchemaLimitError(f"the schema holds {len(raw)} bytes; at most {MAX_SCHEMA_BYTES} are taken")
    try:
        schema = json.loads(raw)
    except (ValueError, RecursionError):
        raise SchemaLimitError("the schema is not JSON in UTF-8") from None
    if not isinstance(schema, dict):
        raise SchemaLimitError("the schema must be a JSON object")
    _check_depth(schema)
    if schema.get("$schema", DIALECT) != DIALECT:
        raise SchemaLimitError(f"$schema must be {DIALECT}, or be left out")
    definitions = schema.get("$defs", {})
    if not isinstance(definitions, dict):
        raise SchemaLimitError("$defs must be an object of schemas")
    expansion = _Expansion(definitions)
    for name in definitions:
        expansion.definition(name, ())
    expansion.count({key: value for key, value in schema.items() if key not in _ROOT}, "#", ())


def _check_depth(schema: Mapping[str, Any]) -> None:
    level: list[Any] = [schema]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            below += value.values() if isinstance(value, dict) else value
        level = [value for value in below if isinstance(value, dict | list)]
        if not level:
            return
    raise SchemaLimitError(f"the schema is nested more than {MAX_DEPTH} levels deep: move parts to $defs")


class _Expansion:
    """Counts the parts of a schema with every `$ref` followed; a definition is counted once and remembered."""

    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self._definitions = definitions
        self._sizes: dict[str, int] = {}

    def definition(self, name: str, path: tuple[str, ...]) -> int:
        if name in path:
            raise SchemaLimitError(f"$ref leads back to #/$defs/{name}: write the levels out instead of recursing")
        if len(path) >= MAX_REFERENCE_CHAIN:
            raise SchemaLimitError(f"more than {MAX_REFERENCE_CHAIN} definitions lead from one to the next")
        if name not in self._sizes:
            self._sizes[name] = self.count(self._definitions[name], f"#/$defs/{name}", (*path, name))
        return self._sizes[name]

    def count(self, schema: Any, place: str, path: tuple[str, ...]) -> int:
        if isinstance(schema, bool):
            return 1
        if not isinstance(schema, dict):
            raise SchemaLimitError(f"{place}: a schema must be an object, true or false")
        size = 1 + sum(self.count(part, where, path) for where, part in _parts(schema, place))
        if "$ref" in schema:
            size += self._reference(schema["$ref"], place, path)
        if size > MAX_EXPANDED_SCHEMAS:
            raise SchemaLimitError(
                f"{place}: more than {MAX_EXPANDED_SCHEMAS} parts once $ref is followed: make it smaller"
            )
        return size

    def _reference(self, reference: Any, place: str, path: tuple[str, ...]) -> int:
        match = _REFERENCE.fullmatch(reference) if isinstance(reference, str) else None
        if match is None or match[1] not in self._definitions:
            raise SchemaLimitError(f"{place}: $ref may only name a #/$defs/<name> of the same document")
        return self.definition(match[1], path)


def _parts(schema: Mapping[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    for keyword, value in schema.items():
        where = f"{place}/{keyword[:64]}"
        if keyword in _PLAIN:
            continue
        if keyword in _ONE:
            yield where, value
        elif keyword in _LIST and isinstance(value, list):
            yield from ((f"{where}/{number}", part) for number, part in enumerate(value))
        elif keyword in _MAP and isinstance(value, dict):
            yield from ((f"{where}/{name[:64]}", part) for name, part in value.items())
        elif keyword in _LIST or keyword in _MAP:
            raise SchemaLimitError(f"{where}: must be a {'list' if keyword in _LIST else 'map'} of schemas")
        else:
            raise SchemaLimitError(f"{where}: not a keyword that is taken (no pattern, no identifiers): remove it")
