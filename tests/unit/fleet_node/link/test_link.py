"""The link over many streams: refusals, goaways, takeover, certificates, endpoints."""

import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fleet import tls_certificates
from fleet.backoff import BackoffPolicy
from fleet.clock import FAR_AHEAD_MS, MAX_TIME_MS, SystemClock
from fleet.envelope import Signer
from fleet.errors import Reason, Refusal
from fleet.v1 import gateway_pb2
from fleet_node.link.link_status import LinkState
from tests.fakes import gateway as gateway_fake
from tests.fakes import served
from tests.fakes.clock import MockClock
from tests.fakes.gateway import FakeGateway, FakeInstallation
from tests.integration.clock import QuickClock
from tests.unit.fleet_node.link.rooms import goaway, running_link


@pytest.fixture
async def other(installation: FakeInstallation, gateway: FakeGateway) -> AsyncIterator[FakeGateway]:
    """A second replica, known to the signed bundle like the first."""
    started = FakeGateway(installation, replica_id="replica-2")
    await started.start()
    yield started
    await started.stop()


async def test_a_drain_is_left_only_once_the_next_stream_is_welcomed(
    installation: FakeInstallation, gateway: FakeGateway, other: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path, endpoints=(gateway.endpoint, other.endpoint)) as node:
        await node.wait_state(LinkState.LIVE)
        old, new = (gateway, other) if gateway.streams else (other, gateway)
        first = old.streams[0]
        await first.send(goaway(gateway_pb2.GOAWAY_REASON_DRAIN, endpoints=[new.endpoint]))
        second = await new.wait_stream()
        assert second.proof.takeover_of == first.stream_id
        assert (await first.wait_control("goodbye")).goodbye.reason == "TAKEOVER"
        await first.wait_ended()
        await node.wait_state(LinkState.LIVE)
        assert node.link.status.replica_id == new.replica_id


async def test_a_room_whose_stream_is_full_gets_a_new_one_before_the_old_one_is_left(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path) as node:
        first = await gateway.wait_stream()
        await node.wait(lambda: node.telemetry.uplink)
        assert node.telemetry.uplink is not None
        node.telemetry.uplink.renew()
        node.telemetry.uplink.renew()
        second = await gateway.wait_stream(2)
        assert second.proof.takeover_of == first.stream_id
        assert (await first.wait_control("goodbye")).goodbye.reason == "TAKEOVER"
        assert (await second.ping()).number == 1
        assert len(gateway.streams) == 2


async def test_a_takeover_keeps_the_old_stream_until_someone_takes_it(
    installation: FakeInstallation, gateway: FakeGateway, other: FakeGateway, tmp_path: Path, clock: MockClock
) -> None:
    other.refuse["BeginHandshake"] = Refusal(Reason.OVERLOADED, "full", retry_after_s=2.0)
    endpoints = (gateway.endpoint,)
    async with running_link(installation, tmp_path, clock=clock, endpoints=endpoints) as node:
        first = await gateway.wait_stream()
        await clock.wait_sleepers(1)
        await clock.advance(2)  # it was there for a while
        gateway.refuse["BeginHandshake"] = Refusal(Reason.OVERLOADED, "full", retry_after_s=2.0)
        await first.send(goaway(gateway_pb2.GOAWAY_REASON_UPGRADE))
        await node.wait_state(LinkState.MOVING)
        await clock.wait_sleepers(2)  # the watch over the old stream, and the delay that the refusal asked for
        assert node.link.status.last_refusal == "OVERLOADED"
        assert (await first.ping(2)).number == 2
        del gateway.refuse["BeginHandshake"]
        await clock.advance(2.5)
        second = await gateway.wait_stream(2)
        assert second.proof.takeover_of == first.stream_id
        await first.wait_ended()


async def test_a_node_that_is_sent_where_nobody_is_any_more_takes_any_replica_after_a_few_attempts(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    """The replica that was to take it has gone meanwhile; the old stream serves on until another one is found."""
    gone = "127.0.0.1:1"
    clock = QuickClock(speed=20)
    async with running_link(installation, tmp_path, clock=clock, endpoints=(gateway.endpoint, gone)):
        first = await gateway.wait_stream()
        await first.send(goaway(gateway_pb2.GOAWAY_REASON_REBALANCE, endpoints=[gone]))
        second = await gateway.wait_stream(2)
        assert second.proof.takeover_of == first.stream_id
        await first.wait_ended()


async def test_a_stop_while_the_slot_of_a_takeover_is_awaited_ends_the_old_stream_in_order(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path) as node:
        first = await gateway.wait_stream()
        await first.send(goaway(gateway_pb2.GOAWAY_REASON_DRAIN, reconnect_after_ms=600_000))
        await node.wait_state(LinkState.MOVING)
    assert (await first.wait_control("goodbye")).goodbye.reason == "SHUTDOWN"


async def test_a_stop_during_a_takeover_ends_both_streams(
    installation: FakeInstallation, gateway: FakeGateway, other: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path, endpoints=(gateway.endpoint, other.endpoint)) as node:
        await node.wait_state(LinkState.LIVE)
        old, new = (gateway, other) if gateway.streams else (other, gateway)
        new.welcomes = False
        first = old.streams[0]
        await first.send(goaway(gateway_pb2.GOAWAY_REASON_DRAIN, endpoints=[new.endpoint]))
        await new.watch.wait_until(lambda: new.handshakes, lambda: "no takeover", 10)
    assert (await first.wait_control("goodbye")).goodbye.reason == "SHUTDOWN"


async def test_a_restart_is_left_at_once_and_returned_to_in_the_slot(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path, clock: MockClock
) -> None:
    async with running_link(installation, tmp_path, clock=clock) as node:
        first = await gateway.wait_stream()
        await first.send(goaway(gateway_pb2.GOAWAY_REASON_RESTART, reconnect_after_ms=4000))
        assert (await first.wait_control("goodbye")).goodbye.reason == "GOAWAY"
        await first.wait_ended()
        await node.wait_state(LinkState.WAITING)
        await clock.wait_sleepers(1)
        await clock.advance(3.9)
        assert len(gateway.streams) == 1
        await clock.advance(0.2)
        await gateway.wait_stream(2)


@pytest.mark.parametrize("reason", [gateway_pb2.GOAWAY_REASON_RESTART, gateway_pb2.GOAWAY_REASON_DRAIN])
async def test_a_server_that_sends_the_node_on_at_once_does_not_make_it_spin(
    installation: FakeInstallation,
    gateway: FakeGateway,
    tmp_path: Path,
    clock: MockClock,
    reason: gateway_pb2.GoawayReason.ValueType,
) -> None:
    patient = BackoffPolicy(initial_s=1e6, maximum_s=1e6)
    async with running_link(installation, tmp_path, clock=clock, backoff=patient) as node:
        first = await gateway.wait_stream()
        await first.ping()
        await first.send(goaway(reason))
        stays = reason == gateway_pb2.GOAWAY_REASON_DRAIN
        leaving = LinkState.MOVING if stays else LinkState.WAITING
        await node.wait_state(leaving)
        await clock.wait_sleepers(2 if stays else 1)  # the delay, and the watch over a stream that stays meanwhile
        await clock.advance(1.0)
        assert len(gateway.streams) == 1
        assert node.link.status.state is leaving


async def test_an_attempt_that_opened_no_stream_is_not_told_as_one_that_was_lost(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path, clock: MockClock
) -> None:
    gateway.refuse["Connect"] = Refusal(Reason.OVERLOADED, "this replica holds as many as it may")
    with capture_logs() as logs:
        async with running_link(installation, tmp_path, clock=clock) as node:
            await node.wait_state(LinkState.WAITING)
            assert node.metrics.handshakes.labels("OVERLOADED").value == 1
            assert node.metrics.reconnects.labels("OVERLOADED").value == 0
            del gateway.refuse["Connect"]
            await clock.wait_sleepers(1)
            await clock.advance(1)
            stream = await gateway.wait_stream()
            stream.end(Refusal(Reason.OVERLOADED, "the database is away"))
            await node.wait(lambda: node.metrics.reconnects.labels("OVERLOADED").value == 1)
            await node.wait_state(LinkState.WAITING)
    assert [one["event"] for one in logs if one["log_level"] == "warning"] == ["stream_not_opened", "stream_lost"]


async def test_a_suspended_node_asks_again_at_long_intervals(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path, clock: MockClock
) -> None:
    gateway.refuse["BeginHandshake"] = Refusal(Reason.SUSPENDED, "an operator suspended this node")
    async with running_link(installation, tmp_path, clock=clock) as node:
        await node.wait_state(LinkState.WAITING)
        assert node.link.status.last_refusal == "SUSPENDED"
        assert node.link.status.next_attempt_s >= 0.5
        del gateway.refuse["BeginHandshake"]
        await clock.wait_sleepers(1)
        await clock.advance(30.0)
        await gateway.wait_stream()
        await node.wait_state(LinkState.LIVE)
        assert node.link.status.last_refusal == ""


async def test_a_server_that_is_not_the_clusters_opens_no_stream(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path, clock: MockClock
) -> None:
    gateway.handshake_signer = Signer.generate()
    async with running_link(installation, tmp_path, clock=clock) as node:
        await node.wait_state(LinkState.WAITING)
        assert node.link.status.last_refusal == "BAD_PROOF"
        assert gateway.streams == []


async def test_an_authority_that_was_rotated_during_the_handshake_is_followed(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    successor = Signer.generate()
    step = installation.next_generation(successor, signers=[installation.authority, successor])
    gateway.handshake_signer, gateway.trust_chain = successor, [step]
    async with running_link(installation, tmp_path) as node:
        await node.wait_state(LinkState.LIVE)
        assert node.trust.state.authority_key == successor.public_key
    assert gateway.handshakes == 1


async def test_an_authority_that_only_says_that_it_follows_opens_no_stream(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path, clock: MockClock
) -> None:
    stranger = Signer.generate()
    step = installation.next_generation(stranger, signers=[stranger])
    gateway.handshake_signer, gateway.trust_chain = stranger, [step]
    async with running_link(installation, tmp_path, clock=clock) as node:
        await node.wait_state(LinkState.WAITING)
        assert node.link.status.last_refusal == "BAD_PROOF"
        assert node.trust.state.generation == 1
        assert gateway.streams == []


def says(monkeypatch: pytest.MonkeyPatch, ahead_ms: int) -> None:
    """The server's clock from now on."""
    for module in (served, gateway_fake):
        monkeypatch.setattr(module, "now_ms", lambda: SystemClock().now_ms() + ahead_ms)


async def test_a_server_without_a_time_is_no_server(
    installation: FakeInstallation,
    gateway: FakeGateway,
    tmp_path: Path,
    clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    says(monkeypatch, MAX_TIME_MS)
    async with running_link(installation, tmp_path, clock=clock) as node:
        await node.wait_state(LinkState.WAITING)
        assert node.link.status.last_refusal == "MALFORMED"
        assert gateway.streams == []


async def test_a_time_far_ahead_is_forgotten_at_the_handshake_that_says_so(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, 10 * FAR_AHEAD_MS)
    async with running_link(installation, tmp_path) as node:
        first = await gateway.wait_stream()
        says(monkeypatch, 0)
        await first.ping(1)
        assert node.link.live_status().clock_offset_ms < -9 * FAR_AHEAD_MS  # a ping alone takes nothing back
        await first.send(goaway(gateway_pb2.GOAWAY_REASON_REBALANCE))
        second = await gateway.wait_stream(2)
        await second.ping(1)
        assert abs(node.link.live_status().clock_offset_ms) < 60_000


async def test_the_handshake_brings_a_newer_bundle(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    gateway.bundle_chain = [installation.bundle(2), installation.bundle(3)]
    async with running_link(installation, tmp_path) as node:
        stream = await gateway.wait_stream()
        assert stream.hello.bundle_version.number == 3
        assert node.trust.state.number == 3


async def test_a_certificate_of_another_ca_is_refused(
    installation: FakeInstallation, tmp_path: Path, clock: MockClock
) -> None:
    now = dt.datetime.now(dt.UTC)
    stranger = FakeGateway(installation)
    await stranger.start(leaf=tls_certificates.make_leaf(tls_certificates.make_ca("stranger", now), ["127.0.0.1"], now))
    try:
        async with running_link(installation, tmp_path, clock=clock) as node:
            await node.wait_state(LinkState.WAITING)
            assert node.link.status.last_refusal == "WRONG_CERTIFICATE"
            assert stranger.handshakes == 0
    finally:
        await stranger.stop()


async def test_a_renewed_certificate_is_found_again(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path):
        first = await gateway.wait_stream()
        port = int(gateway.endpoint.rpartition(":")[2])
        first.end()
        await gateway.stop()
        renewed = FakeGateway(installation)
        now = dt.datetime.now(dt.UTC)
        await renewed.start(leaf=tls_certificates.make_leaf(installation.ca, ["127.0.0.1"], now), port=port)
        try:
            await renewed.wait_stream()
        finally:
            await renewed.stop()


async def test_an_endpoint_that_is_down_does_not_keep_a_node_from_the_other(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path, endpoints=("127.0.0.1:1", gateway.endpoint)) as node:
        await gateway.wait_stream()
        await node.wait_state(LinkState.LIVE)
        assert node.link.status.endpoint == gateway.endpoint


async def test_an_endpoint_that_does_not_serve_is_passed_over_without_a_wait(
    installation: FakeInstallation,
    gateway: FakeGateway,
    other: FakeGateway,
    tmp_path: Path,
    clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its certificate may be known from before it went down: that it does not serve shows in the handshake only."""
    monkeypatch.setattr("random.sample", lambda population, count: list(population)[:count])
    gateway.refuse["BeginHandshake"] = Refusal(Reason.UNAVAILABLE, "going down")
    endpoints = (gateway.endpoint, other.endpoint)
    async with running_link(installation, tmp_path, clock=clock, endpoints=endpoints) as node:
        await other.wait_stream()  # no time passes
        await node.wait_state(LinkState.LIVE)
        assert node.link.status.endpoint == other.endpoint
        assert node.link.status.last_refusal == ""


async def test_a_delay_that_a_server_asks_for_is_not_got_around_at_another_one(
    installation: FakeInstallation, gateway: FakeGateway, other: FakeGateway, tmp_path: Path, clock: MockClock
) -> None:
    for each in (gateway, other):
        each.refuse["BeginHandshake"] = Refusal(Reason.OVERLOADED, "full", retry_after_s=2.0)
    endpoints = (gateway.endpoint, other.endpoint)
    async with running_link(installation, tmp_path, clock=clock, endpoints=endpoints) as node:
        await node.wait_state(LinkState.WAITING)
        assert node.link.status.last_refusal == "OVERLOADED"
        assert node.link.status.next_attempt_s > 0
