"""The node's own audit: what stands in it, when it is durable, what a kill leaves, what is kept and what is counted."""

import json
from pathlib import Path

import pytest

from fleet.envelope import Domain
from fleet.node_audit import MAX_DETAIL_BYTES, Begun, NodeAuditKind
from fleet.sequence import command_digest
from fleet.v1 import gateway_pb2, trust_pb2
from fleet.v1.command_pb2 import CommandState
from fleet_node.commands import audit_log, audit_rows
from fleet_node.commands.audit_log import AuditLog
from fleet_node.commands.audit_rows import AuditEvent
from fleet_node.commands.audit_sender import GATHER_S
from fleet_node.commands.store import Batch, JournalStore
from tests.fakes.clock import MockClock
from tests.unit.fleet_node.commands.audit_reader import read_audit, read_audit_of
from tests.unit.fleet_node.commands.node import CLUSTER, NODE, TestNode
from tests.unit.fleet_node.commands.test_store import change, copy_as_left, entry, path

__all__ = ["path"]

SUCCEEDED = CommandState.COMMAND_STATE_SUCCEEDED


def an_event(size: int = 10) -> AuditEvent:
    return audit_rows.event(NodeAuditKind.DRAIN_ORDERED, 7, {"detail": "x" * size})


async def test_accepted_and_ended_commands_stand_in_rows_for_many(node: TestNode) -> None:
    commands = [node.command(device=f"s3cret-{number}") for number in range(5)]

    await node.give(*commands)
    for command in commands:
        await node.wait_reported(command, "SUCCEEDED")
    audit = await node.journal.query(lambda store: read_audit(store, NODE))

    assert audit.accepted == {command.monotonic_seq: command_digest(command) for command in commands}
    assert audit.ended == dict.fromkeys(range(1, 6), "SUCCEEDED")
    assert audit.kinds() == ["command.accepted", "command.ended"]
    assert b"s3cret" not in b"".join(row.detail for row in audit.rows)


async def test_refusals_cancels_and_drains_stand_in_it(node: TestNode) -> None:
    held, unknown, unstarted = (
        node.command("probe.gate", gate="never"),
        node.command("probe.nothing"),
        node.command(seq=40),
    )
    await node.give(held, unknown)
    frame = node.frame(node.command())
    frame.signed.signatures[0].value = b"\0" * 64
    await node.stream.command_frame(frame)
    await node.cancel(unstarted)
    await node.cancel(held)
    node.service.drain(gateway_pb2.DrainNode(drain=True))
    node.service.drain(gateway_pb2.DrainNode(drain=True))
    node.service.drain(gateway_pb2.DrainNode(drain=False))
    node.service.audit(NodeAuditKind.BUNDLE_REFUSED, held=[1, 7], reason="ROLLBACK")
    await node.wait_reported(held, "CANCELLED")
    audit = await node.journal.query(lambda store: read_audit(store, NODE))

    assert audit.details("statement.refused")[0]["reason"] == "BAD_SIGNATURE"
    assert [one["outcome"] for one in audit.details("command.cancel")] == ["TOMBSTONED", "STOPPING"]
    assert audit.ended == {1: "CANCELLED", 2: "REJECTED"}
    assert audit.details("drain.ordered") == [{"deadline_ms": 0}]
    assert audit.details("drain.ended") == [{"deadline_ms": 0}]
    assert audit.details("bundle.refused") == [{"held": [1, 7], "reason": "ROLLBACK"}]


async def test_an_orderly_end_is_the_last_row(node: TestNode) -> None:
    await node.service.close()

    assert read_audit_of(node.path, NODE).kinds() == ["process.stopped"]


def test_what_was_durable_without_a_row_gets_one_after_a_kill(path: Path) -> None:
    store = JournalStore(path, NODE)
    store.apply([Batch(accepted=[entry(1), entry(2)], last_accepted_seq=2, last_report_no=2)], 0)
    store.apply([Batch(changed=[change(entry(1), 3, SUCCEEDED, b"out")], last_report_no=3)], 0)
    left = copy_as_left(path)
    store.close()

    audit = read_audit_of(left, NODE)

    assert set(audit.accepted) == {1, 2}
    assert audit.ended == {1: "SUCCEEDED"}
    again = read_audit_of(left, NODE)
    assert again.rows == audit.rows, "what was chained once is not chained again"


def test_a_result_that_is_told_again_is_no_second_end(path: Path) -> None:
    store = JournalStore(path, NODE)
    store.apply([Batch(accepted=[entry(1)], last_accepted_seq=1, last_report_no=1)], 0)
    done = change(entry(1), 2, SUCCEEDED)
    store.apply([Batch(changed=[done], last_report_no=2)], 0)
    again = change(entry(1), 3, SUCCEEDED)
    store.apply([Batch(told_again=[again], last_report_no=3)], 0)
    left = copy_as_left(path)
    store.close()

    assert read_audit_of(left, NODE).times_ended == {1: 1}


def test_a_row_is_due_before_too_much_waits(path: Path) -> None:
    store = JournalStore(path, NODE)
    for seq in range(1, audit_log.MAX_UNSEALED + 3):
        store.apply([Batch(accepted=[entry(seq)], last_accepted_seq=seq, last_report_no=seq)], 0)

    rows = store.audit.after(0)

    assert {row.kind for row in rows} == {"command.accepted"}
    assert len(rows) < 16, "one row stands for many"
    assert store.audit.unsealed < audit_log.MAX_UNSEALED
    assert len(read_audit(store, NODE).accepted) == audit_log.MAX_UNSEALED + 2
    store.close()


def test_what_is_acknowledged_is_forgotten_beyond_a_tail(path: Path) -> None:
    store = JournalStore(path, NODE)
    for _ in range(audit_log.KEEP_ROWS + 10):
        store.apply([Batch(audit=[an_event()])], 0)
    store.next_audit(5, 5)
    store.apply([Batch(audit=[an_event()])], 0)

    kept = store.audit.after(0)
    last = store.audit.number
    store.close()
    store = JournalStore(path, NODE)
    store.apply([Batch(audit=[an_event()])], 0)

    assert kept[0].number == 6, "nothing that the server does not have"
    assert store.audit.number == last + 1, "the head outlives what is forgotten"
    store.close()


def test_beyond_the_bound_rows_are_counted_and_the_gap_says_so(path: Path) -> None:
    store = JournalStore(path, NODE)
    store.audit = AuditLog(store.connection, NODE, max_unacked_bytes=2000)
    for _ in range(20):
        store.apply([Batch(audit=[an_event(100)])], 0)
    store.close()
    store = JournalStore(path, NODE)  # what was left out is not forgotten with the process
    store.audit = AuditLog(store.connection, NODE, max_unacked_bytes=2000)
    kept = store.audit.number
    store.next_audit(kept, kept)
    store.apply([Batch(audit=[an_event(100)])], 0)

    audit = read_audit(store, NODE)

    assert audit.kinds() == ["drain.ordered"] * kept + ["audit.gap", "drain.ordered"]
    assert audit.details("audit.gap") == [{"drain.ordered": 20 - kept}]
    store.close()


def test_rows_are_dropped_in_one_piece(path: Path) -> None:
    """Between the bound and half of it nothing is chained: a gap for each second row would tell nothing."""
    store = JournalStore(path, NODE)
    store.audit = AuditLog(store.connection, NODE, max_unacked_bytes=2000)
    for _ in range(20):
        store.apply([Batch(audit=[an_event(100)])], 0)
    kept = store.audit.number
    store.next_audit(1, 1)

    store.apply([Batch(audit=[an_event(100)])], 0)

    assert store.audit.number == kept
    store.close()


def test_what_a_failed_commit_held_is_counted(path: Path) -> None:
    store = JournalStore(path, NODE)
    store.audit.lost([an_event(), an_event()])

    store.apply([Batch(audit=[an_event()])], 0)

    assert read_audit(store, NODE).details("audit.gap") == [{"not_written": 2}]
    store.close()


def test_what_a_commit_held_that_could_not_be_written_at_all_is_counted(path: Path) -> None:
    store = JournalStore(path, NODE)
    endless = audit_rows.AuditEvent(NodeAuditKind.COMMAND_ENDED, 2**63, b"{}", items=3)
    with pytest.raises(ValueError, match="out of range"):
        store.apply([Batch(audit=[an_event(), endless])], 0)

    store.apply([Batch(audit=[an_event()])], 0)

    assert read_audit(store, NODE).details("audit.gap") == [{"not_written": 4}]
    store.close()


def test_no_row_is_larger_than_the_server_takes(path: Path) -> None:
    entries = [entry(seq) for seq in range(1, 257)]
    for one in entries:
        one.action, one.actor = f"{one.seq:03d}" + "ä" * 125, "ö" * 256

    details = [made.detail for made in audit_rows.accepted(entries)]

    assert max(map(len, details)) <= MAX_DETAIL_BYTES
    assert sum(len(json.loads(detail)["commands"]) for detail in details) == 256


async def next_frame(node: TestNode, clock: MockClock) -> gateway_pb2.AuditRows:
    """The next frame of the audit, whose rows have gathered."""
    while (frame := node.stream.next_audit()) is None:
        await clock.advance(GATHER_S)
        await node.journal.query(lambda store: None)
    return gateway_pb2.NodeControl.FromString(frame).audit


async def test_rows_go_out_one_frame_at_a_time_and_again_on_the_next_stream(node: TestNode) -> None:
    node.service.audit(NodeAuditKind.BUNDLE_APPLIED, version=[1, 8])
    first = await next_frame(node, node.clock)
    assert node.stream.next_audit() is None

    node.open_stream(binding=b"c" * 32)
    again = await next_frame(node, node.clock)
    node.service.audit_acked(gateway_pb2.AuditAck(number=again.rows[-1].number))
    node.service.audit(NodeAuditKind.BUNDLE_APPLIED, version=[1, 9])
    then = await next_frame(node, node.clock)

    assert again == first
    assert [row.number for row in then.rows] == [first.rows[-1].number + 1]


async def test_commands_that_come_while_rows_are_sent_gather_for_the_next_round(node: TestNode) -> None:
    node.service.audit(NodeAuditKind.BUNDLE_APPLIED, version=[1, 8])
    first = await next_frame(node, node.clock)
    for _ in range(3):
        command = node.command()
        await node.give(command)
        await node.wait_reported(command, "SUCCEEDED")

    node.service.audit_acked(gateway_pb2.AuditAck(number=first.rows[-1].number))
    for _ in range(5):
        await node.journal.query(lambda store: None)
    number = await node.journal.query(lambda store: store.audit.number)
    then = await next_frame(node, node.clock)

    assert number == first.rows[-1].number, "nothing was chained for them at once"
    assert [row.kind for row in then.rows] == ["command.accepted", "command.ended"]


async def test_a_server_that_lost_rows_gets_them_again(node: TestNode) -> None:
    for number in range(3):
        node.service.audit(NodeAuditKind.BUNDLE_APPLIED, version=[1, number])
    first = await next_frame(node, node.clock)
    node.service.audit_acked(gateway_pb2.AuditAck(number=3))
    node.service.audit(NodeAuditKind.BUNDLE_APPLIED, version=[1, 9])
    assert [row.number for row in (await next_frame(node, node.clock)).rows] == [4]

    node.service.audit_acked(gateway_pb2.AuditAck(number=1))

    assert [row.number for row in (await next_frame(node, node.clock)).rows] == [2, 3, 4]
    assert [row.number for row in first.rows] == [1, 2, 3]


async def test_a_server_that_takes_none_is_asked_again_when_it_said(node: TestNode) -> None:
    node.service.audit(NodeAuditKind.BUNDLE_APPLIED, version=[1, 8])
    first = await next_frame(node, node.clock)
    node.service.audit_acked(gateway_pb2.AuditAck(number=0, paused="OVER_QUOTA", retry_after_ms=60_000))
    started_s = node.clock.monotonic()

    again = await next_frame(node, node.clock)

    assert again == first
    assert node.clock.monotonic() - started_s >= 60


def floor_event(chain: int) -> AuditEvent:
    return audit_rows.floor(trust_pb2.FloorStatement(audit_chain=chain), 0, 9)


def an_ack(number: int, paused: str = "", chain: int = 0) -> gateway_pb2.AuditAck:
    return gateway_pb2.AuditAck(number=number, paused=paused, chain=chain)


def test_a_forked_chain_goes_on_in_the_next_one_without_loss_and_without_telling_twice(path: Path) -> None:
    store = JournalStore(path, NODE)
    for kind in (NodeAuditKind.BUNDLE_APPLIED, NodeAuditKind.JOURNAL_RESTORED, NodeAuditKind.PROCESS_STARTED):
        store.apply([Batch(audit=[audit_rows.event(kind, 5, {"n": 1})])], 0)
    store.apply([Batch(audit=[floor_event(2)])], 0)
    forked = store.audit.after(0)

    assert store.audit.answered(an_ack(1, "CHAIN_ENDED"), 4, 77)
    store.apply([Batch(audit=[an_event()])], 0)
    store.close()
    store = JournalStore(path, NODE)
    audit = read_audit(store, NODE)

    assert store.audit.chain == store.audit.next_chain == 2
    assert audit.kinds() == [
        "chain.begun",
        "journal.restored",
        "process.started",
        "floor.raised",
        "drain.ordered",
    ]
    begun = Begun.parse(audit.rows[0].detail)
    assert begun == Begun(0, 1, forked[0].hash, 4, forked[3].hash, "RESTORED")
    assert [(row.at_ms, row.detail) for row in audit.rows[1:4]] == [(row.at_ms, row.detail) for row in forked[1:]]
    store.close()


@pytest.mark.parametrize(
    ("ack", "sent", "begins", "continues"),
    [
        (an_ack(3), 3, True, 3),  # the server holds exactly what was sent: nothing behind it
        (an_ack(4), 4, True, 4),
        (an_ack(9), 4, True, 4),  # it holds more, and all of this chain agreed
        (an_ack(9), 3, False, 0),  # it holds more, and the next row may be another one
        (an_ack(2), 3, False, 0),  # it did not take all
        (an_ack(2, "OVER_QUOTA"), 3, False, 0),
        (an_ack(2, "CHAIN_ENDED"), 3, True, 2),
        (an_ack(0, "CHAIN_ENDED"), 3, True, 0),
        (an_ack(3, chain=1), 3, False, 0),
    ],
)
def test_the_next_chain_begins_once_it_is_known_up_to_where_both_sides_agree(
    path: Path, ack: gateway_pb2.AuditAck, sent: int, begins: bool, continues: int
) -> None:
    store = JournalStore(path, NODE)
    for event in (an_event(1), an_event(2), an_event(3), floor_event(1)):
        store.apply([Batch(audit=[event])], 0)

    assert store.audit.answered(ack, sent, 77) is begins
    rows = store.audit.after(0)
    if begins:
        begun = Begun.parse(rows[0].detail)
        assert (begun.number, begun.held_number, begun.reason) == (continues, 4, "ADOPTED")
        assert len(rows) == 1 + 4 - continues
        assert not store.audit.answered(an_ack(5, chain=1), 5, 77), "once"
    store.close()


def test_no_chain_begins_that_no_floor_named(path: Path) -> None:
    store = JournalStore(path, NODE)
    store.apply([Batch(audit=[an_event()])], 0)

    assert not store.audit.answered(an_ack(0, "CHAIN_ENDED"), 1, 77)
    store.close()


def test_a_kill_before_the_next_chain_is_durable_leaves_the_one_before(path: Path) -> None:
    store = JournalStore(path, NODE)
    store.apply([Batch(audit=[an_event(), floor_event(1)])], 0)
    for kinds in (["drain.ordered", "floor.raised"], ["chain.begun"]):
        left = JournalStore(copy_as_left(path), NODE)
        assert read_audit(left, NODE).kinds() == kinds
        assert left.audit.next_chain == 1
        left.close()
        store.audit.answered(an_ack(2), 2, 77)
    store.close()


async def test_a_node_whose_chain_forked_sends_the_next_one_and_listens_to_no_late_answer(node: TestNode) -> None:
    node.service.audit(NodeAuditKind.BUNDLE_APPLIED, version=[1, 8])
    statement = trust_pb2.FloorStatement(cluster_id=CLUSTER, node_id=NODE, audit_chain=1)
    await node.stream.floor_frame(node.authority.sign(Domain.FLOOR, statement.SerializeToString()))
    first = await next_frame(node, node.clock)
    assert (first.chain, [row.kind for row in first.rows]) == (0, ["bundle.applied", "floor.raised"])

    node.service.audit_acked(gateway_pb2.AuditAck(number=1, paused="CHAIN_ENDED", retry_after_ms=60_000))
    second = await next_frame(node, node.clock)
    node.service.audit_acked(gateway_pb2.AuditAck(number=9))

    assert (second.chain, [row.kind for row in second.rows]) == (1, ["chain.begun", "floor.raised"])
    assert node.service.hello().audit_chain == 1
    node.open_stream(binding=b"c" * 32)
    assert await next_frame(node, node.clock) == second


def test_a_pin_that_was_not_chained_is_told_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = JournalStore(path, NODE)
    with monkeypatch.context() as patch:
        patch.setattr(audit_log, "MAX_UNACKED_EVIDENCE_BYTES", 0)
        store.apply([Batch(audit=[audit_rows.owner_pinned("aa", "", 7)])], 0)
    assert store.audit.owner_pin == ""
    store.close()
    store = JournalStore(path, NODE)
    assert store.audit.owner_pin == ""
    store.apply([Batch(audit=[audit_rows.owner_pinned("bb", "", 8), an_event(), floor_event(1)])], 0)
    assert store.audit.answered(an_ack(0, "CHAIN_ENDED"), store.audit.number, 9)
    store.close()
    store = JournalStore(path, NODE)
    assert (store.audit.owner_pin, store.audit.chain) == ("bb", 1), "another chain forgets nothing"
    store.close()
