"""What rows of a node's audit say of commands, read strictly: a node may have written anything. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_MAX_NUMBER = 2**63
_MAX_TEXT_CHARS = 64  # a digest in hexadecimal; names of states are shorter


def accepted_commands(detail: bytes) -> Iterator[tuple[int, str]]:
    """Seq and digest of each command of a `command.accepted`.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, RecursionError: it says something else.
    """
    for alike in _object(json.loads(detail))["commands"]:
        for seq, digest in zip(_list(alike["seqs"]), _list(alike["digests"]), strict=True):
            yield _count(seq), _text(digest)


def ended_commands(detail: bytes) -> Iterator[tuple[int, str, str]]:
    """Seq, state and reason of each command of a `command.ended`; raises as `accepted_commands`."""
    for alike in _object(json.loads(detail))["results"]:
        for seq in _list(alike["seqs"]):
            yield _count(seq), _text(alike["state"]), str(alike["reason"])


def left_out_items(detail: bytes) -> int:
    """How much an `audit.gap` counts; raises as `accepted_commands`."""
    return sum(_count(number) for number in _object(json.loads(detail)).values())


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("an object was expected")
    return value


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise TypeError("a list was expected")
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MAX_NUMBER:
        raise TypeError("a number was expected")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT_CHARS:
        raise TypeError("a short text was expected")
    return value
