"""The connection to a busy server: kept for the delay that it asked for, and no longer than it leads anywhere."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet.backoff import BackoffPolicy
from fleet.errors import Reason, Refusal
from fleet_node.link.link_status import LinkState
from tests.fakes.clock import MockClock
from tests.fakes.gateway import FakeGateway, FakeInstallation
from tests.fakes.proxy import FaultProxy
from tests.unit.fleet_node.link.rooms import running_link


@pytest.fixture
async def other(installation: FakeInstallation, gateway: FakeGateway) -> AsyncIterator[FakeGateway]:
    """A second replica with the certificate of the first, as behind one balancer."""
    started = FakeGateway(installation, replica_id="replica-2")
    await started.start()
    yield started
    await started.stop()


async def test_a_busy_server_is_come_back_to_over_the_same_connection(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path, clock: MockClock
) -> None:
    host, port = gateway.endpoint.split(":")
    gateway.refuse["BeginHandshake"] = Refusal(Reason.OVERLOADED, "full", retry_after_s=2.0)
    async with (
        FaultProxy((host, int(port))) as proxy,
        running_link(installation, tmp_path, clock=clock, endpoints=(proxy.address,)) as node,
    ):
        await node.wait_state(LinkState.WAITING)
        opened = proxy.opened  # one that looks at the certificate, and the one that was refused
        del gateway.refuse["BeginHandshake"]
        await clock.wait_sleepers(1)
        await clock.advance(3)
        await gateway.wait_stream()
        assert proxy.opened == opened


async def test_a_busy_server_that_went_meanwhile_is_connected_to_anew(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path, clock: MockClock
) -> None:
    host, port = gateway.endpoint.split(":")
    gateway.refuse["BeginHandshake"] = Refusal(Reason.OVERLOADED, "full", retry_after_s=2.0)
    async with (
        FaultProxy((host, int(port))) as proxy,
        running_link(installation, tmp_path, clock=clock, endpoints=(proxy.address,)) as node,
    ):
        await node.wait_state(LinkState.WAITING)
        proxy.cut()
        await proxy.wait_connections(0)
        del gateway.refuse["BeginHandshake"]
        for _ in range(4):
            if gateway.streams:
                break
            await clock.wait_sleepers(1)
            await clock.advance(3)
            await node.wait(lambda: gateway.streams or node.link.status.state is LinkState.WAITING)
        await gateway.wait_stream()


async def test_a_full_server_is_left_for_wherever_the_next_connection_leads(
    installation: FakeInstallation, gateway: FakeGateway, other: FakeGateway, tmp_path: Path, clock: MockClock
) -> None:
    """It has time for handshakes and no room for streams; behind a balancer each connection is drawn anew."""
    targets = [(host, int(port)) for host, port in (each.endpoint.split(":") for each in (gateway, other))]
    gateway.refuse["Connect"] = Refusal(Reason.OVERLOADED, "this replica holds 5 streams", retry_after_s=2.0)
    async with (
        FaultProxy(targets[0]) as proxy,
        running_link(installation, tmp_path, clock=clock, endpoints=(proxy.address,)) as node,
    ):
        await node.wait_state(LinkState.WAITING)
        assert gateway.handshakes == 1
        proxy.target = targets[1]
        await clock.wait_sleepers(1)
        await clock.advance(3)
        await other.wait_stream()


async def test_a_node_that_was_put_off_again_and_again_is_soon_back_when_it_then_loses_its_stream(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path, clock: MockClock
) -> None:
    gateway.refuse["BeginHandshake"] = Refusal(Reason.OVERLOADED, "full", retry_after_s=2.0)
    policy = BackoffPolicy(initial_s=0.5, maximum_s=1e6)
    async with running_link(installation, tmp_path, clock=clock, backoff=policy) as node:
        put_off = node.metrics.handshakes.labels("OVERLOADED")
        while not gateway.streams:
            await node.wait(lambda: gateway.streams or node.link.status.state is LinkState.WAITING)
            if put_off.value >= 12:
                gateway.refuse.clear()
            if not gateway.streams:
                await clock.wait_sleepers(1)
                await clock.advance(3)
        stream = await gateway.wait_stream()
        await node.wait_state(LinkState.LIVE)
        stream.end()
        await node.wait_state(LinkState.WAITING)
        assert node.link.status.next_attempt_s <= policy.initial_s


async def test_a_lost_stream_is_looked_for_at_every_other_replica_first(
    installation: FakeInstallation, gateway: FakeGateway, other: FakeGateway, tmp_path: Path, clock: MockClock
) -> None:
    """A machine that is gone without a word answers nobody: a node that asks it first waits for nothing."""
    gateways = {each.endpoint: each for each in (gateway, other)}
    async with running_link(installation, tmp_path, clock=clock, endpoints=tuple(gateways)) as node:
        await node.wait_state(LinkState.LIVE)
        for _ in range(6):
            lost = node.link.status.endpoint
            gateways[lost].streams[-1].end()
            await node.wait_state(LinkState.WAITING)
            await clock.wait_sleepers(1)
            await clock.advance(61)
            await node.wait_state(LinkState.LIVE)
            assert node.link.status.endpoint != lost


async def test_a_replica_that_refuses_is_tried_again_only_behind_the_one_that_was_lost(
    installation: FakeInstallation, gateway: FakeGateway, other: FakeGateway, tmp_path: Path, clock: MockClock
) -> None:
    """Cut off from its database it refuses for as long as it is, and the one that was lost is soon back."""
    gateways = {each.endpoint: each for each in (gateway, other)}
    async with running_link(installation, tmp_path, clock=clock, endpoints=tuple(gateways)) as node:
        await node.wait_state(LinkState.LIVE)
        lost = node.link.status.endpoint
        refused = node.metrics.handshakes.labels("UNAVAILABLE")
        for endpoint, each in gateways.items():
            if endpoint != lost:
                each.refuse["CompleteHandshake"] = Refusal(Reason.UNAVAILABLE, "no database", retry_after_s=2.0)
        gateways[lost].streams[-1].end()
        for attempts in (0, 1):
            await node.wait(lambda attempts=attempts: refused.value == attempts)
            await node.wait_state(LinkState.WAITING)
            await clock.wait_sleepers(1)
            await clock.advance(3)
        await node.wait_state(LinkState.LIVE)
        assert node.link.status.endpoint == lost
        assert refused.value == 1
