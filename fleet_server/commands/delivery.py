"""Send: what one node's newest stream signs next, and how a stream picks up where the one before ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from fleet.errors import Refusal
from fleet_server.audit.kinds import AuditKind
from fleet_server.commands import open_store, rules, store
from fleet_server.commands.authority import Authorities
from fleet_server.commands.changes import Announcer, Change
from fleet_server.commands.in_hand import NotAsRememberedError
from fleet_server.commands.ports import Rooms
from fleet_server.commands.runs import PendingCommand, Run
from fleet_server.commands.store import OpenRow
from fleet_server.database.engine import Connection
from fleet_server.database.together import Together
from fleet_server.database.writer import Transaction
from fleet_server.nodes.ownership import stale, write_as_newest


class Resumption(NamedTuple):
    """Where a new stream goes on.

    Args:
        after_seq: it sends what is behind that.
        may_wait: whether anything may wait there now.
    """

    after_seq: int
    may_wait: bool


class _Look(NamedTuple):
    node_id: str
    epoch: int
    last_accepted_seq: int


class Delivery:
    """Use cases of a stream's sender."""

    def __init__(self, rooms: Rooms, authorities: Authorities, announcer: Announcer) -> None:
        self._rooms = rooms
        self._authorities = authorities
        self._announcer = announcer
        self._looks = Together(rooms.database.read, self._look, key=lambda look: look.node_id)

    async def claim_pending(
        self,
        node_id: str,
        epoch: int,
        *,
        after_seq: int,
        limit: int,
        key_id: bytes | None,
        asked_again_through: int,
    ) -> list[PendingCommand]:
        """See `CommandService.claim_pending`."""
        limit = min(limit, rules.MAX_CLAIM)
        # The node may be adopted at another replica meanwhile. What is SENT was signed to the machine before, and lies
        # under the floor, only if one of the two waits for the other.
        in_hand = self._announcer.in_hand
        runs = in_hand.next_queued(node_id, epoch, after_seq, limit, self._rooms.past_ms())

        def work(tx: Transaction) -> list[PendingCommand]:
            return self._claim(tx, node_id, after_seq, limit, key_id, asked_again_through, runs)

        try:
            return await write_as_newest(self._rooms.database, self._rooms.nodes, node_id, epoch, work, hold=True)
        except NotAsRememberedError:
            in_hand.forget([node_id])
            runs = []
            return await write_as_newest(self._rooms.database, self._rooms.nodes, node_id, epoch, work, hold=True)

    async def reconcile(
        self, node_id: str, epoch: int, last_accepted_seq: int, *, takeover: bool = False
    ) -> Resumption:
        """See `CommandService.reconcile`."""
        has_more = await self._looks.ask(_Look(node_id, epoch, last_accepted_seq))
        if isinstance(has_more, Refusal):
            raise has_more
        if not has_more and self._announcer.open_count(node_id) == 0:
            return Resumption(last_accepted_seq, may_wait=False)

        def work(tx: Transaction) -> int:
            return self._reconcile(tx, node_id, last_accepted_seq, takeover)

        after_seq = await write_as_newest(self._rooms.database, self._rooms.nodes, node_id, epoch, work)
        return Resumption(after_seq, may_wait=True)

    def _look(self, conn: Connection, looks: Sequence[_Look]) -> Sequence[bool | Refusal]:
        """Whether each node has commands above those that it accepted. All of a fleet that comes back ask at once, and
        hardly one of them has any."""
        newest = self._rooms.nodes.epochs(conn, [look.node_id for look in looks])
        with_more = open_store.with_more(conn, {look.node_id: look.last_accepted_seq for look in looks})
        return [stale(look.epoch, newest.get(look.node_id, 0)) or look.node_id in with_more for look in looks]

    def abandon_signed(self, tx: Transaction, node_id: str, replaced: bool) -> int:
        """See `CommandService.abandon_signed`."""
        rows = store.signed_open(tx.conn, node_id)
        reason = rules.REPLACED if replaced else rules.ADOPTED
        self._announcer.declare_unknown(tx, rows, reason, self._rooms.clock.now_ms())
        return store.highest_signed(tx.conn, node_id)

    def _claim(
        self,
        tx: Transaction,
        node_id: str,
        after_seq: int,
        limit: int,
        key_id: bytes | None,
        asked_again_through: int,
        in_hand: Sequence[Run],
    ) -> list[PendingCommand]:
        ready: list[PendingCommand] = []
        changes: list[Change] = []
        if in_hand:
            self._claim_in_hand(tx, in_hand, ready, key_id)
            after_seq = ready[-1].seq
        # Rows set aside leave room: ask again until the statement is full or nothing is left.
        while (wanted := limit - len(ready)) > 0:
            rows = store.pending(tx.conn, node_id, after_seq, asked_again_through, wanted)
            if rows:
                self._sift(tx, rows, ready, changes, key_id)
            if len(rows) < wanted:
                break
            after_seq = rows[-1].seq
        self._announcer.announce(tx, changes)
        return ready

    def _claim_in_hand(
        self,
        tx: Transaction,
        runs: Sequence[Run],
        ready: list[PendingCommand],
        key_id: bytes | None,
    ) -> None:
        """Claim what was issued here a moment ago, unless a row of it changed since; nothing is read.

        Raises:
            NotAsRememberedError: one did.
        """
        now_ms = self._rooms.clock.now_ms()
        for run in runs:
            ready += run.pending()
        first, last = ready[0].seq, ready[-1].seq
        if store.mark_queued_sent(tx.conn, runs[0].node_id, first, last, key_id, now_ms) != len(ready):
            raise NotAsRememberedError
        self._announcer.announce_sent(tx, runs, key_id, now_ms)

    def _sift(
        self,
        tx: Transaction,
        rows: Sequence[OpenRow],
        ready: list[PendingCommand],
        changes: list[Change],
        key_id: bytes | None,
    ) -> None:
        now_ms, past_ms = self._rooms.clock.now_ms(), self._rooms.past_ms()
        authorities = self._authorities.load(tx.conn, [row.issue_id for row in rows])
        forged: list[OpenRow] = []
        expired: list[OpenRow] = []
        signed_first: list[int] = []
        for row in rows:
            authority = authorities.get(row.issue_id)
            if authority is None or not self._authorities.intact(authority, row):
                forged.append(row)
            elif row.state == rules.QUEUED and rules.expired(row.not_after_ms, past_ms):
                expired.append(row)
            else:
                terms = authority.terms(row.spec_no, row.not_after_ms)
                ready.append(PendingCommand(row.command_id, row.seq, terms))
                if row.state == rules.QUEUED:
                    changes.append(Change((row.node_id, row.seq), row.issue_id, rules.QUEUED, rules.SENT))
                    signed_first.append(authority.issued_at_ms)
        # Before the range is marked as sent: what was set aside is not open any more, and stays as it is.
        self._announcer.quarantine(tx, forged, now_ms)
        self.expire(tx, expired, now_ms)
        node_id = rows[0].node_id
        store.mark_sent(tx.conn, node_id, rows[0].seq, rows[-1].seq, key_id, now_ms)
        if any(row.state == rules.SENT for row in rows):  # signed again, maybe with another key than is remembered
            tx.after_commit(lambda: self._announcer.in_hand.forget([node_id]))
        if signed_first:
            tx.after_commit(lambda: self._announcer.observe_sent(Counter(signed_first)))

    def expire(self, tx: Transaction, rows: Sequence[OpenRow], now_ms: int) -> None:
        """Never-signed commands whose time has passed end without ever being sent."""
        if not rows:
            return
        ended = rules.Standing(
            rules.EXPIRED, finished_at_ms=now_ms, reason="NEVER_SENT", error="its time passed before it could be sent"
        )
        store.save_results(tx.conn, [((row.node_id, row.seq), ended) for row in rows])
        seqs: dict[str, list[int]] = {}
        for row in rows:
            seqs.setdefault(row.node_id, []).append(row.seq)
        self._rooms.audit.append(
            tx, AuditKind.COMMAND_EXPIRED, actor="server", subject="commands", detail={"seqs": {**seqs}}
        )
        self._announcer.announce(
            tx, [Change((row.node_id, row.seq), row.issue_id, row.state, rules.EXPIRED) for row in rows]
        )

    def _reconcile(self, tx: Transaction, node_id: str, last_accepted_seq: int, takeover: bool) -> int:
        if not takeover:
            # The node once said it had these, and its journal now ends before them: it was restored from a copy.
            # Sending them again could run them a second time. In a takeover the older stream goes on while the newer
            # one says hello, so what it accepted meanwhile lies above that hello, and nothing is lost.
            lost = store.answered_above(tx.conn, node_id, last_accepted_seq)
            self._announcer.declare_unknown(tx, lost, rules.JOURNAL_LOST, self._rooms.clock.now_ms())
        # What another replica issued within the last second may not be counted here yet; the node, which has accepted
        # it at that replica a moment ago, tells what became of it by itself.
        if self._announcer.open_count(node_id) == 0:
            return last_accepted_seq  # nothing to look for in a long history
        since = self._announcer.counts.since(node_id)
        lowest = store.lowest_open(tx.conn, node_id, since, last_accepted_seq)
        return last_accepted_seq if lowest is None else lowest - 1
