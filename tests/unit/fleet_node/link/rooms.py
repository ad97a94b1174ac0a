"""The rooms behind a link, as a test plays them, and a node's link to put them behind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fleet.backoff import BackoffPolicy
from fleet.clock import Clock, ServerTime, SystemClock
from fleet.identity import NodeKeys
from fleet.metrics import Registry
from fleet.sequence import StreamContext
from fleet.v1 import command_pb2, gateway_pb2, trust_pb2
from fleet_node.enrollment.folder import StateFolder
from fleet_node.enrollment.membership import BundleFile
from fleet_node.link.credentials import Credentials
from fleet_node.link.hello import SelfDescription
from fleet_node.link.link import Link
from fleet_node.link.link_status import LinkState
from fleet_node.link.ports import HelloCounters, Ports, Uplink
from fleet_node.link.ratchet import Ratchet
from fleet_node.link.trust_store import TrustStore
from fleet_node.observability.metrics import LinkMetrics
from tests.fakes.gateway import CLUSTER, FakeInstallation
from tests.fakes.watch import Watch

QUICK = BackoffPolicy(initial_s=0.01, maximum_s=0.05)


def goaway(reason: gateway_pb2.GoawayReason.ValueType, **fields: object) -> gateway_pb2.ServerControl:
    """A goaway with `fields`; to be followed by another stream, unless they say otherwise."""
    order = gateway_pb2.ControlGoaway(reason=reason, deadline_ms=10_000, **({"resume": True} | fields))  # type: ignore[arg-type]
    return gateway_pb2.ServerControl(goaway=order)


class FakeCommands:
    """Records what arrives; `room` unset holds statements back, as a full queue does."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.counters = HelloCounters(7, 3, 9, False, 32)
        self.contexts: list[StreamContext] = []
        self.taken: list[str] = []
        self.acks: list[int] = []
        self.drains: list[bool] = []
        self.ready: list[bytes] = []
        self.audit: gateway_pb2.AuditRows | None = None
        self.audit_acks: list[gateway_pb2.AuditAck] = []
        self.closed = 0
        self.uplink: Uplink | None = None
        self.room = asyncio.Event()
        self.room.set()

    def hello(self) -> HelloCounters:
        return self.counters

    def opened(self, context: StreamContext, welcome: gateway_pb2.Welcome, uplink: Uplink) -> "FakeCommands":
        self.contexts.append(context)
        self.uplink = uplink
        self.watch.changed()
        return self

    async def command_frame(self, frame: command_pb2.CommandFrame) -> None:
        await self.room.wait()
        self._note(f"command {frame.signed.statement.decode()}")

    async def floor_frame(self, signed: trust_pb2.Signed) -> None:
        self._note(f"floor {signed.statement.decode()}")

    async def cancel_frame(self, frame: command_pb2.CancelFrame) -> None:
        self._note(f"cancel {frame.signed.statement.decode()}")

    def next_reports(self, max_count: int = 0, max_bytes: int = 0) -> list[bytes]:
        taken, self.ready = self.ready, []
        return taken

    def next_audit(self) -> bytes | None:
        audit, self.audit = self.audit, None
        return None if audit is None else gateway_pb2.NodeControl(audit=audit).SerializeToString()

    def audit_acked(self, ack: gateway_pb2.AuditAck) -> None:
        self.audit_acks.append(ack)
        self.watch.changed()

    def acked(self, report_no: int) -> None:
        self.acks.append(report_no)
        self.watch.changed()

    def drain(self, order: gateway_pb2.DrainNode) -> None:
        self.drains.append(order.drain)
        self.watch.changed()

    def close(self) -> None:
        self.closed += 1
        self.watch.changed()

    def report(self, report_no: int) -> None:
        self.ready.append(command_pb2.Report(report_no=report_no).SerializeToString())
        assert self.uplink is not None
        self.uplink.wake()

    def _note(self, what: str) -> None:
        self.taken.append(what)
        self.watch.changed()


class FakeTelemetry:
    """Gives out what a test puts into `ready`."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.last_batch_seq = 5
        self.ready: list[bytes] = []
        self.acks: list[int] = []
        self.uplink: Uplink | None = None

    def opened(self, max_batch_bytes: int, uplink: Uplink) -> "FakeTelemetry":
        self.uplink = uplink
        return self

    def next_batch(self) -> bytes | None:
        return self.ready.pop(0) if self.ready else None

    def acked(self, batch_seq: int) -> None:
        self.acks.append(batch_seq)
        self.watch.changed()

    def close(self) -> None:
        self.uplink = None


class FakeRoutes:
    """Records what arrives, and gives out what a test puts into `ready`."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.config_version = 4
        self.probe_listener: gateway_pb2.ProbeListener | None = None
        self.taken: list[str] = []
        self.ready: list[gateway_pb2.NodeControl] = []
        self.uplinks: list[Uplink] = []
        self.closed = 0

    def opened(self, uplink: Uplink) -> "FakeRoutes":
        self.uplinks.append(uplink)
        self.watch.changed()
        return self

    async def config_frame(self, signed: trust_pb2.Signed) -> None:
        self._note(f"config {signed.statement.decode()}")

    async def lease_frame(self, signed: trust_pb2.Signed) -> None:
        self._note(f"lease {signed.statement.decode()}")

    def next_health(self) -> bytes | None:
        return self.ready.pop(0).SerializeToString() if self.ready else None

    def close(self) -> None:
        self.closed += 1
        self.watch.changed()

    def _note(self, what: str) -> None:
        self.taken.append(what)
        self.watch.changed()


class WatchedState:
    """In place of the state's gauges: wakes whoever waits for a state."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def set(self, state: str) -> None:
        self._watch.changed()


class NodeUnderTest:
    """A link and its rooms."""

    def __init__(
        self, link: Link, commands: FakeCommands, telemetry: FakeTelemetry, trust: TrustStore, routes: FakeRoutes
    ) -> None:
        self.link = link
        self.commands = commands
        self.routes = routes
        self.telemetry = telemetry
        self.trust = trust
        self.keys: NodeKeys
        self.metrics: LinkMetrics
        self.watch = commands.watch

    async def wait_state(self, state: LinkState) -> None:
        await self.wait(lambda: self.link.status.state is state)

    async def wait(self, predicate: Any) -> None:
        await self.watch.wait_until(predicate, lambda: repr((self.commands.taken, self.link.status)), 10.0)


@asynccontextmanager
async def running_link(
    installation: FakeInstallation,
    folder: Path,
    *,
    clock: Clock | None = None,
    endpoints: tuple[str, ...] = (),
    backoff: BackoffPolicy = QUICK,
) -> AsyncIterator[NodeUnderTest]:
    """A link that runs until the test ends."""
    clock = clock or SystemClock()
    watch = Watch()
    metrics = LinkMetrics(Registry())
    metrics.stream = WatchedState(watch)  # type: ignore[assignment]
    file = BundleFile(folder / "bundle.bin", cluster_id=CLUSTER, authority_key=installation.authority.public_key)
    file.save(installation.trust_state())
    commands, telemetry, trust = FakeCommands(watch), FakeTelemetry(watch), TrustStore(file, metrics)
    routes = FakeRoutes(watch)
    keys = NodeKeys.generate()
    server_time = ServerTime(clock)
    link = Link(
        credentials=Credentials(
            StateFolder(folder / "state"), installation.membership(), keys, server_time=server_time
        ),
        ports=Ports(
            commands=commands,
            telemetry=telemetry,
            trust=trust,
            ratchet=Ratchet(folder / "ratchet.bin"),
            routes=routes,
        ),
        about=SelfDescription("1.2.3", {"rack": "b4"}, [], b"b" * 16),
        clock=clock,
        server_time=server_time,
        metrics=metrics,
        backoff=backoff,
        endpoints=endpoints,
    )
    node = NodeUnderTest(link, commands, telemetry, trust, routes)
    node.keys, node.metrics = keys, metrics
    running = asyncio.create_task(link.run())
    try:
        yield node
    finally:
        link.stop()
        done, _ = await asyncio.wait({running}, timeout=5.0)
        assert done, "the link did not stop"
        running.result()
