"""What a stream is given, in which order, and how it picks up where the one before ended."""

import asyncio

import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import command_pb2 as wire
from fleet_server.commands import rules
from tests.fakes.clock import MockClock
from tests.integration.waiting import eventually
from tests.unit.fleet_server.commands.room import BusyLane, Room, order, report


async def test_only_the_newest_stream_is_given_commands(room: Room) -> None:
    node = await room.add_node("n1")
    older = await room.open_stream(node.node_id)
    newer = await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1"))
    for call in (
        room.commands.claim_pending(node.node_id, older, after_seq=0, limit=32),
        room.commands.reconcile(node.node_id, older, 0),
    ):
        with pytest.raises(Refusal) as refused:
            await call
        assert refused.value.reason == Reason.SUPERSEDED
    assert await room.state(node.node_id, 1) == wire.COMMAND_STATE_QUEUED
    assert len(await room.commands.claim_pending(node.node_id, newer, after_seq=0, limit=32)) == 1


async def test_what_was_sent_and_not_answered_is_sent_again_on_a_new_stream(room: Room) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1", count=3))
    first = await room.claim(node.node_id)
    await room.commands.record_reports(node.node_id, [report(first[0], wire.COMMAND_STATE_ACCEPTED)])
    await room.open_stream(node.node_id, last_accepted_seq=1)
    assert [each.seq for each in await room.claim(node.node_id, after_seq=1)] == [2, 3]


async def test_a_claim_takes_what_fits_and_at_most_32(room: Room) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1", count=40))
    assert [each.seq for each in await room.claim(node.node_id, limit=5)] == [1, 2, 3, 4, 5]
    assert [each.seq for each in await room.claim(node.node_id, after_seq=5, limit=99)] == list(range(6, 38))


async def test_rows_set_aside_leave_their_room_to_others(room: Room) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1", count=6))
    await room.tamper("UPDATE commands SET mac = ? WHERE seq IN (1, 3)", bytes(32))
    assert [each.seq for each in await room.claim(node.node_id, limit=4)] == [2, 4, 5, 6]


async def test_a_command_whose_time_passed_unsent_is_never_sent(room: Room, clock: MockClock) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1", ttl_s=10))
    await room.commands.issue("alice", order("n1", ttl_s=60))
    await clock.advance(11)
    assert [each.seq for each in await room.claim(node.node_id)] == [2]
    assert await room.state(node.node_id, 1) == wire.COMMAND_STATE_EXPIRED


async def test_the_sweep_expires_what_no_stream_asks_for(room: Room, clock: MockClock) -> None:
    node = await room.add_node("n1")
    await room.commands.issue("alice", order("n1", count=3, ttl_s=10))
    await clock.advance(10)
    await room.commands.sweep()
    assert await room.state(node.node_id, 1) == wire.COMMAND_STATE_QUEUED
    await clock.advance(1)
    await room.commands.sweep()
    assert [view.reason for view in await room.views_of_node("n1")] == ["NEVER_SENT"] * 3
    assert await room.audited("command.expired") == [{"seqs": {node.node_id: [1, 2, 3]}}]
    assert room.commands.open_counts(None, [node.node_id]) == {node.node_id: 0}  # type: ignore[arg-type]


async def test_a_signed_command_that_nobody_answers_ends_as_unknown_and_may_be_known_after_all(
    room: Room, clock: MockClock
) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1", ttl_s=10))
    claimed = await room.claim(node.node_id)
    await clock.advance(10 + rules.SILENCE_MS / 1000)
    await room.commands.sweep()
    assert await room.state(node.node_id, 1) == wire.COMMAND_STATE_SENT
    await clock.advance(1)
    await room.commands.sweep()
    assert (await room.views_of_node("n1"))[0].reason == "NO_ANSWER"
    await room.commands.record_reports(node.node_id, [report(claimed[0], wire.COMMAND_STATE_SUCCEEDED)])
    assert await room.state(node.node_id, 1) == wire.COMMAND_STATE_SUCCEEDED
    assert (await room.audited("command.reported"))[0]["known_after_all"] == [
        [node.node_id, 1, "NO_ANSWER", "SUCCEEDED"]
    ]


async def test_a_journal_that_went_back_in_time_runs_nothing_twice(room: Room) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1", count=3))
    first = await room.claim(node.node_id)
    await room.commands.record_reports(
        node.node_id,
        [report(first[0], wire.COMMAND_STATE_SUCCEEDED), report(first[1], wire.COMMAND_STATE_RUNNING)],
    )
    epoch = await room.open_stream(node.node_id, last_accepted_seq=0)
    after, _ = await room.commands.reconcile(node.node_id, epoch, 0)
    assert [each.seq for each in await room.claim(node.node_id, after_seq=after)] == [3]
    assert (await room.views_of_node("n1"))[1].reason == "JOURNAL_LOST"


async def test_what_was_accepted_while_a_takeover_said_hello_is_no_loss(room: Room) -> None:
    """The older stream serves on until the newer one is welcomed: its answers lie above that one's hello."""
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1", count=2))
    first = await room.claim(node.node_id)
    await room.commands.record_reports(node.node_id, [report(first[0], wire.COMMAND_STATE_RUNNING)])
    epoch = await room.open_stream(node.node_id, last_accepted_seq=0)
    after, _ = await room.commands.reconcile(node.node_id, epoch, 0, takeover=True)
    assert [each.seq for each in await room.claim(node.node_id, after_seq=after)] == [2]
    assert await room.state(node.node_id, 1) == wire.COMMAND_STATE_RUNNING


async def test_what_the_node_has_and_the_server_does_not_know_is_asked_again(room: Room) -> None:
    """A database restored to an hour ago: the node accepted, even finished, what reads as SENT or RUNNING here."""
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1", count=4))
    first = await room.claim(node.node_id)
    await room.commands.record_reports(
        node.node_id,
        [report(first[0], wire.COMMAND_STATE_SUCCEEDED), report(first[2], wire.COMMAND_STATE_RUNNING)],
    )
    epoch = await room.open_stream(node.node_id, last_accepted_seq=3)
    after, _ = await room.commands.reconcile(node.node_id, epoch, 3)
    again = await room.claim(node.node_id, after_seq=after, asked_again_through=3)
    assert [each.seq for each in again] == [2, 3, 4]
    assert await room.state(node.node_id, 3) == wire.COMMAND_STATE_RUNNING
    refused = wire.CommandRefused(command_id=again[1].command_id, monotonic_seq=3, reason="FORGOTTEN")
    await room.commands.record_command_refused(node.node_id, await room.epoch(node.node_id), refused)
    assert await room.state(node.node_id, 3) == wire.COMMAND_STATE_INTERRUPTED
    assert len(await room.audited("command.interrupted")) == 1


async def test_a_stream_on_which_nothing_waits_is_told_so(room: Room) -> None:
    nodes = [await room.add_node(f"n{number}") for number in range(1, 5)]
    for node in nodes[1:]:
        await room.commands.issue("alice", order(node.name))
    for node in nodes[2:]:
        await room.open_stream(node.node_id)
        [given] = await room.claim(node.node_id)
        state = wire.COMMAND_STATE_SUCCEEDED if node is nodes[2] else wire.COMMAND_STATE_RUNNING
        await room.commands.record_reports(node.node_id, [report(given, state)])
    epochs = [await room.open_stream(node.node_id) for node in nodes]
    accepted = [0, 0, 1, 1]
    resumed = await asyncio.gather(
        *(
            room.commands.reconcile(node.node_id, epoch, seq)
            for node, epoch, seq in zip(nodes, epochs, accepted, strict=True)
        )
    )
    assert resumed == [(0, False), (0, True), (1, False), (0, True)]
    with pytest.raises(Refusal) as refused:
        await room.commands.reconcile(nodes[0].node_id, epochs[0] - 1, 0)
    assert refused.value.reason is Reason.SUPERSEDED


async def test_the_run_loop_outlives_a_database_that_is_away(
    room: Room, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await room.add_node("n1")
    await room.commands.issue("alice", order("n1", ttl_s=1))
    away = True
    write = room.database.write

    async def sometimes(work: object) -> object:
        if away:
            raise Refusal(Reason.UNAVAILABLE, "away")
        return await write(work)  # type: ignore[arg-type]

    monkeypatch.setattr(room.database, "write", sometimes)
    running = asyncio.ensure_future(room.commands.run_expiry())
    await clock.advance(6)
    away = False

    async def expired() -> bool:
        await clock.advance(5)
        return await room.state(node.node_id, 1) == wire.COMMAND_STATE_EXPIRED

    await eventually(expired, "the command is EXPIRED")
    running.cancel()


async def test_a_lost_wake_up_costs_a_second(room: Room, clock: MockClock) -> None:
    waits, answered = await room.add_node("waits"), await room.add_node("answered")
    woken: list[str] = []
    await room.commands.issue("alice", order("*"))
    await room.open_stream(answered.node_id)
    [command] = await room.claim(answered.node_id)
    await room.commands.record_reports(answered.node_id, [report(command, wire.COMMAND_STATE_ACCEPTED)])
    room.wakeup.subscribe_kind("node", woken.append)
    room.commands.hand_over_to(lambda _: BusyLane())
    polling = asyncio.ensure_future(room.commands.run_poll())
    await asyncio.sleep(0)
    await clock.advance(1)
    await eventually(lambda: woken, "somebody is woken")
    polling.cancel()
    assert woken == [waits.node_id]
