"""A result is recorded once, whatever arrives twice, late, or from elsewhere."""

import asyncio
import threading

import pytest

from fleet.v1 import command_pb2 as wire
from fleet_server.commands import gathering, reports, rules
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.commands.room import Room, order, report


async def test_the_first_result_stands(room: Room) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1"))
    command = (await room.claim(node.node_id))[0]
    for state in (wire.COMMAND_STATE_SUCCEEDED, wire.COMMAND_STATE_FAILED, wire.COMMAND_STATE_ACCEPTED):
        await room.commands.record_reports(node.node_id, [report(command, state, reason=str(state))])
    view = await room.commands.get(command.command_id)
    assert (view.state, view.reason) == (wire.COMMAND_STATE_SUCCEEDED, str(wire.COMMAND_STATE_SUCCEEDED))
    assert room.metrics.commands.finished.labels("SUCCEEDED").value == 1
    assert room.metrics.commands.finished.labels("FAILED").value == 0


async def test_a_node_speaks_of_its_own_commands_only(room: Room) -> None:
    first, second = await room.add_node("n1"), await room.add_node("n2")
    await room.open_stream(first.node_id)
    await room.commands.issue("alice", order("n1"))
    command = (await room.claim(first.node_id))[0]
    forged_id = report(command, wire.COMMAND_STATE_SUCCEEDED)
    forged_id.command_id = b"x" * 16
    forged_seq = report(command, wire.COMMAND_STATE_SUCCEEDED)
    forged_seq.monotonic_seq = 2**64 - 1
    await room.commands.record_reports(second.node_id, [report(command, wire.COMMAND_STATE_SUCCEEDED)])
    await room.commands.record_reports(first.node_id, [forged_id, forged_seq] * 8)
    assert await room.state(first.node_id, 1) == wire.COMMAND_STATE_SENT
    unmatched = [detail["unmatched"] for detail in await room.audited("command.reported")]
    assert [len(each) for each in unmatched] == [1, 16]


async def test_what_a_node_makes_up_keeps_nobodys_results_out_of_the_audit(room: Room) -> None:
    """Both are written with one row, and one that is too large is kept as its hash alone."""
    node, liar = await room.add_node("n1"), await room.add_node("n2")
    await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1"))
    command = (await room.claim(node.node_id))[0]
    made_up = [wire.Report(report_no=no, monotonic_seq=2**62 + no, command_id=b"x" * 16) for no in range(1, 4001)]
    await asyncio.gather(
        room.commands.record_reports(node.node_id, [report(command, wire.COMMAND_STATE_SUCCEEDED)]),
        room.commands.record_reports(liar.node_id, made_up),
    )
    [detail] = await room.audited("command.reported")
    assert detail["nodes"] == {node.node_id: {"SUCCEEDED": [1]}}
    assert (len(detail["unmatched"]), detail["unmatched_count"]) == (100, 4000)


async def test_a_batch_that_is_larger_than_a_row_is_audited_in_several(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "_AUDITED_STATES", 3)
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1", count=7))
    done = [report(command, wire.COMMAND_STATE_SUCCEEDED) for command in await room.claim(node.node_id)]
    await room.commands.record_reports(node.node_id, done)
    rows = await room.audited("command.reported")
    assert [row["nodes"][node.node_id]["SUCCEEDED"] for row in rows] == [[1, 2, 3], [4, 5, 6], [7]]


async def test_what_a_node_may_write_is_bounded_and_plain(room: Room, clock: MockClock) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1"))
    command = (await room.claim(node.node_id))[0]
    huge = report(
        command,
        wire.COMMAND_STATE_FAILED,
        output=b"o" * (rules.MAX_OUTPUT_BYTES + 1),
        reason="r" * 1000,
        error="a\x00b" * 5000,
        finished_at_ms=2**62,
        started_at_ms=-5,
    )
    await room.commands.record_reports(node.node_id, [huge])
    view = await room.commands.get(command.command_id)
    assert (len(view.output), view.output_truncated) == (rules.MAX_OUTPUT_BYTES, True)
    assert (len(view.reason), len(view.error)) == (rules.MAX_REASON_CHARS, rules.MAX_ERROR_CHARS)
    assert (view.finished_at_ms, view.started_at_ms) == (clock.now_ms(), 0)


async def test_a_node_cannot_borrow_the_servers_words(room: Room) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1"))
    command = (await room.claim(node.node_id))[0]
    await room.commands.record_reports(
        node.node_id, [report(command, wire.COMMAND_STATE_INTERRUPTED, reason="FORGOTTEN")]
    )
    await room.commands.record_reports(node.node_id, [report(command, wire.COMMAND_STATE_SUCCEEDED)])
    assert await room.state(node.node_id, 1) == wire.COMMAND_STATE_INTERRUPTED


async def test_frames_of_many_nodes_are_written_together(room: Room) -> None:
    nodes = [await room.add_node(f"n{number}") for number in range(6)]
    await room.commands.issue("alice", order("*", count=10))
    claimed = {}
    for node in nodes:
        await room.open_stream(node.node_id)
        claimed[node.node_id] = await room.claim(node.node_id)
    frames = [
        (node_id, [report(command, state) for command in commands])
        for state in (wire.COMMAND_STATE_ACCEPTED, wire.COMMAND_STATE_SUCCEEDED)
        for node_id, commands in claimed.items()
    ]
    await asyncio.gather(*(room.commands.record_reports(*frame) for frame in frames))
    assert await room.query("SELECT DISTINCT state FROM commands") == [(wire.COMMAND_STATE_SUCCEEDED,)]
    assert len(await room.audited("command.reported")) < len(frames)


async def test_a_seq_conflict_is_loud_and_leaves_a_result_alone(room: Room) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1", count=2))
    done, lost = await room.claim(node.node_id)
    await room.commands.record_reports(node.node_id, [report(done, wire.COMMAND_STATE_SUCCEEDED)])
    for command in (done, lost):
        refused = wire.CommandRefused(
            command_id=command.command_id,
            monotonic_seq=command.seq,
            reason="SEQ_CONFLICT",
            detail="another stands here",
        )
        await room.commands.record_command_refused(node.node_id, await room.epoch(node.node_id), refused)
    assert await room.state(node.node_id, 1) == wire.COMMAND_STATE_SUCCEEDED
    assert (await room.commands.get(lost.command_id)).reason == "SEQ_CONFLICT"
    assert len(await room.audited("command.refused")) == 2


async def test_a_refused_statement_changes_no_state_and_is_audited(room: Room) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1"))
    await room.claim(node.node_id)
    await room.commands.record_statement_refused(
        node.node_id,
        await room.epoch(node.node_id),
        wire.StatementRefused(statement_sha256=b"s" * 32, reason="WRONG_STREAM", detail="x" * 9999),
    )
    assert await room.state(node.node_id, 1) == wire.COMMAND_STATE_SENT
    assert (await room.audited("statement.refused"))[0]["reason"] == "WRONG_STREAM"


async def test_a_command_whose_row_somebody_holds_keeps_up_its_own_node_and_no_other(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    if room.database.dialect == "sqlite":
        pytest.skip("SQLite has one writer")
    monkeypatch.setattr(gathering, "TOGETHER_S", 0.05)
    nodes = [(await room.add_node(name)).node_id for name in ("n1", "n2")]
    for node_id in nodes:
        await room.open_stream(node_id)
    await room.commands.issue("alice", order("*"))
    done = [report((await room.claim(node_id))[0], wire.COMMAND_STATE_SUCCEEDED) for node_id in nodes]
    begun, goes_on = threading.Event(), threading.Event()

    def occupy(_: object) -> None:
        begun.set()
        assert goes_on.wait(10)

    with room.database.writer._engine.connect() as holding:
        holding.exec_driver_sql("SELECT 1 FROM commands WHERE node_id = %s FOR UPDATE", (nodes[0],)).all()
        occupied = room.database.write_nowait(occupy)
        assert await asyncio.to_thread(begun.wait, 10)
        held, other = (
            asyncio.ensure_future(room.commands.record_reports(node_id, [each]))
            for node_id, each in zip(nodes, done, strict=True)
        )
        await asyncio.sleep(0)
        assert room.database.writer.depth() == 1, "they are one batch"
        goes_on.set()
        await asyncio.gather(occupied, other)
        assert not held.done()
    await held
    assert [await room.state(node_id, 1) for node_id in nodes] == [wire.COMMAND_STATE_SUCCEEDED] * 2
