"""What rows of the audit say of commands, and of what a person took for history, read strictly: a node, or a server in
the wrong hands, may have written anything. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NOT_SAID = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
"""What reading a row raises that says something else."""
_MAX_NUMBER = 2**63
_MAX_TEXT_CHARS = 64  # a digest in hexadecimal; names of states are shorter


def accepted_commands(detail: bytes) -> Iterator[tuple[int, str]]:
    """Seq and digest of each command of a `command.accepted`.

    Raises:
        NOT_SAID: it says something else.
    """
    for alike in _object(json.loads(detail))["commands"]:
        for seq, digest in zip(_list(alike["seqs"]), _list(alike["digests"]), strict=True):
            yield _count(seq), _text(digest)


def ended_commands(detail: bytes) -> Iterator[tuple[int, str, str]]:
    """Seq, state and reason of each command of a `command.ended`; raises as `accepted_commands`."""
    for alike in _object(json.loads(detail))["results"]:
        for seq in _list(alike["seqs"]):
            yield _count(seq), _text(alike["state"]), str(alike["reason"])


def issued_commands(detail: bytes) -> Iterator[tuple[str, int, str]]:
    """Node, seq and digest of each command of the server's `command.issued`; raises as `accepted_commands`."""
    said = _object(json.loads(detail))
    for node, digests in _object(said.get("digests", {})).items():
        first = _count(_list(said["seqs"][node])[0])
        for seq, digest in enumerate(_list(digests), first):
            yield node, _count(seq), _text(digest)


def reported_commands(detail: bytes) -> Iterator[tuple[str, int, str]]:
    """Node, seq and state of each command of the server's `command.reported`; raises as `accepted_commands`."""
    for node, states in _object(_object(json.loads(detail)).get("nodes", {})).items():
        for state, seqs in _object(states).items():
            for seq in _list(seqs):
                yield node, _count(seq), _text(state)


def answered_cancel(detail: bytes) -> tuple[int, str, str]:
    """Seq of the server's `command.cancelled`, outcome by the node's word, and what state the command is in by that;
    raises as `accepted_commands`."""
    said = _object(json.loads(detail))
    return _count(said["seq"]), _text(said["outcome"]), _text(said["state"])


def buried_command(detail: bytes) -> int | None:
    """Seq of a node's `command.cancel` that came before its command; None for one that did not. Raises as
    `accepted_commands`."""
    said = _object(json.loads(detail))
    return _count(said["seq"]) if _text(said["outcome"]) == "TOMBSTONED" else None


def opened_chain(detail: bytes) -> int:
    """Chain that the server's `node.audit_chain_opened` names; raises as `accepted_commands`."""
    return _count(_object(json.loads(detail))["chain"])


def unvouched_rows(detail: bytes) -> Iterator[tuple[str, int, int]]:
    """Writer, first and last row of what the server's `database.restored` took and nobody vouched for; raises as
    `accepted_commands`."""
    for writer, rows in _object(_object(json.loads(detail)).get("audit_unvouched", {})).items():
        first, last = map(_count, _list(rows))
        yield writer, first, last


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
