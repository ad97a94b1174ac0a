"""One node, wired, against a gateway over real gRPC and TLS."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fleet.backoff import BackoffPolicy
from fleet.identity import load_node_keys
from fleet_node.app import Node, NodeFailedError, Parts
from fleet_node.config import Settings
from fleet_node.drivers.registry import DriverRegistry
from fleet_node.enrollment.folder import StateFolder
from fleet_node.enrollment.membership import load_membership
from fleet_node.status.client import ask
from tests.fakes.gateway import FakeGateway, FakeInstallation
from tests.unit.fleet_node.enrolled import enrolled_folder

QUICK = BackoffPolicy(initial_s=0.01, maximum_s=0.05)


def build(folder: StateFolder, *, alone: bool = True, **settings: Any) -> Node:
    membership = load_membership(folder.membership)
    assert membership is not None
    told = Settings(
        state_dir=folder.path, drivers_enabled=("simulated",), **({"metrics_listen": "127.0.0.1:0"} | settings)
    )
    drivers = DriverRegistry.load(told.drivers_enabled, {"simulated": {"series": 2}})
    parts = Parts(told, folder, membership, load_node_keys(folder.path), drivers, alone=alone)
    return Node(parts, backoff=QUICK)


@asynccontextmanager
async def running(node: Node) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(node.run())
    try:
        yield task
    finally:
        node.stop()
        await asyncio.wait({task}, timeout=20)
    assert task.done()


async def test_a_node_tells_what_it_is_and_does(gateway: FakeGateway, member: StateFolder) -> None:
    async with running(build(member, telemetry_interval_s=0.1, own_process_metrics=True)) as task:
        stream = await gateway.wait_stream()
        await gateway.watch.wait_until(lambda: bool(stream.telemetry), lambda: "no telemetry", 10)
        await stream.ping(rtt_us=1500)
        said = await asyncio.to_thread(ask, member.control_socket, "status")
        assert (said["link"]["state"], said["link"]["stream_id"]) == ("live", stream.stream_id)
        assert (said["link"]["rtt_us"], said["trust"]["number"], said["trust"]["fresh"]) == (1500, 1, True)
        assert said["drivers"] == ["simulated"]
        assert said["commands"] == {"running": 0, "journal_rows": 0, "reports_unacknowledged": 0, "drained": False}
        host, port = said["metrics_address"].split(":")
        metrics = await scrape(host, int(port), "/metrics")
        assert 'fleet_node_stream_state{state="live"} 1.0' in metrics
        assert "fleet_node_round_trip_seconds 0.0015" in metrics
        assert "process_resident_memory_bytes" in metrics
        assert "200 OK" in await scrape(host, int(port), "/readyz")
    task.result()
    assert (await stream.wait_control("goodbye")).goodbye.reason == "SHUTDOWN"
    assert not member.control_socket.exists()


async def test_several_nodes_share_a_process(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    folders = [enrolled_folder(installation, tmp_path / name) for name in ("a", "b", "c")]
    nodes = [build(folder, alone=False) for folder in folders]
    tasks = [asyncio.create_task(node.run()) for node in nodes]
    streams = [await gateway.wait_stream(count) for count in (1, 2, 3)]
    for stream in streams:
        await stream.ping()  # it has read its welcome: before that it would leave without a word
    assert len({stream.hello.boot_id for stream in streams}) == 3
    assert not any(folder.control_socket.exists() for folder in folders)
    for node in nodes:
        node.stop()
    await asyncio.gather(*tasks)
    for stream in streams:
        await stream.wait_control("goodbye")


async def test_a_task_that_fails_stops_the_node_loudly_and_in_order(
    gateway: FakeGateway, member: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = build(member)
    failing = asyncio.Event()

    async def collect() -> None:
        await failing.wait()
        raise RuntimeError("a fault")

    monkeypatch.setattr(node.collector, "run", collect)
    task = asyncio.create_task(node.run())
    stream = await gateway.wait_stream()
    await stream.ping()
    failing.set()
    with pytest.raises(NodeFailedError, match="collector ended by itself") as caught:
        await task
    assert isinstance(caught.value.__cause__, RuntimeError)
    await stream.wait_control("goodbye")


async def test_a_metrics_port_that_is_taken_does_not_keep_a_node_from_its_work(
    gateway: FakeGateway, member: StateFolder
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with running(build(member, metrics_listen=address)):
            await gateway.wait_stream()
            said = await asyncio.to_thread(ask, member.control_socket, "status")
            assert said["metrics_address"].startswith(f"not listening on {address}")


async def test_a_node_without_a_gateway_stops_at_once(
    installation: FakeInstallation, gateway: FakeGateway, member: StateFolder
) -> None:
    await gateway.stop()
    async with running(build(member, metrics_listen="")) as task:
        said: dict[str, Any] = {}
        while not said:
            if member.control_socket.exists():
                said = await asyncio.to_thread(ask, member.control_socket, "status")
            await asyncio.sleep(0)
        assert said["link"]["state"] in ("connecting", "waiting")
        assert said["metrics_address"] == "off"
    task.result()


async def scrape(host: str, port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer.decode()
