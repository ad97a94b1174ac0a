"""How much a server may send, wait with, and say."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fleet.errors import Reason, Refusal
from fleet.status import MAX_DETAIL_CHARS
from fleet.v1 import gateway_pb2
from fleet_node.link.inbox import MAX_FRAME_BYTES
from fleet_node.link.link_status import LinkState
from tests.fakes.clock import MockClock
from tests.fakes.gateway import FakeGateway, FakeInstallation
from tests.unit.fleet_node.link.rooms import running_link
from tests.unit.fleet_node.link.test_stream import cancel, command


async def test_a_flood_of_statements_ends_the_stream_before_it_fills_the_memory(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet_node.link.inbox.MAX_WAITING_BYTES", 10_000)
    async with running_link(installation, tmp_path) as node:
        first = await gateway.wait_stream()
        for number in range(20):  # one after the other: nothing of them waits
            await first.send(command(f"{number}" + "x" * 4000))
            await node.wait(lambda count=number: len(node.commands.taken) > count)
        node.commands.room.clear()
        for _ in range(3):
            await first.send(command("x" * 4000))
        await first.wait_ended()
        await gateway.wait_stream(2)
        assert node.metrics.reconnects.labels("MALFORMED").value == 1
        node.commands.room.set()


@pytest.mark.parametrize("frame", [command, cancel])
async def test_a_frame_that_is_larger_than_any_server_makes_ends_the_stream(
    installation: FakeInstallation,
    gateway: FakeGateway,
    tmp_path: Path,
    frame: Callable[[str], gateway_pb2.ServerControl],
) -> None:
    async with running_link(installation, tmp_path) as node:
        stream = await gateway.wait_stream()
        await stream.send(frame("x" * MAX_FRAME_BYTES))
        await stream.wait_ended()
        await gateway.wait_stream(2)
        assert node.metrics.reconnects.labels("FRAME_TOO_LARGE").value == 1
        assert node.commands.taken == []


async def test_what_the_server_says_is_cut_and_printable(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path, clock: MockClock
) -> None:
    said = gateway_pb2.StreamError(reason=Reason.SUSPENDED, detail="\x1b[2J" + "x" * 100_000)
    async with running_link(installation, tmp_path, clock=clock) as node:
        stream = await gateway.wait_stream()
        await stream.send(gateway_pb2.ServerControl(error=said))
        stream.end(Refusal(Reason.SUPERSEDED, ""))
        await node.wait_state(LinkState.WAITING)
        detail = node.link.status.last_detail
        assert (len(detail), detail.isprintable()) == (MAX_DETAIL_CHARS, True)
