"""Anything that operators, streams and nodes may do in any order, on a real database: one truth for each command."""

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fleet.v1 import command_pb2 as wire
from fleet_server.commands import rules
from fleet_server.commands.service import CommandService, PendingCommand
from fleet_server.database.engine import Database
from tests.fakes.clock import MockClock
from tests.fakes.databases import sqlite_database
from tests.unit.fleet_server.commands.room import BusyLane, Room, open_room, order, pruned, report

T = TypeVar("T")
NODES = ("n1", "n2")
TOLD = (
    wire.COMMAND_STATE_ACCEPTED,
    wire.COMMAND_STATE_RUNNING,
    wire.COMMAND_STATE_SUCCEEDED,
    wire.COMMAND_STATE_FAILED,
    wire.COMMAND_STATE_CANCELLED,
    wire.COMMAND_STATE_INTERRUPTED,
)


class CommandsMachine(RuleBasedStateMachine):
    """A room, two nodes, and what the world outside has seen of each command."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        url = sqlite_database(Path(self.folder.name) / "fleet.db")
        self.clock = MockClock()
        self.room: Room
        self.other: CommandService
        self.database: Database
        self.url = url
        self.ids: dict[str, str] = {}
        self.sent: dict[tuple[str, int], PendingCommand] = {}
        self.cancelled_unsent: set[tuple[str, int]] = set()
        self.ended: dict[tuple[str, int], tuple[int, str]] = {}
        self.issued = dict.fromkeys(NODES, 0)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def epoch(self, name: str) -> int:
        return self.run(self.room.epoch(self.ids[name]))

    @initialize(lanes=st.booleans())
    def start(self, lanes: bool) -> None:
        async def begin() -> None:
            self.database = Database(self.url, readers=1)
            self.database.start()
            self.room = await open_room(self.database, self.clock)
            for name in NODES:
                self.ids[name] = (await self.room.add_node(name)).node_id
                await self.room.open_stream(self.ids[name])
            self.other = self.room.another_replica()
            if lanes:  # what is issued is in hand from then on
                self.room.commands.hand_over_to(dict.fromkeys(self.ids.values(), BusyLane()).get)

        self.run(begin())

    @rule(target_=st.sampled_from([*NODES, "*"]), count=st.integers(1, 3), ttl_s=st.sampled_from([5, 300]))
    def issue(self, target_: str, count: int, ttl_s: int) -> None:
        answer = self.run(self.room.commands.issue("alice", order(target_, count=count, ttl_s=ttl_s)))
        assert not answer.refused
        for each in answer.issued:
            self.issued[each.node_name] += 1
            assert each.monotonic_seq == self.issued[each.node_name]  # dense

    @rule(name=st.sampled_from(NODES), after=st.integers(0, 4), limit=st.integers(1, 4))
    def claim(self, name: str, after: int, limit: int) -> None:
        for command in self.run(self.room.claim(self.ids[name], after_seq=after, limit=limit)):
            key = (self.ids[name], command.seq)
            assert key not in self.cancelled_unsent  # never CANCELLED and signed
            assert self.sent.setdefault(key, command) == command

    @rule(name=st.sampled_from(NODES), picks=st.lists(st.tuples(st.integers(0, 50), st.sampled_from(TOLD)), max_size=5))
    def tell(self, name: str, picks: list[tuple[int, int]]) -> None:
        own = [command for (node_id, _), command in sorted(self.sent.items()) if node_id == self.ids[name]]
        told = [report(own[pick % len(own)], state) for pick, state in picks if own]
        self.run(self.room.commands.record_reports(self.ids[name], told))

    @rule(name=st.sampled_from(NODES), pick=st.integers(0, 50), outcome=st.integers(1, 5))
    def answer_cancel(self, name: str, pick: int, outcome: int) -> None:
        own = [command for (node_id, _), command in sorted(self.sent.items()) if node_id == self.ids[name]]
        if own:
            command = own[pick % len(own)]
            result = wire.CancelResult(
                command_id=command.command_id,
                monotonic_seq=command.seq,
                outcome=wire.CancelOutcome.ValueType(outcome),
            )
            self.run(self.room.commands.record_cancel_result(self.ids[name], self.epoch(name), result))

    @rule(name=st.sampled_from(NODES), pick=st.integers(0, 50))
    def cancel(self, name: str, pick: int) -> None:
        views = self.run(self.room.views_of_node(name))
        if not views:
            return
        wanted = views[pick % len(views)]
        view = self.run(self.room.commands.cancel("bob", [wanted.command_id]))[0]
        key = (view.node_id, view.monotonic_seq)
        if view.state == wire.COMMAND_STATE_CANCELLED and key not in self.sent:
            self.cancelled_unsent.add(key)
        if wanted.state in (rules.SENT, rules.ACCEPTED, rules.RUNNING):
            assert view.cancel_requested
            assert view.state == wanted.state

    @rule(name=st.sampled_from(NODES), pick=st.integers(0, 50), reason=st.sampled_from(["FORGOTTEN", "SEQ_CONFLICT"]))
    def refuse(self, name: str, pick: int, reason: str) -> None:
        own = [command for (node_id, _), command in sorted(self.sent.items()) if node_id == self.ids[name]]
        if own:
            command = own[pick % len(own)]
            refused = wire.CommandRefused(command_id=command.command_id, monotonic_seq=command.seq, reason=reason)
            self.run(self.room.commands.record_command_refused(self.ids[name], self.epoch(name), refused))

    @rule(name=st.sampled_from(NODES), pick=st.integers(0, 50))
    def cancel_on_another_replica(self, name: str, pick: int) -> None:
        """What this replica issued and has in hand changes under it."""
        views = self.run(self.room.views_of_node(name))
        wanted = views[pick % len(views)] if views else None
        if wanted is not None and wanted.state == rules.QUEUED:
            self.run(self.other.cancel("eve", [wanted.command_id]))
            self.cancelled_unsent.add((wanted.node_id, wanted.monotonic_seq))
            self.run(self.room.commands.load())

    @rule(name=st.sampled_from(NODES))
    def reconnect(self, name: str) -> None:
        self.run(self.room.open_stream(self.ids[name]))

    @rule(seconds=st.sampled_from([1, 10]))
    def time_passes(self, seconds: int) -> None:
        self.run(self.clock.advance(seconds))
        self.run(self.room.commands.sweep())

    @rule(days=st.sampled_from([50, 100]))
    def much_time_passes_and_nobody_sweeps(self, days: int) -> None:
        issues: dict[str, set[tuple[str, int, int, int]]] = {}
        self.run(self.clock.advance(days * 86_400))
        text = "SELECT issue_id, node_id, seq, state, finished_at_ms FROM commands"
        for issue_id, *row in self.run(self.room.query(text)):
            issues.setdefault(issue_id, set()).add(tuple(row))  # type: ignore[arg-type]
        self.run(pruned(self.room, self.clock))
        left: dict[str, set[tuple[str, int, int, int]]] = {}
        for issue_id, *row in self.run(self.room.query(text)):
            left.setdefault(issue_id, set()).add(tuple(row))  # type: ignore[arg-type]
        before_ms = self.clock.now_ms() - 90 * 86_400_000
        kept = {
            issue_id: rows
            for issue_id, rows in issues.items()
            if any(state < rules.SUCCEEDED or finished_at_ms >= before_ms for *_, state, finished_at_ms in rows)
        }
        old = {issue_id for (issue_id,) in self.run(self.room.query("SELECT issue_id FROM command_issues"))}
        assert left == kept, "whole, or not at all"
        assert old == set(kept)
        assert {issue_id for (issue_id,) in self.run(self.room.query("SELECT issue_id FROM command_runs"))} == set(kept)

    @invariant()
    def ends_stand_and_counts_are_true(self) -> None:
        if not self.ids:
            return
        rows = self.run(self.room.query("SELECT node_id, seq, state, reason FROM commands"))
        open_rows = dict.fromkeys(self.ids.values(), 0)
        for node_id, seq, state, reason in rows:
            key = (node_id, seq)
            if not rules.is_final(state):
                open_rows[node_id] += 1
                assert key not in self.ended
                continue
            before = self.ended.get(key)
            if before is not None and before != (state, reason):
                assert before[0] == rules.INTERRUPTED
                assert before[1] in rules.DECLARED_REASONS
            self.ended[key] = (state, reason)
        counted = self.room.commands.open_counts(None, list(open_rows))  # type: ignore[arg-type]
        assert counted == open_rows

    def teardown(self) -> None:
        if self.ids:
            self.run(self.database.close())
        self.loop.close()
        self.folder.cleanup()


TestCommandsMachine = CommandsMachine.TestCase
TestCommandsMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
