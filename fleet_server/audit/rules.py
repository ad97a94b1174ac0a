"""How an audit row is written down, and when a checkpoint is due. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fleet.audit_chain import FIRST_PREVIOUS_HASH, WHOLE_CHECKPOINT_EVERY, CheckpointMark, row_hash
from fleet.v1 import trust_pb2

JSON = None | bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"]

MAX_DETAIL_BYTES = 256 * 1024
MAX_ACTOR_CHARS = 80
MAX_SUBJECT_CHARS = 200
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True, slots=True)
class Entry:
    """A row before it has its place in a chain."""

    at_ms: int
    kind: str
    actor: str
    subject: str
    detail: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """Newest row of a writer's chain. `Head.start()` stands before the first."""

    writer: str
    number: int
    hash: bytes

    @classmethod
    def start(cls, writer: str) -> Head:
        """The head of a chain without rows."""
        return cls(writer, 0, FIRST_PREVIOUS_HASH)


@dataclass(frozen=True, slots=True)
class AuditRow:
    """A row of a chain; `position` is its place in the order of storage, 0 until it is stored."""

    position: int
    writer: str
    number: int
    at_ms: int
    kind: str
    actor: str
    subject: str
    detail: bytes
    previous_hash: bytes
    hash: bytes


def canonical_json(detail: Mapping[str, JSON]) -> bytes:
    """Sorted keys, no spaces, UTF-8. What is too large is replaced by its size and hash: the deed is recorded in any
    case.

    Raises:
        TypeError: a value is no JSON; bytes and `Secret` are none on purpose.
        ValueError: NaN or infinity, which JSON does not know.
    """
    encoded = _CANONICAL.encode(detail).encode("utf-8", "replace")
    if len(encoded) <= MAX_DETAIL_BYTES:
        return encoded
    digest = hashlib.sha256(encoded).hexdigest()
    return canonical_json({"bytes": len(encoded), "omitted": "too large to keep", "sha256": digest})


def fit(text: str, limit_chars: int) -> str:
    """Text that every database stores: cut to `limit_chars`, no NUL and no lone surrogate, for a stranger chose some
    of it."""
    clean = text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")
    return clean if len(clean) <= limit_chars else clean[: limit_chars - 1] + "…"


def chain(head: Head, entries: Sequence[Entry]) -> tuple[list[AuditRow], Head]:
    """Give each entry its number and hash after `head`; the rows, and the head after them."""
    rows: list[AuditRow] = []
    number, previous = head.number, head.hash
    for entry in entries:
        number += 1
        digest = row_hash(
            previous_hash=previous,
            writer=head.writer,
            number=number,
            at_ms=entry.at_ms,
            kind=entry.kind,
            actor=entry.actor,
            subject=entry.subject,
            detail=entry.detail,
        )
        rows.append(
            AuditRow(
                0,
                head.writer,
                number,
                entry.at_ms,
                entry.kind,
                entry.actor,
                entry.subject,
                entry.detail,
                previous,
                digest,
            )
        )
        previous = digest
    return rows, Head(head.writer, number, previous)


def is_whole(number: int) -> bool:
    """Whether the checkpoint of a number names every chain."""
    return number % WHOLE_CHECKPOINT_EVERY == 0


def went_back(head: Head, *, signed: int, seen: Head | None) -> str:
    """How a head lies behind what is known of its chain; empty when it does not.

    Args:
        head: as the database holds it.
        signed: newest number that a checkpoint named.
        seen: where this replica saw the chain end, or what was signed when it started.
    """
    if head.number < signed:
        return f"it went back to row {head.number}; a checkpoint vouches for row {signed}"
    if seen is not None and (head.number < seen.number or (head.number == seen.number and head.hash != seen.hash)):
        return f"it went back to row {head.number}; row {seen.number} was seen"
    return ""


def next_checkpoint(
    *, cluster_id: str, previous: CheckpointMark, heads: Sequence[Head], now_ms: int
) -> trust_pb2.AuditCheckpointStatement:
    """The statement of the next checkpoint.

    Args:
        cluster_id: whose audit it is.
        previous: the newest checkpoint; number 0 before the first.
        heads: newest row of each chain that grew; of every chain when it `is_whole`.
        now_ms: Unix milliseconds.
    """
    named = [
        trust_pb2.AuditHead(writer=head.writer, number=head.number, hash=head.hash)
        for head in sorted(heads, key=lambda head: head.writer)
    ]
    return trust_pb2.AuditCheckpointStatement(
        cluster_id=cluster_id,
        number=previous.number + 1,
        previous_sha256=previous.sha256,
        heads=named,
        issued_at_ms=now_ms,
    )
