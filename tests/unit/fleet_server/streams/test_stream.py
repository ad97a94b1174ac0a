"""One stream: the order of the wire, what ends it, and what its end does."""

import asyncio

import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import command_pb2, gateway_pb2, session_pb2, trust_pb2
from fleet_server.streams import outbox, stream
from fleet_server.streams.frames import BadFrame
from fleet_server.streams.notice_lane import MAX_WAITING_BYTES as MAX_NOTICE_BYTES
from fleet_server.streams.outbox import MAX_QUEUED_BYTES
from fleet_server.streams.report_lane import MAX_WAITING, HeldReports
from fleet_server.streams.rules import MAX_RESENDS
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.streams.wire import Wire


def _reports(*numbers: int) -> command_pb2.ReportList:
    return command_pb2.ReportList(
        reports=[command_pb2.Report(report_no=number, monotonic_seq=number, command_id=bytes(16)) for number in numbers]
    )


@pytest.fixture(autouse=True)
def acknowledged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for company otherwise leaves within a few turns of the event loop."""
    monkeypatch.setattr(outbox, "ACK_WAIT_S", 0.0)


async def test_the_welcome_is_first_and_a_newer_bundle_follows(clock: MockClock) -> None:
    wire = Wire(clock)
    wire.trust.bundle.version = (1, 2)
    await wire.settle()
    assert wire.kinds() == ["welcome", "trust_bundle"]


async def test_reports_are_acknowledged_after_they_are_recorded(wire: Wire) -> None:
    await wire.say(reports=_reports(1, 2))
    assert [control.result_ack.report_no for control in wire.heard()] == [2]
    assert [report.report_no for report in wire.commands.recorded[0]] == [1, 2]


async def test_while_the_database_is_away_pings_flow_and_nothing_is_acknowledged(wire: Wire, clock: MockClock) -> None:
    wire.commands.away = [Refusal(Reason.UNAVAILABLE, "away")]
    await wire.say(reports=_reports(1))
    await wire.say(reports=_reports(2))
    wire.stream.send(gateway_pb2.ServerControl(ping=gateway_pb2.Ping(number=1)))
    await wire.settle()
    assert wire.kinds() == ["ping"]
    await clock.advance(0.1)
    await wire.settle()
    assert [control.result_ack.report_no for control in wire.heard()] == [2]
    assert [[report.report_no for report in batch] for batch in wire.commands.recorded] == [[1, 2]]


async def test_what_cannot_be_recorded_now_is_recorded_later_and_the_stream_stays(wire: Wire, clock: MockClock) -> None:
    wire.commands.away = [Refusal(Reason.UNAVAILABLE, "away")]
    for seq in (1, 2):
        await wire.say(command_refused=command_pb2.CommandRefused(monotonic_seq=seq))
    assert wire.commands.told == []
    await clock.advance(0.1)
    await wire.settle()
    assert [refused.monotonic_seq for _, refused in wire.commands.told] == [1, 2]
    assert not wire.running.done()


async def test_a_node_that_refuses_without_end_is_read_no_faster_than_it_is_recorded(wire: Wire) -> None:
    """A node in wrong hands must not fill the writer's queue, which all others share."""
    held = asyncio.Event()
    wire.commands.record_statement_refused = lambda *_: held.wait()  # type: ignore[method-assign,assignment]
    for _ in range(200):
        await wire.say(statement_refused=command_pb2.StatementRefused(reason="GAP"))
    assert wire.transport.incoming.qsize() > 100
    held.set()
    await wire.settle()
    await wire.settle()
    assert wire.transport.incoming.empty()
    assert not wire.running.done()


async def test_a_node_that_refuses_without_end_is_sent_a_bundle_a_few_times(wire: Wire) -> None:
    """It need not read them: copies would pile up, hundreds of kilobytes each."""
    refused = command_pb2.StatementRefused(reason="UNKNOWN_KEY")
    refused.bundle_version.generation = refused.bundle_version.number = 1
    for number in (2, 3):
        wire.trust.bundle.version = (1, number)
        for _ in range(20):
            await wire.say(statement_refused=refused)
        assert wire.kinds() == ["trust_bundle"] * MAX_RESENDS
    assert not wire.stream.ended


async def test_a_chain_that_one_frame_does_not_hold_goes_on_once_the_node_has_taken_a_part(wire: Wire) -> None:
    links = [trust_pb2.Signed(statement=bytes([number]) * (2**21 - 100)) for number in range(3)]
    wire.trust.bundle_chain_from = lambda generation, number: links[generation - 1 :]
    wire.trust.bundle.version = (4, 1)
    await wire.settle()

    def applied(generation: int, number: int = 1, *, ok: bool = True) -> gateway_pb2.BundleApplied:
        version = session_pb2.BundleVersion(generation=generation, number=number)
        return gateway_pb2.BundleApplied(version=version, applied=ok)

    wire.heard()
    wire.stream.bundles.offer()
    await wire.settle()
    for generation in (2, 3):
        (sent,) = wire.heard()
        assert list(sent.trust_bundle.bundles) == [links[generation - 2]]
        await wire.say(bundle_applied=applied(generation - 1, ok=False))
        assert wire.heard() == [], "a node that takes nothing is sent nothing more"
        await wire.say(bundle_applied=applied(generation))
    (sent,) = wire.heard()
    assert list(sent.trust_bundle.bundles) == [links[2]]
    await wire.say(bundle_applied=applied(4))
    await wire.say(bundle_applied=applied(3, 7))
    assert wire.heard() == []


async def test_large_notices_wait_in_a_bounded_number_of_bytes(wire: Wire) -> None:
    """While the database is away a node could leave thirty frames here, of a MiB each."""
    held = asyncio.Event()
    wire.commands.record_statement_refused = lambda *_: held.wait()  # type: ignore[method-assign,assignment]
    refused = command_pb2.StatementRefused(reason="GAP", detail="x" * MAX_NOTICE_BYTES)
    for _ in range(10):
        await wire.say(statement_refused=refused)
    assert wire.transport.incoming.qsize() == 9
    held.set()
    while wire.transport.incoming.qsize():
        await wire.settle()
    await wire.say(statement_refused=command_pb2.StatementRefused(reason="GAP"))
    assert not wire.running.done()


async def test_large_notices_of_many_streams_count_with_the_reports_of_all(clock: MockClock) -> None:
    shared = HeldReports(8 * 1024)
    first, second = (Wire(clock, node_id=name, held_reports=shared) for name in ("n1", "n2"))
    over = asyncio.Event()
    for wire in (first, second):
        await wire.settle()
        wire.commands.record_statement_refused = lambda *_: over.wait()  # type: ignore[method-assign,assignment]
    for size_bytes in (7000, 2000, 1):
        await first.say(statement_refused=command_pb2.StatementRefused(reason="GAP", detail="x" * size_bytes))
    assert first.transport.incoming.qsize() == 1
    assert shared.held_bytes > 9000
    await second.say(statement_refused=command_pb2.StatementRefused(reason="GAP"))
    assert second.transport.incoming.empty()
    over.set()
    for wire in (first, second):
        await wire.settle()
        await wire.settle()
        assert wire.transport.incoming.empty()
    assert (shared.held_bytes, shared.holders) == (0, 0)


async def test_a_notice_that_cannot_be_recorded_gives_back_what_it_held(clock: MockClock) -> None:
    shared = HeldReports()
    wire = Wire(clock, held_reports=shared)
    await wire.settle()

    async def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    wire.commands.record_statement_refused = fail  # type: ignore[method-assign,assignment]
    await wire.say(statement_refused=command_pb2.StatementRefused(reason="GAP"))
    assert (await wire.wait_refusal()).reason is Reason.INTERNAL
    assert (shared.held_bytes, shared.holders) == (0, 0)


@pytest.mark.parametrize("reason", [Reason.UNAVAILABLE, Reason.OVERLOADED, Reason.CHALLENGE_EXPIRED])
async def test_a_proof_that_comes_while_the_database_is_away_ends_no_session_that_lasts(
    wire: Wire, reason: Reason
) -> None:
    """The next beat asks again; a proof that waited so long that its challenge expired is no worse."""
    until_ms = wire.stream.pulse.session_expires_at_ms
    wire.stream.pulse.reauth_asked = True
    wire.sessions.answers = [Refusal(reason, "away"), until_ms + 1]
    await wire.say(reauth_proof=trust_pb2.Signed(statement=b"proof"))
    assert not wire.stream.ended
    assert not wire.stream.pulse.reauth_asked
    await wire.say(reauth_proof=trust_pb2.Signed(statement=b"proof"))
    assert wire.stream.pulse.session_expires_at_ms == until_ms + 1


async def test_a_wrong_proof_ends_the_stream(wire: Wire) -> None:
    wire.sessions.answers = [Refusal(Reason.BAD_PROOF, "not by this node")]
    await wire.say(reauth_proof=trust_pb2.Signed(statement=b"proof"))
    assert (await wire.wait_refusal()).reason is Reason.BAD_PROOF


async def test_a_reason_that_a_node_made_up_is_no_label(wire: Wire) -> None:
    await wire.say(goodbye=gateway_pb2.Goodbye(reason="x7f3"))
    await asyncio.wait_for(wire.running, 5)
    assert wire.stream.close_reason == "GOODBYE"


async def test_large_results_wait_in_a_bounded_number_of_bytes(wire: Wire, clock: MockClock) -> None:
    """While the database is away a node could leave two thousand results here, of a quarter MiB or more each."""
    wire.commands.away = [Refusal(Reason.UNAVAILABLE, "away")]
    output = bytes(256 * 1024)
    for number in range(1, 101):
        report = command_pb2.Report(report_no=number, monotonic_seq=number, command_id=bytes(16), output=output)
        await wire.say(reports=command_pb2.ReportList(reports=[report]))
    assert wire.transport.incoming.qsize() > 80
    await clock.advance(0.1)
    while wire.transport.incoming.qsize():
        await wire.settle()
    await wire.settle()
    assert [report.report_no for batch in wire.commands.recorded for report in batch] == list(range(1, 101))


async def test_a_reader_that_waits_for_room_ends_with_a_stream_that_cannot_record(wire: Wire) -> None:
    await wire.say(reports=_reports(1))
    held = asyncio.Event()

    async def fail(*_: object) -> None:
        await held.wait()
        raise RuntimeError("a bug")

    wire.commands.record_reports = fail  # type: ignore[method-assign]
    await wire.say(reports=_reports(2))
    await wire.say(reports=_reports(*range(3, 3 + MAX_WAITING)))
    await wire.say(reports=_reports(5000))
    held.set()
    assert (await wire.wait_refusal()).reason is Reason.INTERNAL
    await wire.raw(None)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_goodbye_ends_the_stream_in_order(wire: Wire) -> None:
    await wire.say(goodbye=gateway_pb2.Goodbye(reason="TAKEOVER"))
    await asyncio.wait_for(wire.running, 5)
    assert wire.stream.close_reason == "GOODBYE_TAKEOVER"
    assert wire.telemetry.closed == 1


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (BadFrame(Reason.FRAME_TOO_LARGE, "too large"), Reason.FRAME_TOO_LARGE),
        (gateway_pb2.NodeFrame(hello=gateway_pb2.Hello()), Reason.MALFORMED),
        (gateway_pb2.NodeFrame(control=gateway_pb2.ControlFrame(counter=1, body=b"", mac=bytes(32))), Reason.BAD_PROOF),
    ],
)
async def test_a_bad_frame_is_named_and_ends_the_stream(
    wire: Wire, frame: gateway_pb2.NodeFrame | BadFrame, reason: Reason
) -> None:
    await wire.raw(frame)
    assert (await wire.wait_refusal()).reason is reason
    (error,) = wire.heard()
    assert error.error.reason == reason
    assert wire.stream.close_reason == reason


@pytest.mark.parametrize("body", [{"reports": command_pb2.ReportList()}, {}])
async def test_an_empty_body_is_malformed(wire: Wire, body: dict[str, object]) -> None:
    await wire.say(**body)
    assert (await wire.wait_refusal()).reason is Reason.MALFORMED


async def test_a_refusal_of_what_was_never_sent_is_malformed(wire: Wire) -> None:
    await wire.say(statement_refused=command_pb2.StatementRefused(last_accepted_seq=2**63))
    assert (await wire.wait_refusal()).reason is Reason.MALFORMED


async def test_eof_ends_the_stream_without_a_refusal(wire: Wire) -> None:
    await wire.raw(None)
    await asyncio.wait_for(wire.running, 5)
    assert wire.stream.close_reason == "EOF"


async def test_the_first_reason_to_end_stands(wire: Wire) -> None:
    wire.stream.end(Refusal(Reason.SUPERSEDED, "newer"))
    wire.stream.end(Refusal(Reason.DRAINING, "later"))
    assert (await wire.wait_refusal()).reason is Reason.SUPERSEDED


async def test_a_peer_that_stopped_reading_holds_nothing_up(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_LAST_WRITE_S", 0.01)
    wire.transport.reads.clear()
    for number in range(1, 600):
        wire.stream.send(gateway_pb2.ServerControl(ping=gateway_pb2.Ping(number=number)))
    refusal = await wire.wait_refusal()
    assert refusal.reason is Reason.HEARTBEAT_LOST
    assert wire.telemetry.closed == 1


async def test_a_peer_that_reads_nothing_loses_its_stream_before_many_megabytes_wait_for_it(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_LAST_WRITE_S", 0.01)
    await wire.settle()
    wire.transport.reads.clear()
    large = trust_pb2.Signed(statement=bytes(MAX_QUEUED_BYTES // 4))
    for _ in range(5):  # the writer has the first of them
        wire.stream.send(gateway_pb2.ServerControl(trust_bundle=gateway_pb2.TrustBundles(bundles=[large])))
        await wire.settle()
    assert not wire.stream.ended
    wire.stream.send(gateway_pb2.ServerControl(ping=gateway_pb2.Ping()))
    assert (await wire.wait_refusal()).reason is Reason.HEARTBEAT_LOST


async def test_a_pong_tells_round_trip_offset_and_how_far_the_node_has_answered(wire: Wire, clock: MockClock) -> None:
    await wire.say(reports=_reports(7))
    number = wire.stream.pulse.beat(clock.monotonic(), interval_ms=1_000)
    await clock.advance(0.010)
    await wire.say(pong=gateway_pb2.Pong(number=number, node_time_ms=clock.now_ms() + 250))
    said = wire.nodes.alive[-1]
    assert said["rtt_us"] == pytest.approx(10_000, abs=10)
    assert said["clock_offset_ms"] == pytest.approx(255, abs=1)
    assert said["accepted_seq"] == 7


async def test_telemetry_goes_to_its_room_and_its_ack_comes_back(wire: Wire) -> None:
    await wire.raw(gateway_pb2.NodeFrame(telemetry=b"batch"))
    wire.telemetry.ack(41)
    await wire.settle()
    assert wire.telemetry.frames == [b"batch"]
    assert [control.telemetry_ack.batch_seq for control in wire.heard()] == [41]


async def test_a_nodes_audit_goes_to_its_room_and_its_ack_comes_back(wire: Wire) -> None:
    wire.node_audit.answers = [gateway_pb2.AuditAck(number=1)]
    await wire.say(audit=gateway_pb2.AuditRows(rows=[gateway_pb2.AuditRow(number=1)]))
    assert [control.audit_ack.number for control in wire.heard()] == [1]


async def test_a_bug_in_a_room_ends_the_stream_with_an_incident_and_no_text(wire: Wire) -> None:
    wire.commands.away = [RuntimeError("password=hunter2")]  # type: ignore[list-item]
    await wire.say(reports=_reports(1))
    refusal = await wire.wait_refusal()
    assert refusal.reason is Reason.INTERNAL
    assert "hunter2" not in refusal.detail


# -- credentials ------------------------------------------------------------------------------------------------------
async def test_orders_are_said_once_on_a_stream_and_again_when_they_change(clock: MockClock) -> None:
    wire = Wire(clock)
    await wire.settle()
    order = gateway_pb2.ServerControl(rotate_keys=gateway_pb2.RotateNodeKeys(identity=True))
    wire.sessions.rotations.ordered = (order,)
    for _ in range(2):
        wire.stream.refresh_membership()
        await wire.settle()
    heard = [control for control in wire.heard() if control.HasField("rotate_keys")]
    assert heard == [order]


async def test_new_keys_are_answered_and_an_answer_is_recorded(clock: MockClock) -> None:
    wire = Wire(clock)
    await wire.settle()
    statement = trust_pb2.Signed(statement=b"new keys")
    answer = gateway_pb2.RotationAnswer(subject=gateway_pb2.ROTATION_SUBJECT_API_KEY, applied=True)
    await wire.say(node_key_rotation=statement)
    await wire.say(rotation_answer=answer)
    assert wire.sessions.rotations.told == [statement, answer]
    assert [control.node_keys.taken for control in wire.heard() if control.HasField("node_keys")] == [True]
