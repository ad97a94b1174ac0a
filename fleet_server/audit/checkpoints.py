"""Sign checkpoints over what this server wrote, and over nothing else.

Mental model
    Which checkpoint is the newest stands in a row of its own, under a MAC, made with the cluster: so one that is
    missing, too, was changed around the server. What this replica has seen of it and of chains' heads it remembers, and
    never goes behind: an old row, put back, has a good MAC.
    A chain whose head does not stand is left out; the others are signed. When it cannot be told which checkpoint is the
    newest, none is signed until a person has looked (docs/operations/audit.md). What is signed is what was written, so
    a changed row stays different from what was signed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

from google.protobuf.message import DecodeError

from fleet.audit_chain import CheckpointMark
from fleet.v1 import trust_pb2
from fleet_server.audit import rules, store
from fleet_server.audit.heads import Heads, Mac, OwnChain, TamperedHeadError
from fleet_server.audit.rules import Head
from fleet_server.audit.store import HeadRow, NewestRow
from fleet_server.audit.vouched import signed_heads
from fleet_server.database.engine import Connection
from fleet_server.database.writer import Transaction

SignCheckpoint = Callable[[Connection, bytes], trust_pb2.Signed | None]
"""`sign(conn, statement)` wraps statement bytes under the domain ``audit-checkpoint`` with the authority's key; None
when `conn` shows a newer authority than this replica knows: no authority signs a checkpoint after its successor did."""

Alarm = Callable[[Transaction, str, str, str], None]
"""`alarm(tx, what, subject, why)` records in `tx` that something of the audit was changed around the server."""


class Checkpoints:
    """What a replica knows of checkpoints, and the next one.

    Args:
        heads: of the chains.
        own: this replica's chain.
        mac: of the table `audit_newest`.
        alarm: see `Alarm`.
    """

    def __init__(self, heads: Heads, own: OwnChain, mac: Mac, alarm: Alarm) -> None:
        self._heads = heads
        self._own = own
        self._mac = mac
        self._alarm = alarm
        self._newest: CheckpointMark | None = None
        self._seen: dict[str, Head] = {}
        self._recalled = False
        self._told: set[str] = set()

    @property
    def newest_number(self) -> int:
        """Number of the newest checkpoint that this replica has made, or gone on from; 0 before the first."""
        return 0 if self._newest is None else self._newest.number

    def begin(self, conn: Connection, cluster_id: str) -> None:
        """Store that a new cluster has no checkpoint yet."""
        store.insert_newest(conn, self._row(cluster_id, CheckpointMark(0, b""), 1))

    def accept(self, conn: Connection, cluster_id: str, mark: CheckpointMark) -> None:
        """Store which checkpoint is the newest, whatever was stored of it, and that none up to there vouches for where
        chains end: a person said so."""
        store.put_newest(conn, self._row(cluster_id, mark, mark.number + 1))
        store.forget_newest_of_others(conn, cluster_id)

    def stored(self, conn: Connection, cluster_id: str) -> CheckpointMark | None:
        """The newest checkpoint as it is stored; None when that was changed around the server, or removed."""
        row = self._stored(conn, cluster_id)
        return None if row is None else CheckpointMark(row.number, row.sha256)

    def vouched(self, conn: Connection, writer: str, *, begun: bool = False) -> Head | None:
        """Where a chain ended by what was signed, for who remembers nothing; None when it never was. Any thread.

        Args:
            begun: there is a cluster, and with it the row that says which checkpoint is the newest.

        Raises:
            TamperedHeadError: it cannot be told, since checkpoints were changed around the server.
        """
        stored = store.all_newest(conn)
        if begun and not stored:
            raise TamperedHeadError("what was stored of the newest checkpoint was removed")
        heads = (head for row in stored for head in self._signed_heads(conn, row))
        head = next((head for head in heads if head.writer == writer), None)
        if head is None and begun and any(row.number >= row.since for row in stored):
            raise TamperedHeadError(
                "no checkpoint vouches for it"
            )  # its head was away when the last whole one was made
        return head

    def _signed_heads(self, conn: Connection, row: NewestRow) -> Iterator[Head]:
        if not self._stands(row):
            raise TamperedHeadError("what was stored of the newest checkpoint was changed")
        yield from signed_heads(conn, row)

    def make(self, tx: Transaction, sign: SignCheckpoint, cluster_id: str, now_ms: int) -> bool:
        """Sign and store the next checkpoint when it is due; whether one was."""
        # Which checkpoint is the newest is read before the heads: so no head goes back behind what it signed.
        found = self._before(tx, cluster_id)
        if found is None:
            return False
        self._recall(tx, found)
        before, since = CheckpointMark(found.number, found.sha256), found.since
        heads = self._standing(tx, store.grown_heads(tx.conn))
        if heads and rules.is_whole(before.number + 1):
            heads = self._standing(tx, store.heads(tx.conn))
        if not heads:
            return False
        due = rules.next_checkpoint(cluster_id=cluster_id, previous=before, heads=heads, now_ms=now_ms)
        # The signer looks at the authorities after the newest checkpoint was read: see `SignCheckpoint`.
        made = sign(tx.conn, due.SerializeToString(deterministic=True))
        if made is None:
            return False
        mark = CheckpointMark(due.number, hashlib.sha256(made.statement).digest())
        store.insert_checkpoint(tx.conn, due.number, store.last_position(tx.conn), now_ms, made.SerializeToString())
        store.put_newest(tx.conn, self._row(cluster_id, mark, since))
        store.note_signed(tx.conn, [(head.writer, head.number) for head in due.heads])
        tx.after_commit(lambda: self._remember(mark, heads))
        return True

    def _recall(self, tx: Transaction, newest: NewestRow) -> None:
        """See as far as what was signed, once: this process may just have started."""
        if self._recalled:
            return
        try:
            for head in self._signed_heads(tx.conn, newest):
                self._seen.setdefault(head.writer, head)
        except TamperedHeadError as tampered:
            self.tell(tx, "checkpoint", "what was signed before this process started", str(tampered))
        tx.after_commit(self._has_recalled)

    def _has_recalled(self) -> None:
        self._recalled = True

    def _before(self, tx: Transaction, cluster_id: str) -> NewestRow | None:
        """The newest checkpoint; None when that cannot be told."""
        row = self._stored(tx.conn, cluster_id)
        mark = None if row is None else CheckpointMark(row.number, row.sha256)
        why = ""
        if mark is None:
            why = "what was stored of the newest checkpoint was changed or removed"
        elif self._newest is not None and (
            mark.number < self._newest.number or (mark.number == self._newest.number and mark != self._newest)
        ):
            why = f"the database went back to checkpoint {mark.number}; this replica saw {self._newest.number}"
        self.tell(tx, "newest", f"audit of {cluster_id}", why)
        if mark is None or why:
            return None
        tx.after_commit(lambda: self._remember(mark, []))
        planted = self._is_planted(tx.conn, cluster_id, mark)
        why = "one was written around the server, and none can follow until it is gone" if planted else ""
        self.tell(tx, "checkpoint", "a later checkpoint", why)
        self.tell(tx, "checkpoint", f"checkpoint {mark.number}", _changed(tx.conn, mark))
        return None if planted else row

    def _is_planted(self, conn: Connection, cluster_id: str, mark: CheckpointMark) -> bool:
        """Whether a checkpoint stands where none was signed yet. Another replica may just have signed one."""
        return store.newest_checkpoint_number(conn) > mark.number and self.stored(conn, cluster_id) == mark

    def _standing(self, tx: Transaction, found: Sequence[tuple[HeadRow, int]]) -> list[Head] | None:
        """Those of the heads that stand; None when this replica has to put its own right first.

        Args:
            found: each with its newest signed number.
        """
        heads = []
        for row, signed in found:
            stands = self._own.stands(row) if row.writer == self._own.name else None
            if stands is False:
                self._own.suspect = True
                return None
            if stands:
                heads.append(Head(row.writer, row.number, row.hash))
                continue
            try:
                head = self._heads.checked(row)
            except TamperedHeadError as tampered:
                self.tell(tx, "head", str(row.writer), str(tampered))
                continue
            why = rules.went_back(head, signed=signed, seen=self._seen.get(head.writer))
            self.tell(tx, "head", head.writer, why)
            if not why:
                heads.append(head)
        return heads

    def tell(self, tx: Transaction, what: str, subject: str, why: str) -> None:
        """Raise the alarm, once until it is right again."""
        key = f"{what} {subject}"
        if not why:
            if self._told:
                tx.after_commit(lambda: self._told.discard(key))
        elif key not in self._told:
            self._alarm(tx, what, subject, why)
            tx.after_commit(lambda: self._told.add(key))

    def _remember(self, mark: CheckpointMark, heads: Sequence[Head]) -> None:
        if self._newest is None or mark.number > self._newest.number:
            self._newest = mark
        self._seen.update((head.writer, head) for head in heads)

    def _stored(self, conn: Connection, cluster_id: str) -> NewestRow | None:
        row = store.newest(conn, cluster_id)
        return row if row is not None and self._stands(row) else None

    def _stands(self, row: NewestRow) -> bool:
        return self._mac.verify(row.mac, row.cluster_id, row.number, row.sha256, row.since)

    def _row(self, cluster_id: str, mark: CheckpointMark, since: int) -> NewestRow:
        mac = self._mac.compute(cluster_id, mark.number, mark.sha256, since)
        return NewestRow(cluster_id, mark.number, mark.sha256, since, mac)


def _changed(conn: Connection, mark: CheckpointMark) -> str:
    """What is wrong with the newest checkpoint as it is stored; the next one follows what it was."""
    if mark.number == 0:
        return ""
    raw = store.checkpoint(conn, mark.number)
    if raw is None:
        return "it was removed"
    return "" if checkpoint_sha256(raw) == mark.sha256 else "it was changed"


def checkpoint_sha256(raw: bytes) -> bytes:
    """SHA-256 of the statement in a serialised checkpoint; nothing when it is none."""
    try:
        return hashlib.sha256(trust_pb2.Signed.FromString(raw).statement).digest()
    except DecodeError:
        return b""


def checkpoint_number(raw: bytes) -> int:
    """Number that a serialised checkpoint says it has; 0 when it is none."""
    try:
        return trust_pb2.AuditCheckpointStatement.FromString(trust_pb2.Signed.FromString(raw).statement).number
    except DecodeError:
        return 0
