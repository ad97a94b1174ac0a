"""Commands whose node waits for work leave with the commit that issued them; nothing rests on it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from fleet.v1 import admin_pb2
from fleet.v1 import command_pb2 as wire
from fleet_server.commands.service import PendingCommand
from tests.unit.fleet_server.commands.room import Room, order, report

KEY_ID = b"k" * 16


@dataclass
class WaitingLane:
    """A lane that waits for its node's next commands, of one epoch and from one seq on."""

    epoch: int
    next_seq: int = 1
    taken: list[PendingCommand] = field(default_factory=list)

    def key_for(self, epoch: int, first_seq: int, count: int) -> bytes | None:
        return KEY_ID if (epoch, first_seq) == (self.epoch, self.next_seq) else None

    def take(self, commands: Sequence[PendingCommand], key_id: bytes | None) -> None:
        self.taken.extend(commands)
        self.next_seq += len(commands)


async def waiting_lane(room: Room, name: str = "n1") -> tuple[str, WaitingLane]:
    """A node with a stream whose lane waits."""
    node = await room.add_node(name)
    lane = WaitingLane(await room.open_stream(node.node_id))
    room.commands.hand_over_to({node.node_id: lane}.get)
    return node.node_id, lane


async def test_a_waiting_lane_is_handed_what_was_issued_and_it_is_sent_already(room: Room) -> None:
    node_id, lane = await waiting_lane(room)
    woken: list[str] = []
    room.wakeup.subscribe(f"node:{node_id}", lambda: woken.append(node_id))
    issued = await room.commands.issue("alice", order("n1", count=2))
    assert [(each.seq, each.command_id) for each in lane.taken] == [
        (each.monotonic_seq, each.command_id) for each in issued.issued
    ]
    assert {each.terms[:1] + each.terms[3:5] for each in lane.taken} == {("alice", "host.set", b'{"level": 1}')}
    views = await room.views(issued.issue_id)
    assert {(view.state, view.key_id) for view in views} == {(wire.COMMAND_STATE_SENT, KEY_ID)}
    assert all(view.sent_at_ms == view.issued_at_ms > 0 for view in views)
    assert woken == []


async def test_what_is_handed_is_what_a_claim_would_have_given(room: Room) -> None:
    node_id, lane = await waiting_lane(room)
    await room.commands.issue("alice", order("n1", count=3, ttl_s=60))
    assert await room.claim(node_id) == lane.taken


async def test_a_stream_that_is_not_the_newest_is_handed_nothing(room: Room) -> None:
    node_id, lane = await waiting_lane(room)
    await room.open_stream(node_id)
    await room.commands.issue("alice", order("n1"))
    assert lane.taken == []
    assert await room.state(node_id, 1) == wire.COMMAND_STATE_QUEUED


async def test_nothing_is_handed_to_a_stream_that_is_overtaken_elsewhere_while_the_issue_is_drawn_up(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its targets were read, and another replica welcomed the node before its counter was raised."""
    node_id, lane = await waiting_lane(room)
    resolve = room.nodes.resolve

    def and_then(conn: Any, patterns: Sequence[str]) -> Any:
        found = resolve(conn, patterns)
        conn.exec_driver_sql("UPDATE nodes SET stream_epoch = stream_epoch + 1")
        return found

    monkeypatch.setattr(room.nodes, "resolve", and_then)
    await room.commands.issue("alice", order("n1"))
    assert lane.taken == []
    assert await room.state(node_id, 1) == wire.COMMAND_STATE_QUEUED


async def test_what_a_lane_did_not_send_is_claimed_by_the_next_stream(room: Room) -> None:
    node_id, _ = await waiting_lane(room)
    await room.commands.issue("alice", order("n1"))  # handed, and the stream is cut before it could be written
    await room.open_stream(node_id)
    assert [each.seq for each in await room.claim(node_id)] == [1]


async def test_a_row_changed_after_it_was_handed_is_quarantined_when_it_is_claimed(room: Room) -> None:
    node_id, _ = await waiting_lane(room)
    await room.commands.issue("alice", order("n1"))
    await room.tamper("UPDATE commands SET not_after_ms = not_after_ms + 1")
    await room.open_stream(node_id)
    assert await room.claim(node_id) == []
    assert await room.state(node_id, 1) == wire.COMMAND_STATE_QUARANTINED


async def test_many_nodes_are_handed_theirs_in_turns_of_the_loop(room: Room) -> None:
    lanes: dict[str, WaitingLane] = {}
    for number in range(70):
        node = await room.add_node(f"n{number}")
        lanes[node.node_id] = WaitingLane(await room.open_stream(node.node_id))
    room.commands.hand_over_to(lanes.get)
    await room.commands.issue("alice", order("*", count=2))
    for _ in range(5):
        await asyncio.sleep(0)
    assert [[each.seq for each in lane.taken] for lane in lanes.values()] == [[1, 2]] * 70


async def test_a_watcher_sees_what_a_reader_would_without_a_read(room: Room) -> None:
    node_id, lane = await waiting_lane(room)
    reads = 0
    read = room.database.read

    async def counted(query: object) -> object:
        nonlocal reads
        reads += 1
        return await read(query)  # type: ignore[arg-type]

    await room.commands.issue("alice", order("n1"))
    watch = room.commands.watch(admin_pb2.WatchCommandsRequest())
    seen = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    await room.commands.record_reports(node_id, [report(lane.taken[0], wire.COMMAND_STATE_ACCEPTED)])
    await seen  # names are known from here on
    room.database.read = counted  # type: ignore[method-assign, assignment]
    issued = await room.commands.issue("alice", order("n1"))
    command = lane.taken[-1]
    reports = [
        report(command, wire.COMMAND_STATE_ACCEPTED, 2, accepted_at_ms=5),
        report(command, wire.COMMAND_STATE_FAILED, 3, output=b"{}", reason="LIMIT", error="too much"),
    ]
    views = [(await anext(watch)).commands[0]]
    for each in reports:
        await room.commands.record_reports(node_id, [each])
        views.append((await anext(watch)).commands[0])
    assert reads == 0
    assert [view.state for view in views] == [
        wire.COMMAND_STATE_SENT,
        wire.COMMAND_STATE_ACCEPTED,
        wire.COMMAND_STATE_FAILED,
    ]
    assert views[-1] == await room.commands.get(issued.issued[0].command_id)
    await watch.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize("change", ["spec_no = 1", "not_after_ms = not_after_ms + 1", "cancel_requested_by = 'eve'"])
async def test_a_watcher_is_told_of_a_row_that_was_changed_around_the_server(room: Room, change: str) -> None:
    node_id, lane = await waiting_lane(room)
    watch = room.commands.watch(admin_pb2.WatchCommandsRequest())
    issued = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    await room.commands.issue("alice", order("n1", count=2))
    command = lane.taken[0]
    await room.commands.record_reports(node_id, [report(command, wire.COMMAND_STATE_ACCEPTED)])
    told = list((await issued).commands)
    while wire.COMMAND_STATE_ACCEPTED not in {view.state for view in told}:  # it may come with the first message
        told += (await anext(watch)).commands
    assert {view.unverified for view in told} == {False}
    await room.tamper(f"UPDATE commands SET {change} WHERE seq = ?", command.seq)
    await room.commands.record_reports(node_id, [report(command, wire.COMMAND_STATE_SUCCEEDED, 2)])
    (view,) = (await anext(watch)).commands
    assert (view.state, view.unverified) == (wire.COMMAND_STATE_SUCCEEDED, True)
    await watch.aclose()  # type: ignore[attr-defined]


async def test_what_is_signed_again_with_another_key_is_on_record_with_that_one(room: Room) -> None:
    """Keys rotated after the lane was handed it: it is claimed again, also in what is kept in hand."""
    node_id, _ = await waiting_lane(room)
    issued = await room.commands.issue("alice", order("n1", count=2))
    other = bytes(15) + b"\x07"
    again = await room.claim(node_id, key_id=other)
    assert [each.seq for each in again] == [1, 2]
    assert {view.key_id for view in await room.views(issued.issue_id)} == {other}
    remembered = room.commands._announcer.in_hand.sent(node_id)
    assert {row.key_id for row in remembered.values()} <= {other}
    await room.commands.record_reports(node_id, [report(again[0], wire.COMMAND_STATE_SUCCEEDED)])
    assert {view.key_id for view in await room.views(issued.issue_id)} == {other}
