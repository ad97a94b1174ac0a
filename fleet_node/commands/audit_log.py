"""The node's audit chain in its journal: rows, head, what the server has, and what was left out.

Mental model
    What the journal says of a command is durable with the commit that says it; the row about it is made of that,
    and chained with a later commit, at the latest when 2048 of them wait for theirs. Nothing is lost in between: the
    entries keep it, and a process that starts finds those that are above the two numbers that the last row reached
    (`sealed_seq` for acceptances, `sealed_report_no` for ends). So a commit of one statement stays one SQL statement.
    Whatever has no entry of its own (refusals, cancels, bundles, drains, starts) is chained in the commit that brings
    it.
    A row is on the disk before it is sent: what the server once saw never becomes another row.
    Acknowledged rows are forgotten beyond a tail. While the server takes none, rows are kept up to a bound; beyond it
    they are counted instead of chained, and the first row afterwards is a gap that says how many of which kind.
    Evidence is kept apart as well (`evidence_store`), and each kind of it has a share of its own of the bound: what a
    server can make plenty of displaces nothing else, whether it takes rows or not.
    The node signs the chain now and then, with a row over what is chained before it, and when it stops.
    A machine that was let in again may have written other rows than the server holds. Its floor names another chain,
    which it begins once the server has said up to where both hold the same: nothing is lost, and nothing comes twice.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fleet.audit_chain import FIRST_PREVIOUS_HASH
from fleet.node_audit import (
    CHAIN_ENDED,
    MAX_FRAME_BYTES,
    MAX_ROWS_PER_FRAME,
    ROW_BYTES,
    Begun,
    BegunBecause,
    NodeAuditKind,
    encode_detail,
    node_row_hash,
)
from fleet.node_signatures import MAX_UNSIGNED_ROWS, SIGN_EVERY_ROWS
from fleet.v1 import command_pb2, gateway_pb2
from fleet_node.commands import audit_rows, audit_store
from fleet_node.commands.audit_rows import AuditEvent
from fleet_node.commands.audit_signer import AuditSigner
from fleet_node.commands.entry import Change, Entry
from fleet_node.commands.evidence_store import EVIDENCE, EvidenceRow, keep_evidence

MAX_UNSEALED = 2048
MAX_UNSEALED_BYTES = 1024 * 1024
MAX_UNACKED_BYTES = 32 * 1024 * 1024
MAX_UNACKED_EVIDENCE_BYTES = 512 * 1024
"""Of each kind of evidence, beside the others."""
KEEP_ROWS = 256

_LOST = "not_written"  # what a gap calls events whose commit failed


class AuditLog:
    """The chain of one journal. Blocking, on the journal's thread; calls that write run inside its transaction.

    Args:
        connection: the journal's.
        node_id: whose chain it is.
        max_unacked_bytes: rows kept while the server takes none, evidence aside.
    """

    def __init__(
        self, connection: sqlite3.Connection, node_id: str, *, max_unacked_bytes: int = MAX_UNACKED_BYTES
    ) -> None:
        self._connection = connection
        self._node_id = node_id
        self._max_unacked_bytes = max_unacked_bytes
        state = audit_store.load_state(connection)
        self.number = state.number
        self._hash = state.hash or FIRST_PREVIOUS_HASH
        self.sealed_seq = state.sealed_seq
        self.sealed_report_no = state.sealed_report_no
        self.acked_number = state.acked_number
        self._dropped: dict[str, int] = json.loads(state.dropped)
        self.chain = state.chain
        self.next_chain = state.next_chain
        self.owner_pin = state.owner_pin
        self.signer: AuditSigner | None = None
        """Signs the chain; nobody does without one."""
        newest = audit_store.find_row(connection, self.number)
        self._signed_number = self.number if newest and newest.kind == NodeAuditKind.CHAIN_SIGNED.value else 0
        self._unacked_bytes = self._count_unacked()
        self._accepted: list[Entry] = []
        self._ended: list[command_pb2.Report] = []
        self._unsealed_bytes = 0
        self._lost = 0
        self._draft = _Draft(0, 0, self.owner_pin, 0, b"", {}, {}, set())

    @property
    def unsealed(self) -> int:
        """Acceptances and ends that are durable and have no row yet."""
        return len(self._accepted) + len(self._ended)

    @property
    def unsigned(self) -> int:
        """Rows that the node is to sign; none without a signer."""
        return self.number - self._signed_number if self.signer is not None else 0

    @property
    def signature_due(self) -> bool:
        """Whether the next rows are to stand behind a signature of those before."""
        return self.signer is not None and self.signer.due(self.unsigned)

    @property
    def due(self) -> bool:
        """Whether the next commit has to take them along."""
        return self.unsealed >= MAX_UNSEALED or self._unsealed_bytes >= MAX_UNSEALED_BYTES

    def recovered(self, entries: Iterable[Entry]) -> None:
        """What the last process made durable and did not seal; entries above either sealed number, in seq order."""
        for entry in entries:
            if entry.accepted_at_ms and entry.seq > self.sealed_seq:
                self._accepted.append(entry)
            if entry.final_report and entry.report_no > self.sealed_report_no:
                self._ended.append(command_pb2.Report.FromString(entry.final_report))

    def durable(self, accepted: Sequence[Entry], changed: Sequence[Change]) -> None:
        """These were committed without rows of their own; their rows follow."""
        self._accepted += _accepted(accepted)
        self._unsealed_bytes += sum([len(entry.arguments) for entry in accepted])
        for change in changed:
            if change.report is not None:
                self._ended.append(change.report)
                self._unsealed_bytes += len(change.final_report)

    def lost(self, events: Sequence[AuditEvent]) -> None:
        """A commit that failed held these: the next gap counts them."""
        self.left_out(sum(event.items for event in events))

    def left_out(self, items: int) -> None:
        """So much was never to be written: the next gap counts it."""
        self._lost += items

    def acked(self, number: int) -> None:
        """The server has every row up to `number`; written down with the next seal."""
        number = min(number, self.number)
        if number > self.acked_number:
            self.acked_number = number
            self._unacked_bytes = self._count_unacked()

    def seal(
        self,
        accepted: Sequence[Entry],
        changed: Sequence[Change],
        events: Sequence[AuditEvent],
        *,
        last_seq: int,
        last_report_no: int,
    ) -> None:
        """Write rows about all that waits, then about what this transaction holds; `sealed` once it is committed.

        Args:
            accepted: by this transaction.
            changed: by this transaction.
            events: of this transaction.
            last_seq: highest seq accepted, this transaction included.
            last_report_no: highest report_no given out, this transaction included.
        """
        ended = [change.report for change in changed if change.report is not None]
        rows = [
            *audit_rows.accepted([*self._accepted, *_accepted(accepted)]),
            *audit_rows.ended([*self._ended, *ended]),
            *events,
        ]
        draft = self._draft = _Draft(
            self.chain,
            max([self.next_chain, *[event.opens_chain for event in events]]),
            self.owner_pin,
            self.number,
            self._hash,
            dict(self._unacked_bytes),
            dict(self._dropped),
            self._dropping(),
            signed_number=self._signed_number,
        )
        if self._lost:
            draft.dropped[_LOST] = draft.dropped.get(_LOST, 0) + self._lost
        if self.signature_due:
            self._sign(draft)
        for row in rows:
            self._chain(draft, row)
            if draft.unsigned >= SIGN_EVERY_ROWS:
                self._sign(draft)
        if self.signer is not None and (self.signer.takes_over(events) or _stops(events)):
            self._sign(draft)
        audit_store.insert_rows(self._connection, draft.rows)
        if draft.evidence:
            keep_evidence(self._connection, draft.evidence)
        forget = min(self.acked_number, draft.number - KEEP_ROWS)
        if forget > 0:
            audit_store.forget_rows(self._connection, forget)
        draft.sealed_seq, draft.sealed_report_no = last_seq, last_report_no
        audit_store.save_state(self._connection, draft.state(self.acked_number))

    def sealed(self) -> None:
        """The transaction of the last `seal` is durable."""
        draft = self._draft
        self.number, self._hash, self._dropped = draft.number, draft.hash, draft.dropped
        self.next_chain, self.owner_pin = draft.next_chain, draft.owner_pin
        self.sealed_seq, self.sealed_report_no = draft.sealed_seq, draft.sealed_report_no
        self._note_signed(draft)
        self._unacked_bytes = draft.unacked_bytes
        self._accepted, self._ended, self._unsealed_bytes, self._lost = [], [], 0, 0

    def answered(self, ack: gateway_pb2.AuditAck, sent: int, at_ms: int) -> bool:
        """Begin the chain that a floor named, once the server has said how far it holds the one before: whether it was
        begun. A transaction of its own.

        What the server does not hold of the chain before comes again in the new one, behind its first row.

        Args:
            ack: answer to the newest rows sent.
            sent: number of the last of them.
            at_ms: server time as the node knows it.

        Raises:
            sqlite3.Error: it was not begun.
        """
        if self.next_chain <= self.chain or ack.chain != self.chain:
            return False
        if ack.paused != CHAIN_ENDED and (ack.number < sent or sent < min(ack.number, self.number)):
            return False  # more of what it holds may be compared
        self._begin(min(ack.number, sent), at_ms)
        return True

    def _begin(self, agreed: int, at_ms: int) -> None:
        again = [
            AuditEvent(NodeAuditKind(kind), then_ms, detail)
            for then_ms, kind, detail in audit_store.told_after(self._connection, agreed)
        ]
        held = audit_store.find_row(self._connection, agreed)
        restored = any(event.kind is NodeAuditKind.JOURNAL_RESTORED for event in again)
        reason = BegunBecause.RESTORED if restored else BegunBecause.ADOPTED
        begun = Begun(self.chain, agreed, held.hash if held else b"", self.number, self._hash, reason)
        chain = self.next_chain
        draft = self._draft = _Draft(
            chain, chain, self.owner_pin, 0, FIRST_PREVIOUS_HASH, {}, dict(self._dropped), self._dropping()
        )
        draft.sealed_seq, draft.sealed_report_no = self.sealed_seq, self.sealed_report_no
        other_keys = max(
            [at for at, event in enumerate(again) if event.kind is NodeAuditKind.CREDENTIAL_IN_FORCE], default=-1
        )
        self._append(draft, AuditEvent(NodeAuditKind.CHAIN_BEGUN, at_ms, begun.detail()))
        for at, event in enumerate(again):
            self._append(draft, event)
            # The keys in force sign behind the row that says so, as long as readers wait for them.
            if draft.unsigned >= (SIGN_EVERY_ROWS if at >= other_keys else MAX_UNSIGNED_ROWS):
                self._sign(draft)
        with audit_store.chain_replaced(self._connection):
            audit_store.insert_rows(self._connection, draft.rows)
            keep_evidence(self._connection, draft.evidence[:1])  # the others are kept as they stood in the chain before
            audit_store.save_state(self._connection, draft.state(0))
        self.chain, self.number, self._hash, self.acked_number = chain, draft.number, draft.hash, 0
        self._signed_number = 0
        self._note_signed(draft)
        self._unacked_bytes = draft.unacked_bytes

    def after(self, number: int) -> list[gateway_pb2.AuditRow]:
        """The next rows after `number`, as many as one frame takes; those that are forgotten are passed over."""
        rows: list[gateway_pb2.AuditRow] = []
        size = 0
        for this, at_ms, kind, detail, sha256 in audit_store.rows_after(self._connection, number, MAX_ROWS_PER_FRAME):
            size += len(detail) + ROW_BYTES
            if rows and size > MAX_FRAME_BYTES:
                break
            rows.append(gateway_pb2.AuditRow(number=this, at_ms=at_ms, kind=kind, detail=detail, hash=sha256))
        return rows

    def _count_unacked(self) -> dict[str, int]:
        # Few are left after an acknowledgement; counting them with each seal would read all that waits.
        by_share: dict[str, int] = {}
        for kind, size in audit_store.bytes_after(self._connection, self.acked_number):
            by_share[_share(kind)] = by_share.get(_share(kind), 0) + size
        return by_share

    def _dropping(self) -> set[str]:
        return {_share(kind) for kind in self._dropped if kind != _LOST}

    def _room(self, share: str) -> int:
        return MAX_UNACKED_EVIDENCE_BYTES if share else self._max_unacked_bytes

    def _chain(self, draft: _Draft, event: AuditEvent) -> None:
        size, share = len(event.detail) + ROW_BYTES, _share(event.kind)
        if draft.dropping:
            draft.dropping -= {one for one in draft.dropping if draft.unacked(one) <= self._room(one) // 2}
        if share in draft.dropping or draft.unacked(share) + size > self._room(share):
            draft.dropping.add(share)
            draft.drop(event)
            return
        if draft.dropped and not draft.dropping:
            gap = encode_detail(draft.dropped)
            draft.dropped = {}
            self._append(draft, AuditEvent(NodeAuditKind.AUDIT_GAP, event.at_ms, gap))
        self._append(draft, event)

    def _sign(self, draft: _Draft) -> None:
        if self.signer is not None and draft.number:
            self._append(draft, self.signer.row(self._node_id, draft.chain, draft.number, draft.hash))
            draft.signed_number = draft.number

    def _note_signed(self, draft: _Draft) -> None:
        if draft.signed_number != self._signed_number and self.signer is not None:
            self._signed_number = draft.signed_number
            self.signer.signed()

    def _append(self, draft: _Draft, event: AuditEvent) -> None:
        row = gateway_pb2.AuditRow(
            number=draft.number + 1, at_ms=event.at_ms, kind=event.kind.value, detail=event.detail
        )
        draft.number, previous, share = row.number, draft.hash, _share(event.kind)
        draft.hash = node_row_hash(self._node_id, previous, row, chain=draft.chain)
        draft.unacked_bytes[share] = draft.unacked(share) + len(event.detail) + ROW_BYTES
        draft.owner_pin = event.owner_pin or draft.owner_pin
        draft.rows.append(audit_store.AuditRow(row.number, row.at_ms, row.kind, event.detail, draft.hash))
        if share:
            kept = EvidenceRow(draft.chain, row.number, row.at_ms, row.kind, event.detail, draft.hash, previous)
            draft.evidence.append(kept)


@dataclass(slots=True)
class _Draft:
    """The chain as it stands once a transaction is committed; `dropped` counts what it leaves out, by kind, and
    `dropping` names the shares that are full."""

    chain: int
    next_chain: int
    owner_pin: str
    number: int
    hash: bytes
    unacked_bytes: dict[str, int]
    dropped: dict[str, int]
    dropping: set[str]
    rows: list[audit_store.AuditRow] = field(default_factory=list)
    evidence: list[EvidenceRow] = field(default_factory=list)
    signed_number: int = 0
    sealed_seq: int = 0
    sealed_report_no: int = 0

    @property
    def unsigned(self) -> int:
        """Rows behind the newest signature."""
        return self.number - self.signed_number

    def unacked(self, share: str) -> int:
        """Bytes of a share that wait."""
        return self.unacked_bytes.get(share, 0)

    def state(self, acked_number: int) -> audit_store.AuditState:
        """How the chain stands, the server having every row up to a number."""
        return audit_store.AuditState(
            self.number,
            self.hash,
            self.sealed_seq,
            self.sealed_report_no,
            acked_number,
            json.dumps(self.dropped),
            self.chain,
            self.next_chain,
            self.owner_pin,
        )

    def drop(self, event: AuditEvent) -> None:
        """Count it instead; evidence is kept all the same."""
        self.dropped[event.kind.value] = self.dropped.get(event.kind.value, 0) + event.items
        if event.kind in EVIDENCE:
            self.evidence.append(EvidenceRow(self.chain, 0, event.at_ms, event.kind.value, event.detail, b"", b""))


def _stops(events: Sequence[AuditEvent]) -> bool:
    return bool(events) and events[-1].kind is NodeAuditKind.PROCESS_STOPPED


def _share(kind: str) -> str:
    """Of what may wait for the server: each kind of evidence has its own, and all the rest one."""
    return kind if kind in EVIDENCE else ""


def _accepted(entries: Iterable[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.accepted_at_ms]  # what is too far away never was
