"""One stream against a gateway over real gRPC and TLS: hello, lanes, orders, liveness, and every way to end."""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleet import envelope
from fleet.envelope import Domain, Signer
from fleet.errors import Reason, Refusal
from fleet.v1 import command_pb2, gateway_pb2, session_pb2, telemetry_pb2, trust_pb2
from fleet_node.link.link_status import LinkState
from tests.fakes.clock import MockClock
from tests.fakes.gateway import CLUSTER, NODE, FakeGateway, FakeInstallation
from tests.unit.fleet_node.link.rooms import running_link


def command(text: str) -> gateway_pb2.ServerControl:
    signed = trust_pb2.Signed(statement=text.encode())
    return gateway_pb2.ServerControl(commands=command_pb2.CommandFrame(signed=signed))


def cancel(text: str) -> gateway_pb2.ServerControl:
    signed = trust_pb2.Signed(statement=text.encode())
    return gateway_pb2.ServerControl(cancel=command_pb2.CancelFrame(signed=signed))


async def test_the_hello_says_what_the_node_holds_and_proves_who_it_is(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path) as node:
        stream = await gateway.wait_stream()
        hello = stream.hello
        assert (hello.last_accepted_seq, hello.first_report_no, hello.last_report_no) == (7, 3, 9)
        assert (hello.last_batch_seq, hello.max_in_flight, hello.software_version) == (5, 32, "1.2.3")
        assert (hello.bundle_version.generation, hello.bundle_version.number) == (1, 1)
        assert dict(hello.labels) == {"rack": "b4"}
        assert (stream.proof.node_id, stream.proof.cluster_id, stream.proof.takeover_of) == (NODE, CLUSTER, "")
        await node.wait(lambda: node.commands.contexts)
        binding = hashlib.sha256(stream.proof.SerializeToString()).digest()
        assert node.commands.contexts[0].stream_binding == binding
        await node.wait_state(LinkState.LIVE)
        assert node.link.status.stream_id == stream.stream_id


async def test_frames_go_out_by_lane_and_acknowledgements_reach_their_room(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path) as node:
        stream = await gateway.wait_stream()
        await node.wait(lambda: node.commands.contexts)
        node.telemetry.ready = [b"batch-1", b"batch-2"]
        node.commands.report(10)
        sent = await stream.wait_control("reports")
        assert [report.report_no for report in sent.reports.reports] == [10]
        await gateway.watch.wait_until(lambda: len(stream.telemetry) == 2, lambda: "no telemetry", 10)
        await stream.send(gateway_pb2.ServerControl(result_ack=command_pb2.ResultAck(report_no=10)))
        await stream.send(gateway_pb2.ServerControl(telemetry_ack=telemetry_pb2.TelemetryAck(batch_seq=6)))
        statement = command("1")
        statement.commands.reports_acked = 12
        await stream.send(statement)
        await stream.send(command("2"))
        await stream.send(gateway_pb2.ServerControl(drain=gateway_pb2.DrainNode(drain=True)))
        await node.wait(lambda: node.commands.drains)
        await node.wait(lambda: len(node.commands.taken) == 2)
        assert (node.commands.acks, node.telemetry.acks, node.commands.drains) == ([10, 12], [6], [True])


async def test_the_audit_goes_out_behind_reports_and_its_acknowledgement_comes_back(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path) as node:
        stream = await gateway.wait_stream()
        await node.wait(lambda: node.commands.contexts)
        node.commands.audit = gateway_pb2.AuditRows(rows=[gateway_pb2.AuditRow(number=3)])
        node.commands.report(10)
        await stream.wait_control("reports")
        sent = await stream.wait_control("audit")
        assert [row.number for row in sent.audit.rows] == [3]

        await stream.send(gateway_pb2.ServerControl(audit_ack=gateway_pb2.AuditAck(number=3)))

        await node.wait(lambda: [ack.number for ack in node.commands.audit_acks] == [3])


async def test_statements_keep_their_order(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path) as node:
        stream = await gateway.wait_stream()
        for number in range(20):
            await stream.send(command(str(number)))
        await node.wait(lambda: len(node.commands.taken) == 20)
        assert node.commands.taken == [f"command {number}" for number in range(20)]


async def test_a_cancel_gets_past_statements_that_wait_for_room(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path) as node:
        stream = await gateway.wait_stream()
        node.commands.room.clear()
        await stream.send(command("1"))
        await stream.send(cancel("1"))
        await node.wait(lambda: node.commands.taken)
        assert node.commands.taken == ["cancel 1"]
        assert (await stream.ping()).number == 1  # nor does the node go deaf meanwhile
        node.commands.room.set()
        await node.wait(lambda: len(node.commands.taken) == 2)


async def test_a_full_queue_does_not_hold_up_the_next_stream(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path) as node:
        first = await gateway.wait_stream()
        node.commands.room.clear()
        await first.send(command("1"))
        await first.ping()
        first.end(Refusal(Reason.UNAVAILABLE, "gone"))
        second = await gateway.wait_stream(2)
        assert second.proof.takeover_of == ""
        node.commands.room.set()


@pytest.mark.parametrize("frame", [command("1"), cancel("1")], ids=["command", "cancel"])
async def test_a_fault_while_a_frame_is_taken_ends_the_stream_instead_of_leaving_it_deaf(
    installation: FakeInstallation,
    gateway: FakeGateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    frame: gateway_pb2.ServerControl,
) -> None:
    async with running_link(installation, tmp_path) as node:
        stream = await gateway.wait_stream()
        monkeypatch.setattr(node.commands, "_note", raising(RuntimeError("a bug")))
        await stream.send(frame)
        await stream.wait_ended()
        await gateway.wait_stream(2)
        assert node.metrics.reconnects.labels("INTERNAL").value == 1


async def test_a_fault_while_a_bundle_is_judged_ends_the_stream_and_leaves_nothing_waiting(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_link(installation, tmp_path) as node:
        stream = await gateway.wait_stream()
        monkeypatch.setattr(node.trust, "offer", raising(RuntimeError("a bug")))
        chain = gateway_pb2.TrustBundles(bundles=[installation.bundle(2)])
        await stream.send(gateway_pb2.ServerControl(trust_bundle=chain))
        await stream.send(command("after"))
        await stream.wait_ended()
    assert node.commands.taken == []  # and the link has stopped: no statement still waits for the bundle


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise error

    return fail


async def test_a_statement_waits_for_the_bundle_before_it(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path) as node:
        stream = await gateway.wait_stream()
        seen: list[int] = []
        node.trust.changed(lambda state: seen.append(state.number))
        chain = gateway_pb2.TrustBundles(bundles=[installation.bundle(2)])
        await stream.send(gateway_pb2.ServerControl(trust_bundle=chain))
        await stream.send(command("after"))
        await node.wait(lambda: node.commands.taken)
        assert (seen, node.trust.state.number) == ([2], 2)
        applied = (await stream.wait_control("bundle_applied")).bundle_applied
        assert (applied.applied, applied.version.number) == (True, 2)


async def test_a_bundle_of_a_stranger_is_refused_and_the_stream_goes_on(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path) as node:
        stream = await gateway.wait_stream()
        forged = gateway_pb2.TrustBundles(bundles=[installation.bundle(2, signer=Signer.generate())])
        await stream.send(gateway_pb2.ServerControl(trust_bundle=forged))
        applied = (await stream.wait_control("bundle_applied")).bundle_applied
        assert (applied.applied, applied.version.number) == (False, 1)
        assert applied.reason.startswith("WRONG_SIGNER")
        assert (await stream.ping()).number == 1
        assert node.trust.state.number == 1


async def test_pings_are_answered_and_tell_round_trip_and_clock(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path) as node:
        stream = await gateway.wait_stream()
        pong = await stream.ping(4, rtt_us=1234)
        assert pong.number == 4
        status = node.link.live_status()
        assert status.rtt_us == 1234
        assert abs(status.clock_offset_ms) < 60_000


async def test_a_session_is_renewed_on_its_stream(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path) as node:
        stream = await gateway.wait_stream()
        reauth = gateway_pb2.Reauth(challenge=b"c" * 64, new_expires_at_ms=1)
        await stream.send(gateway_pb2.ServerControl(reauth=reauth))
        proof = (await stream.wait_control("reauth_proof")).reauth_proof
        raw = envelope.verify_one(proof, domain=Domain.REAUTH, public_key=node.keys.identity.public_key)
        said = session_pb2.ReauthStatement.FromString(raw)
        assert (said.challenge, said.stream_id) == (b"c" * 64, stream.stream_id)


async def test_frames_of_a_later_protocol_are_passed_over(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path):
        stream = await gateway.wait_stream()
        await stream.send(gateway_pb2.ServerControl(lease=trust_pb2.Signed(statement=b"later")))
        await stream.send(gateway_pb2.ServerControl())
        assert (await stream.ping()).number == 1


async def test_a_changed_frame_ends_the_stream_with_bad_proof(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path) as node:
        stream = await gateway.wait_stream()
        forged = gateway_pb2.ControlFrame(counter=1, body=b"", mac=b"m" * 32)
        await stream.send_raw(gateway_pb2.ServerFrame(control=forged))
        await stream.wait_ended()
        await gateway.wait_stream(2)
        assert node.metrics.reconnects.labels("BAD_PROOF").value == 1


async def test_a_frame_that_is_no_control_frame_ends_the_stream(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path):
        stream = await gateway.wait_stream()
        await stream.send_raw(gateway_pb2.ServerFrame())
        await stream.wait_ended()
        await gateway.wait_stream(2)


async def test_a_server_that_goes_silent_is_left(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path, clock: MockClock
) -> None:
    gateway.heartbeat_interval_ms = 10_000
    async with running_link(installation, tmp_path, clock=clock) as node:
        stream = await gateway.wait_stream()
        await node.wait(lambda: node.commands.contexts)
        await clock.wait_sleepers(1)
        await clock.advance(34.9)
        assert not stream.ended
        await clock.advance(0.2)
        await stream.wait_ended()
        await node.wait(lambda: node.metrics.reconnects.labels("HEARTBEAT_LOST").value == 1)
        await clock.wait_sleepers(1)  # until it may come back, or it is back already
        await clock.advance(1)
        await gateway.wait_stream(2)


async def test_any_frame_of_the_server_is_a_sign_of_life(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path, clock: MockClock
) -> None:
    gateway.heartbeat_interval_ms = 10_000
    async with running_link(installation, tmp_path, clock=clock) as node:
        stream = await gateway.wait_stream()
        await node.wait(lambda: node.commands.contexts)
        await clock.wait_sleepers(1)
        for batch_seq in (6, 7, 8):
            await clock.advance(30)
            await stream.send(gateway_pb2.ServerControl(telemetry_ack=telemetry_pb2.TelemetryAck(batch_seq=batch_seq)))
            await node.wait(lambda seq=batch_seq: node.telemetry.acks[-1:] == [seq])
        assert not stream.ended
        await clock.advance(35.1)
        await stream.wait_ended()


async def test_stopping_sends_what_is_ready_and_says_goodbye_last(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path) as node:
        stream = await gateway.wait_stream()
        await node.wait(lambda: node.commands.contexts)
        node.commands.ready.append(command_pb2.Report(report_no=11).SerializeToString())
        node.link.stop()
        goodbye = await stream.wait_control("goodbye")
        assert goodbye.goodbye.reason == "SHUTDOWN"
        assert [control.WhichOneof("body") for control in stream.controls] == ["reports", "goodbye"]
        await stream.wait_ended()


async def test_stopping_does_not_wait_for_a_connect_under_way(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    gateway.welcomes = False
    async with running_link(installation, tmp_path) as node:
        await gateway.watch.wait_until(lambda: gateway.handshakes == 1, lambda: "no handshake", 10)
        node.link.stop()
    assert node.link.status.state is LinkState.STOPPED


async def test_orders_that_come_while_stopping_are_harmless(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path) as node:
        stream = await gateway.wait_stream()
        node.link.stop()
        await asyncio.gather(*(stream.send(command(str(number))) for number in range(3)), return_exceptions=True)
        await stream.wait_ended()


def error(reason: Reason) -> gateway_pb2.ServerControl:
    return gateway_pb2.ServerControl(error=gateway_pb2.StreamError(reason=reason, detail="said under a MAC"))


async def test_a_status_that_meets_a_write_is_not_lost(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """grpc.aio puts INTERNAL in the place of a status that arrives while a frame is being written."""
    report = command_pb2.Report(report_no=1, output=bytes(60_000)).SerializeToString()
    async with running_link(installation, tmp_path) as node:
        monkeypatch.setattr(node.commands, "next_reports", lambda: [report])  # it never stops writing
        for number in range(1, 11):
            stream = await gateway.wait_stream(number)
            await stream.wait_control("reports")
            stream.end(Refusal(Reason.SUPERSEDED, "a newer stream was welcomed"))
        await gateway.wait_stream(11)
        assert node.metrics.reconnects.labels("SUPERSEDED").value == 10


async def test_what_the_server_says_under_a_mac_outweighs_the_status(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path) as node:
        stream = await gateway.wait_stream()
        await stream.send(error(Reason.SUPERSEDED))
        stream.end(Refusal(Reason.REVOKED, "said by whoever ended the call"))
        await gateway.wait_stream(2)
        assert node.metrics.reconnects.labels("SUPERSEDED").value == 1
        assert node.metrics.reconnects.labels("REVOKED").value == 0


async def test_a_status_that_says_the_same_tells_how_long_to_stay_away(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path) as node:
        stream = await gateway.wait_stream()
        await stream.send(error(Reason.OVERLOADED))
        stream.end(Refusal(Reason.OVERLOADED, "come back later", retry_after_s=0.5))
        await node.wait_state(LinkState.WAITING)
        await node.wait(lambda: node.link.status.next_attempt_s >= 0.5)
        assert node.link.status.last_refusal == "OVERLOADED"
