"""Two commands rooms on one database, as two replicas have them: with a way between them, and with none."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import pytest

from fleet.v1 import admin_pb2
from fleet.v1 import command_pb2 as wire
from fleet_server.commands import following, interest, poll, rules, store
from fleet_server.commands.service import CommandService
from fleet_server.database import hints
from fleet_server.database.engine import Connection, Database
from fleet_server.database.wakeup import Wakeup
from tests.fakes.clock import MockClock
from tests.fakes.databases import SharedDatabase
from tests.integration.waiting import eventually
from tests.unit.fleet_server.commands.room import BusyLane, Room, open_room, order, report
from tests.unit.fleet_server.commands.test_show import collect

Answers = AsyncIterator[admin_pb2.WatchCommandsResponse]


@pytest.fixture
async def room(postgres_shared: SharedDatabase, clock: MockClock) -> AsyncIterator[Room]:
    """A commands room on PostgreSQL: SQLite serves one process."""
    database = Database(postgres_shared.url, readers=2)
    database.start()
    yield await open_room(database, clock)
    await database.close()
    postgres_shared.empty()


def connect(one: Wakeup, other: Wakeup) -> list[str]:
    """Let two replicas hear each other at once; what both say."""
    said: list[str] = []

    def say_to(listener: Wakeup) -> Callable[[Iterable[str]], None]:
        def say(words: Iterable[str]) -> None:
            words = list(words)
            said.extend(words)
            for message in hints.pack("a" * 16, words):
                heard = hints.read(message)
                assert heard is not None
                listener.hinted(heard.ids)

        return say

    one.tell_with(say_to(other))
    other.tell_with(say_to(one))
    return said


def watch(at: CommandService, issue_id: str, *, until_final: bool = True) -> Answers:
    return at.watch(admin_pb2.WatchCommandsRequest(issue_id=issue_id, until_final=until_final))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_silence_leaves_room_within_two_seconds_for_a_read_and_a_claim_that_wait() -> None:
    assert poll.INTERVAL_S <= 1.0
    assert following.INTERVAL_S <= 1.0


async def test_what_another_replica_issued_is_found_by_the_poll(room: Room) -> None:
    node, elsewhere = await room.add_node("n1"), await room.add_node("n2")
    room.commands.hand_over_to({node.node_id: BusyLane()}.get)
    woken: list[str] = []
    room.wakeup.subscribe_kind("node", woken.append)
    await room.another_replica().issue("alice", order(node.node_id, elsewhere.node_id))
    await room.commands.poll()
    assert woken == [node.node_id]
    assert room.commands.open_count(node.node_id) == room.commands.open_count(elsewhere.node_id) == 1
    assert room.metrics.commands.open.value == 2, "the whole cluster's, though nothing was issued here"


async def test_a_hint_has_the_named_node_looked_at_and_only_a_queue_wakes_it(room: Room, clock: MockClock) -> None:
    node, idle = await room.add_node("n1"), await room.add_node("n2")
    await room.open_stream(node.node_id)
    room.commands.hand_over_to(lambda _: BusyLane())
    there = Wakeup()
    said = connect(room.wakeup, there)
    other = room.another_replica(there)
    woken: list[str] = []
    room.wakeup.subscribe_kind("node", woken.append)
    running = asyncio.ensure_future(room.commands.run_poll())
    await clock.wait_sleepers(2)
    await other.issue("alice", order("n1"))
    await eventually(lambda: woken, "the stream is woken, though no time has passed")
    assert woken == [node.node_id]
    assert said == [f"node:{node.node_id}"]
    room.wakeup.hinted({"node": [idle.node_id, "weather"]})
    room.wakeup.hinted({"node": [f"n{number}" for number in range(500)]})
    await settle()
    assert woken == [node.node_id]
    running.cancel()


async def test_nobody_is_told_of_a_node_whose_stream_is_here_or_that_has_none(room: Room) -> None:
    here = await room.add_node("n1")
    await room.add_node("n2")
    await room.open_stream(here.node_id)
    room.commands.hand_over_to({here.node_id: BusyLane()}.get)
    said = connect(room.wakeup, Wakeup())
    await room.commands.issue("alice", order("*"))
    assert said == []


async def test_a_flood_of_names_is_read_at_most_so_often(room: Room, clock: MockClock) -> None:
    for number in range(20):
        await room.add_node(f"n{number}")
    room.commands.hand_over_to(lambda _: BusyLane())
    reads: list[object] = []
    read = room.database.read

    async def counted(query: Callable[..., object]) -> object:
        reads.append(query)
        return await read(query)

    room.database.read = counted  # type: ignore[method-assign,assignment]
    running = asyncio.ensure_future(room.commands.run_poll())
    await clock.wait_sleepers(2)
    for number in range(5_000):
        room.wakeup.hinted({"node": [f"x{number}"], "cancel": [f"x{number}"], "issue": ["x"]})
    await settle()
    assert len(reads) <= 6
    running.cancel()


async def test_a_cancel_that_another_replica_was_asked_for_is_found(room: Room) -> None:
    node = await room.add_node("n1")
    epoch = await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1"))
    [command] = await room.claim(node.node_id)
    other = room.another_replica()
    await other.cancel("bob", [command.command_id])
    assert await room.commands.pending_cancels(node.node_id, epoch) == []
    woken: list[str] = []
    room.wakeup.subscribe_kind("cancel", woken.append)
    await room.commands.poll()
    assert woken == [node.node_id]
    [pending] = await room.commands.pending_cancels(node.node_id, epoch)
    assert (pending.seq, pending.actor) == (command.seq, "bob")
    await room.commands.poll()
    assert woken == [node.node_id], "once, not each second"


async def test_a_queue_that_was_emptied_elsewhere_is_not_full(
    postgres_shared: SharedDatabase, clock: MockClock
) -> None:
    database = Database(postgres_shared.url, readers=2)
    database.start()
    room = await open_room(database, clock, max_open_per_node=2)
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1", count=2))
    assert [each.reason for each in (await room.commands.issue("alice", order("n1"))).refused] == ["QUEUE_FULL"]
    other = room.another_replica()
    done = [report(each, wire.COMMAND_STATE_SUCCEEDED) for each in await room.claim(node.node_id)]
    await other.record_reports(node.node_id, done)
    assert room.commands.open_count(node.node_id) == 2
    assert (await room.commands.issue("alice", order("n1"))).issued_count == 1
    await room.commands.poll()
    assert room.commands.open_count(node.node_id) == 1
    await database.close()
    postgres_shared.empty()


async def test_a_watch_is_told_by_the_poll_what_another_replica_recorded_and_ends(room: Room) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    issued = await room.commands.issue("alice", order("n1", count=3))
    claimed = await room.claim(node.node_id)
    other = room.another_replica()
    told: list[tuple[int, int]] = []
    left: list[int] = []

    async def follow() -> None:
        async for answer in watch(room.commands, issued.issue_id):
            told.extend((view.monotonic_seq, view.state) for view in answer.commands)
            left.append(answer.open)

    running = asyncio.ensure_future(follow())
    await eventually(lambda: left == [3], "the watch has begun")
    told.clear()
    await other.record_reports(node.node_id, [report(claimed[0], wire.COMMAND_STATE_RUNNING)])
    await room.commands.record_reports(node.node_id, [report(claimed[1], wire.COMMAND_STATE_SUCCEEDED)])
    await room.commands.poll()
    await eventually(lambda: len(told) == 2, "it hears of both")
    await other.record_reports(node.node_id, [report(each, wire.COMMAND_STATE_FAILED) for each in claimed])
    await room.commands.poll()
    await asyncio.wait_for(running, 10)
    assert sorted(told) == [
        (1, wire.COMMAND_STATE_RUNNING),
        (1, wire.COMMAND_STATE_FAILED),
        (2, wire.COMMAND_STATE_SUCCEEDED),
        (3, wire.COMMAND_STATE_FAILED),
    ]
    assert left[-1] == 0


async def test_a_watch_is_hinted_by_the_replica_that_records(room: Room, clock: MockClock) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    issued = await room.commands.issue("alice", order("n1"))
    [command] = await room.claim(node.node_id)
    there = Wakeup()
    said = connect(room.wakeup, there)
    other = room.another_replica(there)
    running = asyncio.ensure_future(room.commands.run_poll())
    await clock.wait_sleepers(2)
    following_it = watch(room.commands, issued.issue_id)
    await anext(following_it)
    await other.record_reports(node.node_id, [report(command, wire.COMMAND_STATE_SUCCEEDED)])
    answers = await asyncio.wait_for(collect(following_it), 10)
    assert [answer.open for answer in answers] == [0]
    assert said == [f"watch:{issued.issue_id}", f"issue:{issued.issue_id}"]
    running.cancel()


async def test_nobody_hints_at_what_nobody_elsewhere_watches(room: Room, clock: MockClock) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    first, second = [await room.commands.issue("alice", order("n1")) for _ in range(2)]
    claimed = await room.claim(node.node_id)
    said = connect(room.wakeup, Wakeup())
    room.wakeup.hinted({"watch": [second.issue_id]})
    await room.commands.record_reports(node.node_id, [report(claimed[0], wire.COMMAND_STATE_SUCCEEDED)])
    assert said == []
    await room.commands.record_reports(node.node_id, [report(claimed[1], wire.COMMAND_STATE_RUNNING)])
    assert said == [f"issue:{second.issue_id}"]
    await clock.advance(3 * interest.REPEAT_S)
    await room.commands.record_reports(node.node_id, [report(claimed[1], wire.COMMAND_STATE_SUCCEEDED)])
    assert said == [f"issue:{second.issue_id}"], "who watches says so again"
    assert first.issue_id != second.issue_id


async def test_a_watch_of_a_command_that_was_taken_out_of_the_database_ends(room: Room) -> None:
    await room.add_node("n1")
    issued = await room.commands.issue("alice", order("n1"))
    following_it = watch(room.commands, issued.issue_id)
    await anext(following_it)
    rest = asyncio.ensure_future(collect(following_it))
    await settle()
    await room.tamper("DELETE FROM commands")
    await room.commands.poll()
    assert await asyncio.wait_for(rest, 10) == []


async def test_who_watches_everything_sees_what_other_replicas_issue_and_record_once(room: Room) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1"))
    other = room.another_replica()
    told: list[tuple[int, int]] = []
    following_it = watch(room.commands, "", until_final=False)

    async def follow() -> None:
        async for answer in following_it:
            told.extend((view.monotonic_seq, view.state) for view in answer.commands)

    running = asyncio.ensure_future(follow())
    await eventually(lambda: room.commands._announcer.everything.followed, "the watch has begun")
    await other.issue("bob", order("n1"))
    await room.commands.poll()
    await eventually(lambda: told == [(2, rules.QUEUED)], "it hears of the issue")
    claimed = await room.claim(node.node_id)  # here: told at once
    await eventually(lambda: sorted(told[1:]) == [(1, rules.SENT), (2, rules.SENT)], "it hears of the claim")
    await room.commands.poll()
    await other.record_reports(node.node_id, [report(claimed[0], wire.COMMAND_STATE_SUCCEEDED)])
    await other.issue("bob", order("n1"))
    [third] = await room.claim(node.node_id, after_seq=2)
    await eventually(lambda: (3, rules.SENT) in told, "it hears of the claim")
    await other.record_reports(node.node_id, [report(third, wire.COMMAND_STATE_FAILED)])
    await room.commands.poll()
    await eventually(
        lambda: (3, wire.COMMAND_STATE_FAILED) in told and (1, rules.SUCCEEDED) in told, "it hears of both ends"
    )
    await room.commands.poll()
    await settle()
    assert len(told) == len(set(told))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await following_it.aclose()  # type: ignore[attr-defined]
    await room.commands.poll()
    assert not room.commands._announcer.everything.followed


async def test_a_node_that_comes_back_costs_no_look_at_all_that_it_ever_did(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await room.add_node("n1")
    await room.tamper(
        "INSERT INTO commands (node_id, seq, command_id, issue_id, spec_no, not_after_ms, mac, state)"
        " SELECT node_id, n, decode(lpad(to_hex(n), 32, '0'), 'hex'), 'old', 0, n, ''::bytea, 5"
        " FROM nodes, generate_series(1, 3000) n"
    )
    await room.tamper("UPDATE nodes SET last_seq = 3000")
    await room.tamper("ANALYZE commands")
    await room.another_replica().issue("alice", order("n1"))
    await room.commands.poll()
    looked: list[int] = []
    lowest_open = store.lowest_open

    def rows_read(conn: Connection) -> int:
        of_indexes = "FROM pg_index WHERE indrelid = 'commands'::regclass"
        fetched = conn.exec_driver_sql(f"SELECT sum(pg_stat_get_xact_tuples_fetched(indexrelid)) {of_indexes}").scalar()
        return int(fetched or 0)

    def counted(conn: Connection, *arguments: Any) -> int | None:
        before = rows_read(conn)
        found = lowest_open(conn, *arguments)
        looked.append(rows_read(conn) - before)
        return found

    monkeypatch.setattr(store, "lowest_open", counted)
    epoch = await room.open_stream(node.node_id, 3000)
    assert await room.commands.reconcile(node.node_id, epoch, 3000) == (3000, True)
    assert len(looked) == 1
    assert looked[0] < 10
    await room.claim(node.node_id, after_seq=3000)
    epoch = await room.open_stream(node.node_id, 3001)
    assert await room.commands.reconcile(node.node_id, epoch, 3001) == (3000, True), (
        "what has no result is asked for again"
    )
