"""What a driver's JSON Schemas must be: arguments are an object, within the limits that both sides hold
(`fleet.schema`). Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fleet.schema import MAX_SCHEMA_BYTES, SchemaLimitError, check_schema_limits

__all__ = ["MAX_SCHEMA_BYTES", "SchemaLimitError", "check_schema", "encode_schema"]


def encode_schema(schema: Mapping[str, Any]) -> bytes:
    """The one text of a schema: what is checked, compiled, sent and shown.

    Raises:
        SchemaLimitError: it holds something that JSON cannot carry.
    """
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")
    except (TypeError, ValueError, RecursionError):
        raise SchemaLimitError("the schema is not JSON; use only dict, list, str, int, float, bool and None") from None


def check_schema(schema: Mapping[str, Any]) -> None:
    """Refuse a schema that the server would refuse. Whether its keywords have sensible values is the compiler's job.

    Raises:
        SchemaLimitError: the first thing that is wrong.
    """
    if schema.get("type") != "object":
        raise SchemaLimitError('arguments are an object: give the schema "type": "object" at its root')
    check_schema_limits(encode_schema(schema))
