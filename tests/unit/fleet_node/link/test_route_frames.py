"""Routes on a stream against a gateway over real gRPC and TLS: what the hello says, and whose turn findings are."""

from pathlib import Path

from fleet.v1 import command_pb2, gateway_pb2, route_pb2, telemetry_pb2, trust_pb2
from fleet_node.link.lanes import Lanes
from tests.fakes.gateway import FakeGateway, FakeInstallation
from tests.fakes.watch import Watch
from tests.unit.fleet_node.link.rooms import FakeCommands, FakeRoutes, FakeTelemetry, running_link


def health(route_id: str) -> gateway_pb2.NodeControl:
    return gateway_pb2.NodeControl(route_health=route_pb2.RouteHealth(refresh_routes=[route_id]))


async def test_snapshots_and_leases_reach_the_room_in_order_and_behind_the_bundle_before_them(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path) as node:
        stream = await gateway.wait_stream()
        assert stream.hello.config_version == 4
        assert not stream.hello.HasField("probe_listener")
        versions: list[int] = []
        taken = node.routes.taken
        node.trust.changed(lambda state: versions.append(len(taken)))
        bundles = gateway_pb2.TrustBundles(bundles=[installation.bundle(2)])
        await stream.send(gateway_pb2.ServerControl(trust_bundle=bundles))
        await stream.send(gateway_pb2.ServerControl(config=trust_pb2.Signed(statement=b"c1")))
        await stream.send(gateway_pb2.ServerControl(lease=trust_pb2.Signed(statement=b"l1")))
        await node.wait(lambda: len(taken) == 2)
        assert (versions, taken) == ([0], ["config c1", "lease l1"])
    assert node.routes.closed == 1


async def test_the_next_hello_names_the_listener_that_is_open_by_then(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path) as node:
        stream = await gateway.wait_stream()
        await node.wait(lambda: node.routes.uplinks)
        node.routes.config_version = 5
        node.routes.probe_listener = gateway_pb2.ProbeListener(endpoints=["127.0.0.1:7"], certificate=b"leaf")
        node.routes.uplinks[0].renew()
        second = await gateway.wait_stream(2)
        assert (second.hello.config_version, second.hello.probe_listener) == (5, node.routes.probe_listener)
        await stream.wait_control("goodbye")


async def test_findings_go_out_over_the_stream(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    async with running_link(installation, tmp_path) as node:
        stream = await gateway.wait_stream()
        await node.wait(lambda: node.routes.uplinks)
        node.routes.ready = [health("r1")]
        node.routes.uplinks[0].wake()
        assert (await stream.wait_control("route_health")).route_health.refresh_routes == ["r1"]


def test_findings_come_after_results_and_before_telemetry_and_the_goodbye() -> None:
    watch, lanes = Watch(), Lanes()
    lanes.commands, lanes.routes, lanes.telemetry = FakeCommands(watch), FakeRoutes(watch), FakeTelemetry(watch)
    lanes.routes.ready = [health("r1"), health("r2")]
    lanes.commands.ready = [command_pb2.Report(report_no=1).SerializeToString()]
    lanes.commands.audit = gateway_pb2.AuditRows(chain=1)
    lanes.telemetry.ready = [telemetry_pb2.TelemetryBatch(batch_seq=1).SerializeToString()]
    lanes.put_control(gateway_pb2.NodeControl(pong=gateway_pb2.Pong(number=1)))
    lanes.put_goodbye("SHUTDOWN")
    sent: list[str | None] = []
    while not lanes.done:
        control = lanes.next_control()
        assert control is not None
        sent.append(gateway_pb2.NodeControl.FromString(control).WhichOneof("body"))
    assert sent == ["pong", "reports", "audit", "route_health", "route_health", "goodbye"]
    assert lanes.next_control() is None
    assert lanes.next_telemetry() is not None
