"""What follows from changed commands once they are committed: wake-ups, watchers, open counts, figures.

`Announcer` belongs to the event loop; rooms hand it changes inside a transaction, and it acts after the commit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from fleet.logs import get_logger
from fleet.v1 import command_pb2
from fleet_server.audit.kinds import AuditKind
from fleet_server.commands import open_store, rules, store
from fleet_server.commands.everywhere import Everywhere
from fleet_server.commands.feed import ChangeFeed
from fleet_server.commands.handover import Handover
from fleet_server.commands.history_store import FullRow, as_issued
from fleet_server.commands.in_hand import InHand, total
from fleet_server.commands.interest import Interest
from fleet_server.commands.open_counts import OpenCounts
from fleet_server.commands.open_store import OpenOfNode
from fleet_server.commands.ports import Rooms
from fleet_server.commands.runs import Run
from fleet_server.commands.store import Key, OpenRow, StandingRow
from fleet_server.database.writer import Transaction

log = get_logger(__name__)

_SHOWN_CHARS = 80
FORGED = "the row, or its issue's, was changed outside the server: it was never signed from there on"


class Change(NamedTuple):
    """One command went from one state to another; with its row as it stands now, where that is known."""

    key: Key
    issue_id: str
    was: int
    now: int
    row: FullRow | None = None


class Announcer:
    """Tells the rest of the process, and the other replicas, what was committed, and counts open commands."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self.feed = ChangeFeed()
        self.handover = Handover()
        self.in_hand = InHand()
        self.counts = OpenCounts()
        self.interest = Interest(rooms.wakeup, rooms.clock)
        self.everything = Everywhere()

    def open_count(self, node_id: str) -> int:
        """Open commands of a node."""
        return self.counts.of(node_id)

    def recount(self, tx: Transaction) -> None:
        """Count open commands anew; runs in the writer's order, so no change is missed or counted twice."""
        nodes = open_store.survey(tx.conn, 0).nodes
        tx.first_after_commit(lambda: self._set_counts(nodes))  # among all else that counts

    def announce(self, tx: Transaction, changes: Sequence[Change], asked: Collection[str] = ()) -> None:
        """Once committed: tell watchers, keep counts and figures, and wake the streams of the nodes that are `asked` to
        cancel."""
        if changes:
            tx.first_after_commit(lambda: self._committed(changes))
            tx.after_commit(lambda: self._follow(changes, asked))

    def announce_issued(self, tx: Transaction, issue_id: str, runs: Sequence[Run], online: Collection[str]) -> None:
        """Once committed: these are new; hand what is SENT to its streams, and wake the nodes of the rest.

        Args:
            online: nodes that have a stream, here or elsewhere, as far as that is known.
        """
        handed = [run for run in runs if run.rows[0].state == rules.SENT]
        waiting = [run for run in runs if run.rows[0].state != rules.SENT]
        tx.first_after_commit(lambda: self._issued(issue_id, handed, waiting, online))
        tx.after_commit(lambda: self._count_issued(total(runs)))

    def announce_sent(self, tx: Transaction, runs: Sequence[Run], key_id: bytes | None, now_ms: int) -> None:
        """Once committed: these, which were in hand, are SENT."""
        tx.after_commit(lambda: self._sent(runs, key_id, now_ms))

    def observe_sent(self, counts: Mapping[int, int]) -> None:
        """So many commands, by when they were issued, were signed for the first time just now."""
        now_ms = self._rooms.clock.now_ms()
        for issued_at_ms, count in counts.items():
            self._rooms.metrics.issue_to_sent.observe((now_ms - issued_at_ms) / 1000, count)

    def quarantine(self, tx: Transaction, rows: Sequence[OpenRow], now_ms: int) -> None:
        """Set forged rows aside for good: nothing is signed from them, and the audit says so."""
        if not rows:
            return
        store.quarantine(tx.conn, [(row.node_id, row.seq) for row in rows], FORGED, now_ms)
        self.audit_forged(tx, rows)
        changes = [Change((row.node_id, row.seq), row.issue_id, row.state, rules.QUARANTINED) for row in rows]
        self.announce(tx, changes)

    def declare_unknown(
        self, tx: Transaction, rows: Sequence[StandingRow], reason: str, now_ms: int
    ) -> list[StandingRow]:
        """Say INTERRUPTED, outcome unknown, of every command here that has no result; those it was said of."""
        declared = [
            (row, unknown)
            for row in rows
            if (unknown := rules.declare_unknown(row.standing, reason, now_ms)) is not None
        ]
        if not declared:
            return []
        store.save_results(tx.conn, [((row.node_id, row.seq), unknown) for row, unknown in declared])
        seqs: dict[str, list[int]] = {}
        for row, _ in declared:
            seqs.setdefault(row.node_id, []).append(row.seq)
        self._rooms.audit.append(
            tx,
            AuditKind.COMMAND_INTERRUPTED,
            actor="server",
            subject="commands",
            detail={"reason": reason, "seqs": {**seqs}},
        )
        self.announce(
            tx,
            [
                Change((row.node_id, row.seq), row.issue_id, row.standing.state, rules.INTERRUPTED)
                for row, _ in declared
            ],
        )
        tx.after_commit(lambda: log.error("commands_outcome_unknown", reason=reason, seqs=seqs))
        return [row for row, _ in declared]

    def audit_forged(self, tx: Transaction, rows: Sequence[OpenRow]) -> None:
        """Write down rows that somebody put into the database."""
        for row in rows:
            self._rooms.audit.append(
                tx,
                AuditKind.COMMAND_QUARANTINED,
                actor="server",
                subject=_shown(row.command_id),
                detail={
                    "node_id": row.node_id,
                    "seq": row.seq,
                    "issue_id": _shown(row.issue_id),
                    "spec_no": _shown(row.spec_no),
                    "state": row.state,
                },
            )
        tx.after_commit(lambda: self._forged(rows))

    def _forged(self, rows: Sequence[OpenRow]) -> None:
        for row in rows:
            log.error("command_row_forged", node_id=row.node_id, seq=row.seq, issue_id=row.issue_id)

    def _set_counts(self, nodes: Sequence[OpenOfNode]) -> None:
        self.in_hand.retain(self.handover.has_lane)
        self.counts.set_all(nodes)
        self._rooms.metrics.open.set(self.counts.total)

    def _issued(self, issue_id: str, handed: Sequence[Run], waiting: Sequence[Run], online: Collection[str]) -> None:
        for run in (*handed, *waiting):
            self.counts.issued(run.node_id, len(run.rows))
        self.handover.hand_nowait(handed)
        for run in handed:
            self.in_hand.put_sent(run, run.rows[0].key_id, run.rows[0].sent_at_ms)
        for run in waiting:
            if self.handover.has_lane(run.node_id):
                self.in_hand.put_queued(run)
        self._rooms.wakeup.wake_nowait(f"node:{run.node_id}" for run in waiting)
        self._tell_others("node", [run.node_id for run in waiting if run.node_id in online])
        self.interest.changed((issue_id,))
        if self.feed.watched:  # before what else the same commit says of them
            changed = {(row.node_id, row.seq): as_issued(row) for run in (*handed, *waiting) for row in run.rows}
            self.feed.publish_nowait(issue_id, changed, passing=True)
            for key, row in changed.items() if self.everything.followed else ():
                self.everything.note(key, row.state)

    def _count_issued(self, count: int) -> None:
        self._rooms.metrics.open.set(self.counts.total)
        self._rooms.metrics.issued.inc(count)

    def _sent(self, runs: Sequence[Run], key_id: bytes | None, now_ms: int) -> None:
        for run in runs:
            self.in_hand.put_sent(run, key_id, now_ms)
            self.observe_sent({run.authority.issued_at_ms: len(run.rows)})
            if self.feed.watched:
                changed = dict.fromkeys(row[:2] for row in run.rows)
                self.feed.publish_nowait(run.authority.issue_id, changed, passing=True)
                for key in changed if self.everything.followed else ():
                    self.everything.note(key, rules.SENT)
        if self.interest.any:
            self.interest.changed({run.authority.issue_id for run in runs})

    def _committed(self, changes: Sequence[Change]) -> None:
        ended: dict[str, int] = {}
        unsent: set[str] = set()
        for (node_id, seq), _, was, now, _ in changes:
            if was != rules.QUEUED:
                self.in_hand.answered(node_id, seq)
            elif now != rules.SENT:
                unsent.add(node_id)
            if was < rules.SUCCEEDED <= now:
                ended[node_id] = ended.get(node_id, 0) + 1
        self.in_hand.forget(unsent)
        for node_id, count in ended.items():
            self.counts.ended(node_id, count)
        if self.feed.watched:
            self._tell_watchers(changes)
        if self.interest.any:
            self.interest.changed({change.issue_id for change in changes})

    def _follow(self, changes: Sequence[Change], asked: Collection[str]) -> None:
        finished: dict[int, int] = {}
        for change in changes:
            if change.now >= rules.SUCCEEDED:
                finished[change.now] = finished.get(change.now, 0) + 1
        for state, count in finished.items():
            self._rooms.metrics.finished.labels(state_name(state)).inc(count)
        self._rooms.metrics.open.set(self.counts.total)
        self._rooms.wakeup.wake_nowait(f"cancel:{node_id}" for node_id in asked)
        self._tell_others("cancel", asked)

    def _tell_watchers(self, changes: Sequence[Change]) -> None:
        by_issue: dict[str, dict[Key, FullRow | None]] = {}
        passing = True
        for key, issue_id, was, now, row in changes:
            by_issue.setdefault(issue_id, {})[key] = row
            self.everything.note(key, now)
            passing &= was < now < rules.SUCCEEDED
        for issue_id, changed in by_issue.items():
            self.feed.publish_nowait(issue_id, changed, passing=passing)

    def _tell_others(self, kind: str, node_ids: Iterable[str]) -> None:
        """Who has a node's newest stream knows by itself: only of those that have none here others are told."""
        has_lane = self.handover.has_lane
        self._rooms.wakeup.tell_others_nowait([f"{kind}:{node_id}" for node_id in node_ids if not has_lane(node_id)])


def _shown(value: object) -> str:
    """A column of a forged row, whatever was put there."""
    return (value.hex() if isinstance(value, bytes) else str(value))[:_SHOWN_CHARS]


def state_name(state: int) -> str:
    """A state in the wire's own word, without its prefix."""
    return _NAMES.get(state, str(state))


_NAMES: dict[int, str] = {
    int(value): name.removeprefix("COMMAND_STATE_") for name, value in command_pb2.CommandState.items()
}
