"""Audit hash chains: how a row is hashed, and how a reader finds what was changed, removed, reordered or cut off.

Every writer (a replica, a node) has a chain of its own: each row's hash covers the row and the hash of the row before
it. The cluster authority signs checkpoints over the heads of the chains that grew, one in 1024 over all, and over the
checkpoint before (docs/protocol.md, "Audit"). So whoever can write to the database cannot change history without the
authority's key, and whoever holds that key cannot hide from a reader who remembers a checkpoint.

    row 1 <- row 2 <- row 3      row 1 <- row 2          one chain a writer
                  \\                       /
                   checkpoint 1 <- checkpoint 2           heads that grew, signed

Pure: rows and checkpoints come in as arguments, findings are raised.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from itertools import dropwhile
from typing import Protocol

from google.protobuf.message import DecodeError

from fleet.audit_findings import (
    ChainTruncated,
    CheckpointBadSignature,
    CheckpointMismatch,
    CheckpointRolledBack,
    RowChanged,
    RowRemoved,
    RowReordered,
)
from fleet.envelope import Domain, EnvelopeError, verify
from fleet.v1 import trust_pb2

HASH_BYTES = 32
FIRST_PREVIOUS_HASH = bytes(HASH_BYTES)
MAX_ROWS_AHEAD = 1024
WHOLE_CHECKPOINT_EVERY = 1024
"""A checkpoint whose number this divides names every chain; the others name those that grew since the one before."""
_ROW_DOMAIN = b"fleet.v1/audit-row\x00"


class ChainRow(Protocol):
    """A row as it was stored; `fleet.v1.AuditEntry` is one."""

    @property
    def writer(self) -> str:
        """Replica id, or "node:" and a node id."""
        ...

    @property
    def number(self) -> int:
        """Place in the writer's chain, from 1."""
        ...

    @property
    def at_ms(self) -> int:
        """Unix milliseconds."""
        ...

    @property
    def kind(self) -> str:
        """Subject and action."""
        ...

    @property
    def actor(self) -> str:
        """Who did it."""
        ...

    @property
    def subject(self) -> str:
        """What it was done to."""
        ...

    @property
    def detail(self) -> bytes:
        """Canonical JSON, exactly as hashed."""
        ...

    @property
    def previous_hash(self) -> bytes:
        """32 bytes."""
        ...

    @property
    def hash(self) -> bytes:
        """32 bytes."""
        ...


def row_hash(
    *,
    previous_hash: bytes,
    writer: str,
    number: int,
    at_ms: int,
    kind: str,
    actor: str,
    subject: str,
    detail: bytes,
) -> bytes:
    """SHA-256 over ``b"fleet.v1/audit-row\\0" + previous_hash + row``.

    The row is each field in this order as a 4-byte big-endian length and its bytes: writer, number (u64 BE), at_ms
    (i64 BE), kind, actor, subject, detail. Lengths keep a byte from moving between two fields under the same hash.

    Args:
        previous_hash: 32 bytes of the row before; `FIRST_PREVIOUS_HASH` for number 1.
        writer: replica id, or "node:" and a node id.
        number: place in the writer's chain, from 1.
        at_ms: Unix milliseconds.
        kind: subject and action, such as "command.issued".
        actor: who did it.
        subject: what it was done to.
        detail: canonical JSON, exactly as stored.

    Raises:
        ValueError: previous_hash does not have 32 bytes.
        OverflowError: a number does not fit its 8 bytes.
    """
    if len(previous_hash) != HASH_BYTES:
        raise ValueError(f"previous_hash has {len(previous_hash)} bytes instead of {HASH_BYTES}")
    columns = (
        writer.encode(),
        number.to_bytes(8, "big"),
        at_ms.to_bytes(8, "big", signed=True),
        kind.encode(),
        actor.encode(),
        subject.encode(),
        detail,
    )
    digest = hashlib.sha256(_ROW_DOMAIN + previous_hash)
    for column in columns:
        digest.update(len(column).to_bytes(4, "big"))
        digest.update(column)
    return digest.digest()


def hash_of(row: ChainRow, previous_hash: bytes) -> bytes:
    """`row_hash` of a row as it was stored, behind the row that has `previous_hash`."""
    return row_hash(
        previous_hash=previous_hash,
        writer=row.writer,
        number=row.number,
        at_ms=row.at_ms,
        kind=row.kind,
        actor=row.actor,
        subject=row.subject,
        detail=row.detail,
    )


@dataclass(frozen=True, slots=True)
class CheckpointMark:
    """What a reader remembers of a checkpoint: its number and the 32-byte SHA-256 of its statement."""

    number: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class ChainSummary:
    """What was verified.

    `uncovered_rows` came after the newest checkpoint: they are chained, and nobody has signed for them yet.
    """

    rows: int
    writers: int
    checkpoints: int
    newest: CheckpointMark | None
    newest_at_ms: int
    uncovered_rows: int


@dataclass(slots=True)
class _Chain:
    """One writer's chain as read so far. Hashes are kept from the last signed head on: older ones are settled."""

    number: int = 0
    hash: bytes = FIRST_PREVIOUS_HASH
    signed_number: int = 0
    left_out_by: int = 0
    unsettled: dict[int, bytes] = field(default_factory=dict)
    awaited: dict[int, bytes] = field(default_factory=dict)
    ahead: set[int] = field(default_factory=set)


class ChainVerifier:
    """Verify rows and checkpoints of one cluster from the first row on, in the order of storage.

    A checkpoint may come before or after the rows that it covers. Memory grows with rows that no checkpoint covers yet,
    not with the length of the audit.

    Args:
        cluster_id: cluster whose checkpoints count.
        authority_keys: key id -> raw public key: the pinned authority, then each successor; none signs after the next.
        remembered: newest checkpoint that the reader saw before; None on first use.
    """

    def __init__(
        self, *, cluster_id: str, authority_keys: Mapping[bytes, bytes], remembered: CheckpointMark | None = None
    ) -> None:
        self._cluster_id = cluster_id
        self._authority_keys = authority_keys
        self._remembered = remembered
        self._chains: dict[str, _Chain] = {}
        self._rows = 0
        self._checkpoints = 0
        self._newest: CheckpointMark | None = None
        self._newest_at_ms = 0

    def add_row(self, row: ChainRow) -> None:
        """Take the next row.

        Raises:
            RowChanged: its hash or its link does not fit.
            RowReordered: it comes again, or after a row that was written later.
            RowRemoved: so many rows follow a gap that the missing one will not come any more.
            CheckpointMismatch: a checkpoint that came earlier signed another hash for this row.
        """
        chain = self._chains.setdefault(row.writer, _Chain())
        name = f"row {row.number} of {row.writer}"
        if chain.ahead and row.number == chain.number + 1:
            raise RowReordered(f"{name} comes after row {min(chain.ahead)}, which was written later")
        if row.number <= chain.number or row.number in chain.ahead:
            raise RowReordered(f"{name} comes again after row {max(chain.number, *chain.ahead, 0)}")
        if row.number > chain.number + 1:
            self._hold_ahead(row.writer, chain, row.number)
            return
        _check_row(row, chain.hash, name)
        awaited = chain.awaited.pop(row.number, None)
        if awaited is not None and not hmac.compare_digest(awaited, row.hash):
            raise CheckpointMismatch(f"a signed checkpoint names another hash for {name}")
        chain.number = row.number
        chain.hash = row.hash
        chain.unsettled[row.number] = row.hash
        if row.number <= chain.signed_number:
            _settle(chain, row.number)
        self._rows += 1

    def add_checkpoint(self, signed: trust_pb2.Signed) -> None:
        """Take the next signed checkpoint.

        Raises:
            CheckpointBadSignature: not by a pinned authority, or for another cluster.
            CheckpointMismatch: it does not follow the one before, or differs from the rows or from what was remembered.
            ChainTruncated: it takes back a head that was signed before.
        """
        statement, sha256 = self._open_checkpoint(signed)
        self._check_checkpoint_link(statement, sha256)
        heads = {head.writer: head for head in statement.heads}
        if len(heads) != len(statement.heads):
            raise CheckpointMismatch(f"checkpoint {statement.number} names a writer twice")
        if statement.number % WHOLE_CHECKPOINT_EVERY == 0:
            self._note_left_out(statement.number, heads)
        for head in heads.values():
            self._check_head(statement.number, head)
        self._newest = CheckpointMark(statement.number, sha256)
        self._newest_at_ms = statement.issued_at_ms
        self._checkpoints += 1

    def uncovered(self) -> dict[str, int]:
        """Newest row that was read of each chain that no checkpoint covers yet, by writer."""
        return {writer: chain.number for writer, chain in self._chains.items() if chain.number > chain.signed_number}

    def still_uncovered(self, awaited: Mapping[str, int]) -> dict[str, int]:
        """Those of `awaited` (see `uncovered`) that no checkpoint covers still."""
        return {writer: number for writer, number in awaited.items() if self._chains[writer].signed_number < number}

    def has_row(self, row: ChainRow) -> bool:
        """Whether the row, or one in its place, was taken."""
        chain = self._chains.get(row.writer)
        return chain is not None and row.number <= chain.number

    def has_checkpoint(self, signed: trust_pb2.Signed) -> bool:
        """Whether the checkpoint was taken. One that nobody can read was not."""
        try:
            number = trust_pb2.AuditCheckpointStatement.FromString(signed.statement).number
        except DecodeError:
            return False
        return self._newest is not None and number <= self._newest.number

    def finish(self) -> ChainSummary:
        """Say that nothing more comes.

        Raises:
            RowRemoved: a gap was never filled.
            ChainTruncated: rows that a checkpoint signed never came.
            CheckpointRolledBack: the newest checkpoint is older than the remembered one.
        """
        for writer, chain in self._chains.items():
            if chain.ahead:
                raise _removed(writer, chain)
            if chain.awaited:
                signed = max(chain.awaited)
                raise ChainTruncated(
                    f"the chain of {writer} ends at row {chain.number}; a signed checkpoint vouches for row {signed}"
                )
            if chain.left_out_by:
                raise ChainTruncated(f"checkpoint {chain.left_out_by} no longer names the chain of {writer}")
        newest_number = self._newest.number if self._newest else 0
        if self._remembered is not None and newest_number < self._remembered.number:
            raise CheckpointRolledBack(
                f"the newest checkpoint is {newest_number}; checkpoint {self._remembered.number} was seen before"
            )
        return ChainSummary(
            rows=self._rows,
            writers=len(self._chains),
            checkpoints=self._checkpoints,
            newest=self._newest,
            newest_at_ms=self._newest_at_ms,
            uncovered_rows=sum(chain.number - chain.signed_number for chain in self._chains.values()),
        )

    def _hold_ahead(self, writer: str, chain: _Chain, number: int) -> None:
        # A gap may be a swap (the row comes later) or a removal (it never does): wait a bounded while, then say which.
        chain.ahead.add(number)
        if len(chain.ahead) > MAX_ROWS_AHEAD:
            raise _removed(writer, chain)

    def _open_checkpoint(self, signed: trust_pb2.Signed) -> tuple[trust_pb2.AuditCheckpointStatement, bytes]:
        try:
            raw = verify(signed, domain=Domain.AUDIT_CHECKPOINT, keys=self._authority_keys)
            statement = trust_pb2.AuditCheckpointStatement.FromString(raw)
            named = {signature.key_id for signature in signed.signatures}
            self._authority_keys = dict(dropwhile(lambda known: known[0] not in named, self._authority_keys.items()))
        except (EnvelopeError, DecodeError) as error:
            after = self._newest.number if self._newest else 0
            raise CheckpointBadSignature(f"the checkpoint after number {after}: {error}") from error
        if statement.cluster_id != self._cluster_id:
            raise CheckpointBadSignature(
                f"checkpoint {statement.number} speaks for cluster {statement.cluster_id}, not {self._cluster_id}"
            )
        return statement, hashlib.sha256(raw).digest()

    def _check_checkpoint_link(self, statement: trust_pb2.AuditCheckpointStatement, sha256: bytes) -> None:
        expected_number = self._newest.number + 1 if self._newest else 1
        expected_previous = self._newest.sha256 if self._newest else b""
        if statement.number != expected_number:
            raise CheckpointMismatch(f"checkpoint {statement.number} comes where {expected_number} belongs")
        if not hmac.compare_digest(statement.previous_sha256, expected_previous):
            raise CheckpointMismatch(f"checkpoint {statement.number} does not follow checkpoint {expected_number - 1}")
        remembered = self._remembered
        if remembered is None or remembered.number != statement.number:
            return
        if not hmac.compare_digest(remembered.sha256, sha256):
            raise CheckpointMismatch(f"checkpoint {statement.number} is not the one seen before: history was rewritten")

    def _note_left_out(self, checkpoint: int, named: Container[str]) -> None:
        # The server signs no end that was changed around it; once a person has looked it names the chain again.
        for writer, chain in self._chains.items():
            if chain.signed_number and writer not in named:
                chain.left_out_by = checkpoint

    def _check_head(self, checkpoint: int, head: trust_pb2.AuditHead) -> None:
        chain = self._chains.setdefault(head.writer, _Chain())
        name = f"row {head.number} of {head.writer}"
        if head.number < max(chain.signed_number, 1):
            raise ChainTruncated(
                f"checkpoint {checkpoint} goes back to {name}; row {chain.signed_number} was signed before"
            )
        known = chain.unsettled.get(head.number, chain.awaited.get(head.number))
        if known is None:
            chain.awaited[head.number] = head.hash
        elif not hmac.compare_digest(known, head.hash):
            raise CheckpointMismatch(f"checkpoint {checkpoint} names another hash for {name}")
        chain.signed_number, chain.left_out_by = head.number, 0
        if head.number <= chain.number:
            _settle(chain, head.number)


def _check_row(row: ChainRow, previous_hash: bytes, name: str) -> None:
    if not hmac.compare_digest(row.previous_hash, previous_hash):
        raise RowChanged(f"{name} does not link to the row before it")
    if not hmac.compare_digest(row.hash, hash_of(row, previous_hash)):
        raise RowChanged(f"{name} is not what was hashed")


def _settle(chain: _Chain, number: int) -> None:
    # Later checkpoints may name this head again, so it stays; everything before it can never be named any more.
    for settled in [known for known in chain.unsettled if known < number]:
        del chain.unsettled[settled]


def _removed(writer: str, chain: _Chain) -> RowRemoved:
    return RowRemoved(f"row {chain.number + 1} of {writer} is missing; row {min(chain.ahead)} follows")
