"""Pages of commands, and a stream of those that change."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2
from fleet.v1 import command_pb2 as wire
from fleet_server.commands import feed
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.commands.room import Room, order, report


async def pages(room: Room, size: int, **filters: object) -> list[tuple[str, int]]:
    """(issue, seq) of every command, read page by page."""
    found: list[tuple[str, int]] = []
    token = ""
    while True:
        request = admin_pb2.ListCommandsRequest(page=admin_pb2.Page(size=size, token=token), **filters)  # type: ignore[arg-type]
        answer = await room.commands.list_page(request)
        assert len(answer.commands) <= size
        found += [(view.issue_id, view.monotonic_seq) for view in answer.commands]
        token = answer.next_page_token
        if not token:
            return found


@pytest.mark.parametrize("size", [1, 2, 3, 100])
async def test_pages_hold_everything_once_newest_first(room: Room, clock: MockClock, size: int) -> None:
    first, _ = await room.add_node("n1"), await room.add_node("n2")
    issues = []
    for number in range(3):
        issues.append((await room.commands.issue("alice", order("*", count=2))).issue_id)
        if number == 0:
            await clock.advance(1)  # the two later ones share a millisecond
    found = await pages(room, size)
    assert len(found) == len(set(found)) + 6 == 12
    assert [issue for issue, _ in found[-4:]] == [issues[0]] * 4
    assert {issue for issue, _ in found[:8]} == set(issues[1:])
    assert await pages(room, size, issue_id=issues[1]) == [(issues[1], seq) for seq in (3, 4, 3, 4)]
    assert [seq for _, seq in await pages(room, size, node="n1")] == [6, 5, 4, 3, 2, 1]
    await room.open_stream(first.node_id)
    claimed = await room.claim(first.node_id)
    await room.commands.record_reports(first.node_id, [report(each, wire.COMMAND_STATE_FAILED) for each in claimed])
    assert len(await pages(room, size, open_only=True)) == 6
    assert await pages(room, size, open_only=True, node="n1") == []


@pytest.mark.parametrize("token", ["x", "W10=", "WzFd", "bnVsbA==", "WyJhIiwxLDIsM10=", "A" * 600])
async def test_a_token_that_nobody_gave_out_is_refused_or_harmless(room: Room, token: str) -> None:
    await room.add_node("n1")
    await room.commands.issue("alice", order("n1"))
    request = admin_pb2.ListCommandsRequest(page=admin_pb2.Page(token=token))
    try:
        await room.commands.list_page(request)
    except Refusal as refusal:
        assert refusal.reason == Reason.INVALID_ARGUMENT


async def test_what_does_not_exist_is_not_found(room: Room) -> None:
    with pytest.raises(Refusal) as refused:
        await room.commands.get(b"x" * 16)
    assert refused.value.reason == Reason.NOT_FOUND
    with pytest.raises(Refusal) as refused:
        async for _ in room.commands.watch(admin_pb2.WatchCommandsRequest(issue_id="none")):
            pass
    assert refused.value.reason == Reason.NOT_FOUND


async def collect(changes: AsyncIterator[admin_pb2.WatchCommandsResponse]) -> list[admin_pb2.WatchCommandsResponse]:
    return [answer async for answer in changes]


async def test_a_watch_begins_with_what_is_there_and_ends_when_all_is_final(room: Room) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    issued = await room.commands.issue("alice", order("n1", count=3))
    claimed = await room.claim(node.node_id)
    await room.commands.record_reports(node.node_id, [report(claimed[0], wire.COMMAND_STATE_SUCCEEDED)])
    watch = room.commands.watch(admin_pb2.WatchCommandsRequest(issue_id=issued.issue_id, until_final=True))
    first = await anext(watch)
    assert [view.monotonic_seq for view in first.commands] == [1, 2, 3]
    assert first.open == 2
    rest = asyncio.ensure_future(collect(watch))
    for command in claimed[1:]:
        await room.commands.record_reports(node.node_id, [report(command, wire.COMMAND_STATE_ACCEPTED)])
        await room.commands.record_reports(node.node_id, [report(command, wire.COMMAND_STATE_FAILED)])
    answers = await asyncio.wait_for(rest, 10)
    last = {view.monotonic_seq: view.state for answer in answers for view in answer.commands}
    assert last == {2: wire.COMMAND_STATE_FAILED, 3: wire.COMMAND_STATE_FAILED}
    assert answers[-1].open == 0


async def test_a_watch_of_an_issue_that_has_ended_ends_at_once(room: Room) -> None:
    await room.add_node("n1")
    issued = await room.commands.issue("alice", order("n1"))
    await room.commands.cancel("alice", issue_id=issued.issue_id)
    watch = room.commands.watch(admin_pb2.WatchCommandsRequest(issue_id=issued.issue_id, until_final=True))
    answers = await asyncio.wait_for(collect(watch), 10)
    assert [answer.open for answer in answers] == [0]


async def test_a_slow_watcher_reads_anew_and_misses_no_end(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MAX_WAITING_KEYS", 2)
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    issued = await room.commands.issue("alice", order("n1", count=5))
    watch = room.commands.watch(admin_pb2.WatchCommandsRequest(issue_id=issued.issue_id, until_final=True, brief=True))
    first = await anext(watch)
    assert first.open == 5
    assert {view.arguments for view in first.commands} == {b""}
    claimed = await room.claim(node.node_id)
    await room.commands.record_reports(node.node_id, [report(each, wire.COMMAND_STATE_SUCCEEDED) for each in claimed])
    answers = await asyncio.wait_for(collect(watch), 10)
    assert [len(answer.commands) for answer in answers] == [5]
    assert answers[-1].open == 0


async def test_a_watcher_that_lags_keeps_few_rows_and_reads_the_others(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "MAX_WAITING_BYTES", 3000)
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    issued = await room.commands.issue("alice", order("n1", count=3))
    watch = room.commands.watch(admin_pb2.WatchCommandsRequest(issue_id=issued.issue_id, until_final=True))
    await anext(watch)
    for command in await room.claim(node.node_id):
        done = report(command, wire.COMMAND_STATE_SUCCEEDED, output=b"x" * 900)
        await room.commands.record_reports(node.node_id, [done])
    answers = await asyncio.wait_for(collect(watch), 10)
    views = [view for answer in answers for view in answer.commands]
    assert [(view.state, len(view.output)) for view in views] == [(wire.COMMAND_STATE_SUCCEEDED, 900)] * 3


async def test_watching_everything_shows_what_comes_from_now_on(room: Room) -> None:
    await room.add_node("n1")
    await room.commands.issue("alice", order("n1"))
    watch = room.commands.watch(admin_pb2.WatchCommandsRequest())
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    issued = await room.commands.issue("alice", order("n1", count=2))
    answer = await asyncio.wait_for(waiting, 10)
    assert [view.command_id for view in answer.commands] == [each.command_id for each in issued.issued]
    await watch.aclose()  # type: ignore[attr-defined]
    assert not room.commands._announcer.feed.watched
