"""Of several goaways of one stream the newest counts."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fleet.errors import Reason, Refusal
from fleet.v1 import gateway_pb2
from fleet_node.link.link import HARDLY_THERE_S
from fleet_node.link.link_status import LinkState
from tests.fakes.clock import MockClock
from tests.fakes.gateway import FakeGateway, FakeInstallation
from tests.unit.fleet_node.link.rooms import goaway, running_link


@pytest.mark.parametrize(
    ("reason", "resume", "shown"),
    [(gateway_pb2.GOAWAY_REASON_RESTART, True, ""), (gateway_pb2.GOAWAY_REASON_SUSPENDED, False, "SUSPENDED")],
)
async def test_a_later_goaway_takes_the_place_of_one_whose_slot_is_far(
    installation: FakeInstallation,
    gateway: FakeGateway,
    tmp_path: Path,
    clock: MockClock,
    reason: gateway_pb2.GoawayReason.ValueType,
    resume: bool,
    shown: str,
) -> None:
    async with running_link(installation, tmp_path, clock=clock) as node:
        first = await gateway.wait_stream()
        await node.wait_state(LinkState.LIVE)
        await first.send(goaway(gateway_pb2.GOAWAY_REASON_REBALANCE, reconnect_after_ms=3_000_000))
        await node.wait_state(LinkState.MOVING)
        await first.send(goaway(reason, resume=resume, reconnect_after_ms=2_000))
        assert (await first.wait_control("goodbye")).goodbye.reason == "GOAWAY"
        await node.wait_state(LinkState.WAITING)
        assert node.link.status.last_refusal == shown
        assert node.link.status.next_attempt_s >= 2.0 or not resume


async def test_of_two_goaways_that_both_let_a_node_take_over_the_later_slot_counts(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path, clock: MockClock
) -> None:
    async with running_link(installation, tmp_path, clock=clock) as node:
        first = await gateway.wait_stream()
        await node.wait_state(LinkState.LIVE)
        await clock.advance(HARDLY_THERE_S)
        await first.send(goaway(gateway_pb2.GOAWAY_REASON_REBALANCE, reconnect_after_ms=3_000_000))
        await node.wait_state(LinkState.MOVING)
        with capture_logs() as logs:
            await first.send(goaway(gateway_pb2.GOAWAY_REASON_DRAIN))
            await first.ping()
        assert [one["reason"] for one in logs if one["event"] == "goaway_received"] == ["DRAIN"]
        await clock.advance(0.3)
        second = await gateway.wait_stream(2)
        assert second.proof.takeover_of == first.stream_id
        assert (await first.wait_control("goodbye")).goodbye.reason == "TAKEOVER"
        await node.wait(lambda: node.metrics.reconnects.labels("DRAIN").value == 1)


async def test_goaway_upon_goaway_makes_no_node_spin(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path, clock: MockClock
) -> None:
    async with running_link(installation, tmp_path, clock=clock) as node:
        first = await gateway.wait_stream()
        await node.wait_state(LinkState.LIVE)
        await clock.advance(HARDLY_THERE_S)
        gateway.refuse["BeginHandshake"] = Refusal(Reason.OVERLOADED, "full", retry_after_s=60.0)
        refused = node.metrics.handshakes.labels("OVERLOADED")
        for number in range(20):
            await first.send(goaway(gateway_pb2.GOAWAY_REASON_DRAIN))
            await first.ping(number + 1)
        assert refused.value <= 1  # the first one's; what the others ask for waits, and no time has passed
