"""Commands are forgotten long after they ended, and never before."""

import asyncio
from collections.abc import Callable

import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2
from fleet.v1 import command_pb2 as wire
from fleet_server.commands import retention
from fleet_server.commands.retention_store import Most, pieces
from fleet_server.database.engine import Connection, Database
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.commands.room import Room, order, pruned, report

DAY_S = 86_400
SUCCEEDED = wire.COMMAND_STATE_SUCCEEDED
TABLES = ("command_issues", "commands", "command_runs")


async def left(room: Room) -> list[int]:
    """Rows of each table."""
    return [(await room.query(f"SELECT COUNT(*) FROM {table}"))[0][0] for table in TABLES]


async def end(room: Room, node_id: str, count: int = 100, **more: object) -> None:
    """The node takes its next commands and reports results."""
    claimed = await room.claim(node_id, limit=count)
    await room.commands.record_reports(node_id, [report(each, SUCCEEDED, **more) for each in claimed])


async def test_an_issue_goes_whole_so_long_after_its_last_command_ended(room: Room, clock: MockClock) -> None:
    fast, slow = await room.add_node("fast"), await room.add_node("slow")
    for node in (fast, slow):
        await room.open_stream(node.node_id)
    issued = await room.commands.issue("alice", order("*", count=2, ttl_s=20 * DAY_S))
    await end(room, fast.node_id)
    await clock.advance(15 * DAY_S)
    await end(room, slow.node_id)
    await clock.advance(80 * DAY_S)
    assert await pruned(room, clock) == 0, "95 days after the first ended, 80 after the last"
    assert len(await room.views(issued.issue_id)) == 4
    await clock.advance(10 * DAY_S + 60)
    assert await pruned(room, clock) == 4
    assert await left(room) == [0, 0, 0]
    assert room.metrics.commands.forgotten.value == 4


@pytest.mark.parametrize("waits", ["queued", "sent", "accepted", "cancelling"])
async def test_what_has_not_ended_keeps_its_issue_however_old(room: Room, clock: MockClock, waits: str) -> None:
    node, other = await room.add_node("n1"), await room.add_node("n2")
    for each in (node, other):
        await room.open_stream(each.node_id)
    issued = await room.commands.issue("alice", order("*", ttl_s=DAY_S))
    await end(room, other.node_id)
    if waits != "queued":
        (command,) = await room.claim(node.node_id)
        if waits == "accepted":
            await room.commands.record_reports(node.node_id, [report(command, wire.COMMAND_STATE_ACCEPTED)])
        if waits == "cancelling":
            await room.commands.cancel("bob", issue_id=issued.issue_id)
    await clock.advance(400 * DAY_S)
    assert await pruned(room, clock) == 0
    assert await left(room) == [1, 2, 2]


async def test_an_issue_that_nobody_took_is_forgotten_too(room: Room, clock: MockClock) -> None:
    await room.add_node("n1")
    refused = await room.commands.issue("alice", order("n1", action="host.unknown"))
    assert refused.issued_count == 0
    await clock.advance(91 * DAY_S)
    await pruned(room, clock)
    assert await left(room) == [0, 0, 0]


async def test_an_idempotency_key_lasts_as_long_as_its_issue(room: Room, clock: MockClock) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    request = order("n1", idempotency_key="once")
    first = await room.commands.issue("alice", request)
    await end(room, node.node_id)
    await clock.advance(89 * DAY_S)
    await pruned(room, clock)
    assert (await room.commands.issue("alice", request)).issue_id == first.issue_id
    await clock.advance(2 * DAY_S)
    await pruned(room, clock)
    again = await room.commands.issue("alice", request)
    assert (again.issue_id != first.issue_id, again.repeated_request) == (True, False)
    assert again.issued[0].monotonic_seq == 2, "no seq comes again"


async def test_a_report_about_a_forgotten_command_is_acknowledged_counted_and_audited(
    room: Room, clock: MockClock
) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1"))
    (command,) = await room.claim(node.node_id)
    told = report(command, SUCCEEDED)
    await room.commands.record_reports(node.node_id, [told])
    await clock.advance(91 * DAY_S)
    assert await pruned(room, clock) == 1
    unknown = wire.Report(command_id=(clock.now_ms()).to_bytes(6, "big") + bytes(10), monotonic_seq=7, state=SUCCEEDED)
    odd = wire.Report(command_id=b"odd", monotonic_seq=8, state=SUCCEEDED)
    await room.commands.record_reports(node.node_id, [told, unknown, odd])
    counts = room.metrics.commands.unmatched
    assert [counts.labels(kind).value for kind in ("forgotten", "unknown")] == [1, 2]
    assert (await room.audited("command.reported"))[-1]["unmatched_count"] == 3
    await room.commands.record_command_refused(
        node.node_id,
        await room.epoch(node.node_id),
        wire.CommandRefused(command_id=command.command_id, monotonic_seq=1, reason="FORGOTTEN"),
    )
    assert await left(room) == [0, 0, 0]


async def test_who_asks_for_a_forgotten_command_is_told_so(room: Room, clock: MockClock) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    issued = await room.commands.issue("alice", order("n1"))
    await end(room, node.node_id)
    await clock.advance(91 * DAY_S)
    await pruned(room, clock)
    with pytest.raises(Refusal, match="90 days after their issue has ended") as refused:
        await room.commands.get(issued.issued[0].command_id)
    assert refused.value.reason is Reason.NOT_FOUND
    for unknown in (clock.now_ms().to_bytes(6, "big") + bytes(10), b"short", bytes(16), b"too long by far for an id"):
        with pytest.raises(Refusal, match="commands list") as refused:
            await room.commands.get(unknown)
        assert "forgotten" not in refused.value.detail


async def test_a_result_that_turns_up_after_all_keeps_its_issue(room: Room, clock: MockClock) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    issued = await room.commands.issue("alice", order("n1", ttl_s=60))
    (command,) = await room.claim(node.node_id)
    await clock.advance(8 * DAY_S)
    await room.commands.sweep()
    (view,) = await room.views(issued.issue_id)
    assert view.reason == "NO_ANSWER"
    await clock.advance(80 * DAY_S)
    await room.commands.record_reports(node.node_id, [report(command, SUCCEEDED, finished_at_ms=clock.now_ms())])
    await clock.advance(80 * DAY_S)
    assert await pruned(room, clock) == 0
    await clock.advance(11 * DAY_S)
    assert await pruned(room, clock) == 1


async def test_small_transactions_may_end_anywhere_and_the_rest_is_forgotten_later(
    room: Room, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_MOST", Most(2, 2**20))
    monkeypatch.setattr(retention, "_MAX_ISSUES", 2)
    nodes = [await room.add_node(f"n{number}") for number in range(3)]
    for node in nodes:
        await room.open_stream(node.node_id)
    for _ in range(5):
        await room.commands.issue("alice", order("*", count=3))
    for node in nodes:
        await end(room, node.node_id, count=32)
    await clock.advance(91 * DAY_S)
    pruning = asyncio.ensure_future(room.commands.prune())
    while (await left(room))[1] == 45:
        await clock.advance(retention.PAUSE_S)
    pruning.cancel()
    await asyncio.wait([pruning])
    await room.database.write(lambda tx: None)  # what it had handed in is committed all the same
    some = (await left(room))[1]
    assert 0 < some < 45
    assert await pruned(room, clock) == some
    assert await left(room) == [0, 0, 0]


async def test_the_server_looks_once_an_hour_beside_what_it_expires(room: Room, clock: MockClock) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1"))
    await end(room, node.node_id)
    await clock.advance(91 * DAY_S)
    unsent = await room.commands.issue("alice", order("n1", ttl_s=60))
    running = asyncio.ensure_future(room.commands.run_expiry())
    await clock.wait_sleepers(2)
    await clock.advance(120)
    while (await room.views(unsent.issue_id))[0].state != wire.COMMAND_STATE_EXPIRED:
        await clock.advance(1)
    assert await left(room) == [2, 2, 2]
    await clock.advance(retention.INTERVAL_S)
    while await left(room) != [1, 1, 1]:
        await clock.advance(retention.PAUSE_S)
    running.cancel()
    await asyncio.wait([running])


async def test_two_replicas_may_forget_at_once(room: Room, clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_MOST", Most(3, 2**20))
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    for _ in range(6):
        await room.commands.issue("alice", order("n1", count=4))
    await end(room, node.node_id, count=32)
    await clock.advance(91 * DAY_S)
    other = room.another_replica()
    counts = await asyncio.gather(pruned(room, clock), pruned(room, clock, other))
    assert sum(counts) == 24
    assert await left(room) == [0, 0, 0]


@pytest.mark.parametrize(("first_seq", "count"), [(1, 2**31 - 1), (2**62 + 1, 5), (-5, 3), (1, 0), (2**63 - 1, 1024)])
async def test_a_run_that_no_server_wrote_stands_in_nobodys_way(
    room: Room, clock: MockClock, first_seq: int, count: int
) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    bad = await room.commands.issue("alice", order("n1"))
    await room.commands.issue("alice", order("n1"))
    await end(room, node.node_id)
    await room.tamper(
        "UPDATE command_runs SET first_seq = ?, count = ? WHERE issue_id = ?", first_seq, count, bad.issue_id
    )
    await clock.advance(91 * DAY_S)
    await pruned(room, clock)
    assert await left(room) == [1, 1, 1], "what was changed around the server is left to be looked at"


async def test_a_long_run_is_deleted_in_pieces_and_large_outputs_in_small_ones(room: Room, clock: MockClock) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    small = await room.commands.issue("alice", order("n1", count=5))
    await end(room, node.node_id)
    large = await room.commands.issue("alice", order("n1", count=5))
    await end(room, node.node_id, output=b"x" * 1000)
    most = Most(commands=4, output_bytes=2500)
    await clock.advance(1)

    def found(issued: admin_pb2.IssueCommandsResponse) -> Callable[[Connection], list[tuple[int, int]]]:
        ids = [issued.issue_id]
        return lambda conn: [(each.first_seq, each.end_seq) for each in pieces(conn, ids, clock.now_ms(), most)]

    assert await room.database.read(found(small)) == [(1, 5), (5, 6)]
    assert await room.database.read(found(large)) == [(6, 8), (8, 10), (10, 11)]


async def test_a_result_that_turns_up_while_its_issue_is_forgotten_keeps_it(room: Room, clock: MockClock) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    issued = await room.commands.issue("alice", order("n1", count=3))
    await end(room, node.node_id)
    await clock.advance(91 * DAY_S)
    before_ms = clock.now_ms() - 90 * DAY_S * 1000
    read = room.database.read

    async def overtaken(query: Callable[[Connection], object]) -> object:
        found = await read(query)
        await room.tamper("UPDATE commands SET finished_at_ms = ? WHERE seq = 2", before_ms + 1)
        return found

    room.database.read = overtaken  # type: ignore[method-assign,assignment]
    assert await pruned(room, clock) == 2
    room.database.read = read  # type: ignore[method-assign]
    assert await left(room) == [1, 1, 1]
    assert [view.monotonic_seq for view in await room.views(issued.issue_id)] == [2]


async def test_many_small_issues_cost_few_reads_and_few_transactions(
    room: Room, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database at full load has as many to forget each second as it issues."""
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    for _ in range(60):
        await room.commands.issue("alice", order("n1"))
    for _ in range(2):
        await end(room, node.node_id, count=32)
    await clock.advance(91 * DAY_S)
    reads, writes = (counted(monkeypatch, room.database, name) for name in ("read", "write"))
    assert await pruned(room, clock) == 60
    assert len(reads) <= 2
    assert len(writes) <= 8


def counted(monkeypatch: pytest.MonkeyPatch, database: Database, name: str) -> list[object]:
    """Grows by one with each call of that method."""
    calls: list[object] = []
    method = getattr(database, name)

    def count(work: object) -> object:
        calls.append(work)
        return method(work)

    monkeypatch.setattr(database, name, count)
    return calls
