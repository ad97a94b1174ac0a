"""A wired node and its routes, against a gateway over real gRPC and TLS."""

import asyncio
import socket
from pathlib import Path
from typing import Any

from fleet.envelope import Domain
from fleet.v1 import gateway_pb2, route_pb2, trust_pb2
from fleet_node.enrollment.folder import StateFolder
from fleet_node.status.client import ask
from tests.fakes.gateway import CLUSTER, NODE, FakeGateway, FakeInstallation
from tests.unit.fleet_node.routes.snapshots import route, statement
from tests.unit.fleet_node.test_app import build, running


def config(installation: FakeInstallation, *routes: route_pb2.RouteConfig, version: int) -> trust_pb2.Signed:
    said = statement(*routes, version=version, cluster_id=CLUSTER, node_id=NODE)
    return installation.authority.sign(Domain.CONFIG, said.SerializeToString())


async def status(member: StateFolder) -> dict[str, Any]:
    said = await asyncio.to_thread(ask, member.control_socket, "status")
    return dict(said["routes"] or {})


async def test_a_node_is_given_routes_walks_them_and_has_them_after_a_restart(
    installation: FakeInstallation, gateway: FakeGateway, member: StateFolder
) -> None:
    destination = route((NODE, "nd_b"), probe_interval_ms=200)
    async with running(build(member)):
        stream = await gateway.wait_stream()
        assert (stream.hello.config_version, stream.hello.HasField("probe_listener")) == (0, False)
        assert await status(member) == {}
        await stream.send(gateway_pb2.ServerControl(config=config(installation, destination, version=3)))
        applied = (await stream.wait_control("config_applied")).config_applied
        assert (applied.version, applied.applied, applied.reason) == (3, True, "")
        health = (await stream.wait_control("route_health")).route_health
        assert health.observations[0].route_id == "rt_1"
        assert (await status(member))["routes"][0]["path"] == [NODE, "nd_b"]
        stale = config(installation, destination, version=2)
        await stream.send(gateway_pb2.ServerControl(config=stale))
        await gateway.watch.wait_until(
            lambda: (
                [each.config_applied.applied for each in stream.controls if each.HasField("config_applied")]
                == [True, False]
            ),
            lambda: repr(stream.controls),
            10,
        )
    async with running(build(member)):
        stream = await gateway.wait_stream(2)
        assert stream.hello.config_version == 3
        assert (await status(member))["config_version"] == 3


async def test_a_listener_is_named_in_the_hello_and_keeps_its_certificate(
    gateway: FakeGateway, member: StateFolder
) -> None:
    async with running(build(member, probe_listen="127.0.0.1:0")):
        first = (await gateway.wait_stream()).hello.probe_listener
        said = await status(member)
        assert (list(first.endpoints), said["endpoints"]) == ([said["listener"]], [said["listener"]])
    endpoints = ("pump.example:9470",)
    async with running(build(member, probe_listen="127.0.0.1:0", probe_endpoints=endpoints)):
        second = (await gateway.wait_stream(2)).hello.probe_listener
        assert (list(second.endpoints), second.certificate) == (list(endpoints), first.certificate)


async def test_a_probe_port_that_is_taken_does_not_keep_a_node_from_its_work(
    gateway: FakeGateway, member: StateFolder, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with running(build(member, probe_listen=address)):
            stream = await gateway.wait_stream()
            assert not stream.hello.HasField("probe_listener")
            assert (await status(member))["listener"].startswith(f"not listening on {address}")
