"""Cancel: before the first signature the server decides, by compare-and-set; from then on only the node's answer
counts.

Which nodes have cancels that wait for an answer is kept in memory, so that a stream which asks at every wake-up costs
no query while there are none; the poll finds what other replicas wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fleet.errors import Reason, Refusal
from fleet.v1 import command_pb2
from fleet_server.audit.kinds import AuditKind
from fleet_server.commands import issue_store, open_store, rules, store
from fleet_server.commands.authority import Authorities
from fleet_server.commands.changes import Announcer, Change, state_name
from fleet_server.commands.ports import Rooms
from fleet_server.commands.rules import CancelStep
from fleet_server.commands.store import Key, OpenRow
from fleet_server.database.writer import Transaction
from fleet_server.nodes.ownership import write_as_newest

_COMMAND_ID_BYTES = 16
_AUDITED = 2000


@dataclass(frozen=True, slots=True)
class CancelOrder:
    """A cancel to sign: which command, and on whose behalf."""

    command_id: bytes
    seq: int
    actor: str


@dataclass(frozen=True, slots=True)
class _Sorted:
    """What a cancel does with the commands it names."""

    now: list[OpenRow]
    ask: list[OpenRow]


class Cancels:
    """Use cases of cancelling."""

    def __init__(self, rooms: Rooms, authorities: Authorities, announcer: Announcer) -> None:
        self._rooms = rooms
        self._authorities = authorities
        self._announcer = announcer
        self._waiting: dict[str, set[int]] = {}

    async def cancel(self, actor: str, command_ids: Sequence[bytes], issue_id: str) -> list[Key]:
        """Cancel commands, or all of an issue; the keys of what was named. See `CommandService.cancel`."""
        if bool(command_ids) == bool(issue_id):
            raise Refusal(Reason.INVALID_ARGUMENT, "name commands by id, or one issue; not both, not neither")
        if len(command_ids) > rules.MAX_CANCELS or any(len(each) != _COMMAND_ID_BYTES for each in command_ids):
            raise Refusal(
                Reason.INVALID_ARGUMENT, f"a cancel names at most {rules.MAX_CANCELS} commands, each by its 16-byte id"
            )
        named = await self._rooms.database.write(
            lambda tx: self._cancel(tx, actor, list(dict.fromkeys(command_ids)), issue_id)
        )
        if isinstance(named, Refusal):
            raise named
        return named

    async def pending_cancels(self, node_id: str, epoch: int) -> list[CancelOrder]:
        """See `CommandService.pending_cancels`."""
        seqs = self._waiting.get(node_id)
        if not seqs:
            return []
        wanted = sorted(seqs)
        rooms = self._rooms
        return await write_as_newest(
            rooms.database, rooms.nodes, node_id, epoch, lambda tx: self._orders(tx, node_id, wanted)
        )

    async def record_cancel_result(self, node_id: str, epoch: int, result: command_pb2.CancelResult) -> None:
        """See `CommandService.record_cancel_result`."""
        rooms = self._rooms
        await write_as_newest(
            rooms.database, rooms.nodes, node_id, epoch, lambda tx: self._record_result(tx, node_id, result)
        )

    def reload(self, tx: Transaction) -> None:
        """Read which cancels wait, in the writer's order."""
        waiting: dict[str, set[int]] = {}
        for node_id, seq in open_store.asked_cancels(tx.conn):
            waiting.setdefault(node_id, set()).add(seq)
        tx.after_commit(lambda: self._reloaded(waiting))

    def found(self, keys: Sequence[Key]) -> None:
        """These cancels wait for an answer, as the poll read: those that other replicas were asked for are news."""
        news = {node_id for node_id, seq in keys if seq not in self._waiting.get(node_id, ())}
        self._asked(keys)
        self._rooms.wakeup.wake_nowait([f"cancel:{node_id}" for node_id in news])

    def _cancel(self, tx: Transaction, actor: str, command_ids: Sequence[bytes], issue_id: str) -> list[Key] | Refusal:
        if issue_id:
            rows = store.open_of_issue(tx.conn, issue_id)
            if not rows and not issue_store.issue_exists(tx.conn, issue_id):
                return Refusal(Reason.NOT_FOUND, f"there is no issue {issue_id!r}: see `fleetctl commands list`")
        else:
            rows = store.open_by_ids(tx.conn, command_ids)
            missing = set(command_ids) - {row.command_id for row in rows}
            if missing:
                shown = sorted(missing)[0].hex()
                return Refusal(Reason.NOT_FOUND, f"there is no command {shown}: nothing was cancelled")
        sorted_rows = self._sort(tx, rows)
        self._cancel_now(tx, actor, sorted_rows.now)
        self._ask(tx, actor, sorted_rows.ask)
        if sorted_rows.now or sorted_rows.ask:
            self._audit(tx, actor, sorted_rows, issue_id)
        return [(row.node_id, row.seq) for row in rows]

    def _sort(self, tx: Transaction, rows: Sequence[OpenRow]) -> _Sorted:
        by_step: dict[CancelStep, list[OpenRow]] = {step: [] for step in CancelStep}
        for row in rows:
            by_step[rules.cancel_step(row.state)].append(row)
        # The request goes under the row's MAC: a forged row must not come out of this with a true one.
        ask = self._intact(tx, by_step[CancelStep.ASK])
        return _Sorted(by_step[CancelStep.NOW], [row for row in ask if not row.cancel_requested_by])

    def _intact(self, tx: Transaction, rows: Sequence[OpenRow]) -> list[OpenRow]:
        authorities = self._authorities.load(tx.conn, [row.issue_id for row in rows])
        intact: list[OpenRow] = []
        forged: list[OpenRow] = []
        for row in rows:
            (intact if self._authorities.intact(authorities.get(row.issue_id), row) else forged).append(row)
        self._announcer.quarantine(tx, forged, self._rooms.clock.now_ms())
        return intact

    def _cancel_now(self, tx: Transaction, actor: str, rows: Sequence[OpenRow]) -> None:
        ended = rules.Standing(
            rules.CANCELLED,
            finished_at_ms=self._rooms.clock.now_ms(),
            reason="CANCELLED_BEFORE_SENDING",
            error=f"cancelled by {actor} before it was signed",
        )
        store.save_results(tx.conn, [((row.node_id, row.seq), ended) for row in rows])
        changes = [Change((row.node_id, row.seq), row.issue_id, row.state, rules.CANCELLED) for row in rows]
        self._announcer.announce(tx, changes)

    def _ask(self, tx: Transaction, actor: str, rows: Sequence[OpenRow]) -> None:
        self._write_requests(tx, rows, actor)
        keys = [(row.node_id, row.seq) for row in rows]
        tx.after_commit(lambda: self._asked(keys))
        asked = list(dict.fromkeys(row.node_id for row in rows))
        changes = [Change((row.node_id, row.seq), row.issue_id, row.state, row.state) for row in rows]
        self._announcer.announce(tx, changes, asked)

    def _write_requests(self, tx: Transaction, rows: Sequence[OpenRow], actor: str) -> None:
        authorities = self._authorities.load(tx.conn, [row.issue_id for row in rows])
        requests = []
        for row in rows:
            authority = authorities[row.issue_id]
            mac = self._authorities.seal(
                authority, row.command_id, row.node_id, row.seq, row.spec_no, row.not_after_ms, actor
            )
            requests.append(((row.node_id, row.seq), actor, mac))
        store.save_cancel_request(tx.conn, requests)

    def _audit(self, tx: Transaction, actor: str, done: _Sorted, issue_id: str) -> None:
        self._rooms.audit.append(
            tx,
            AuditKind.COMMAND_CANCEL_REQUESTED,
            actor=actor,
            subject=issue_id or "commands",
            detail={
                "cancelled": [[row.node_id, row.seq] for row in done.now[:_AUDITED]],
                "asked": [[row.node_id, row.seq] for row in done.ask[:_AUDITED]],
                "cancelled_count": len(done.now),
                "asked_count": len(done.ask),
            },
        )

    def _orders(self, tx: Transaction, node_id: str, seqs: Sequence[int]) -> list[CancelOrder]:
        rows = [row for row in store.open_by_keys(tx.conn, node_id, seqs) if row.cancel_requested_by]
        gone = set(seqs) - {row.seq for row in rows}
        tx.after_commit(lambda: self._answered(node_id, gone))
        return [CancelOrder(row.command_id, row.seq, row.cancel_requested_by) for row in self._intact(tx, rows)]

    def _record_result(self, tx: Transaction, node_id: str, result: command_pb2.CancelResult) -> None:
        key = (node_id, result.monotonic_seq)
        found = [row for row in store.standings(tx.conn, [result.command_id]) if (row.node_id, row.seq) == key]
        if not found:
            return
        row = found[0]
        self._clear_request(tx, result.command_id)
        moved = rules.cancel_answer(row.standing, result.outcome, self._rooms.clock.now_ms())
        if moved is not None:
            store.save_results(tx.conn, [(key, moved)])
        self._rooms.audit.append(
            tx,
            AuditKind.COMMAND_CANCELLED,
            actor=f"node:{node_id}",
            subject=result.command_id.hex(),
            detail={
                "seq": row.seq,
                "outcome": _outcome_name(result.outcome),
                "state": state_name(moved.state if moved else row.standing.state),
            },
        )
        now = moved.state if moved else row.standing.state
        self._announcer.announce(tx, [Change(key, row.issue_id, row.standing.state, now)])
        tx.after_commit(lambda: self._answered(node_id, {row.seq}))

    def _clear_request(self, tx: Transaction, command_id: bytes) -> None:
        asked = [row for row in store.open_by_ids(tx.conn, [command_id]) if row.cancel_requested_by]
        self._write_requests(tx, self._intact(tx, asked), "")

    def _asked(self, keys: Sequence[Key]) -> None:
        for node_id, seq in keys:
            self._waiting.setdefault(node_id, set()).add(seq)

    def _answered(self, node_id: str, seqs: set[int]) -> None:
        left = self._waiting.get(node_id, set()) - seqs
        if left:
            self._waiting[node_id] = left
        else:
            self._waiting.pop(node_id, None)

    def _reloaded(self, waiting: dict[str, set[int]]) -> None:
        news = [node_id for node_id, seqs in waiting.items() if not seqs <= self._waiting.get(node_id, set())]
        self._waiting = waiting
        self._rooms.wakeup.wake_nowait([f"cancel:{node_id}" for node_id in news])


def _outcome_name(outcome: int) -> str:
    name = command_pb2.CancelOutcome.DESCRIPTOR.values_by_number.get(outcome)
    return "UNKNOWN" if name is None else name.name.removeprefix("CANCEL_OUTCOME_")
