"""One node, wired: every room is built here, and `Node.run` ends in the visible list of running tasks.

Mental model
    Nothing here is global: a load simulator builds hundreds of nodes in one process, each with its own folder, clock,
    metrics and drivers.
    The tasks run until `stop`. One that ends before is a fault: the node stops in order and says which it was, and
    whoever supervises the process starts it again.
    Stopping goes against the flow of work: first what runs is asked to end and its results are journaled, then the
    stream takes them along and says goodbye, then files are closed. All of it has a deadline.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fleet.backoff import BackoffPolicy
from fleet.clock import Clock, ServerTime, SystemClock
from fleet.identity import NodeKeys
from fleet.logs import get_logger
from fleet.metrics import Registry
from fleet.metrics_listener import Health, MetricsListener
from fleet.node_audit import NodeAuditKind
from fleet.process_metrics import ProcessMetrics
from fleet.service_manager import ServiceManager
from fleet.version import software_version
from fleet_node.commands.audit_signer import AuditSigner
from fleet_node.commands.execution import CommandLimits
from fleet_node.commands.opening import open_journal
from fleet_node.commands.protection import Verifier
from fleet_node.commands.service import CommandService
from fleet_node.config import Settings
from fleet_node.drivers.protected import protected_of
from fleet_node.drivers.registry import DriverRegistry
from fleet_node.enrollment.folder import StateFolder
from fleet_node.enrollment.membership import BundleFile, Membership
from fleet_node.enrollment.owner_pin import pinned_owner
from fleet_node.link.credentials import Credentials
from fleet_node.link.hello import SelfDescription
from fleet_node.link.key_audit import KeyAudit
from fleet_node.link.link import Link
from fleet_node.link.link_status import LinkState
from fleet_node.link.people_store import PeopleStore
from fleet_node.link.ports import Ports
from fleet_node.link.ratchet import Ratchet
from fleet_node.link.trust_store import TrustStore
from fleet_node.observability.metrics import NodeMetrics
from fleet_node.routes.entrance import Routes
from fleet_node.routes.parts import Identity, RouteParts
from fleet_node.status.answers import Answers
from fleet_node.status.live import LiveSources
from fleet_node.status.server import ControlServer
from fleet_node.telemetry.collector import Collector, OwnProcess
from fleet_node.telemetry.service import TelemetryService
from fleet_node.telemetry.spool_store import Spool

if TYPE_CHECKING:
    from fleet_node.link.mutual_tls import MutualTls

log = get_logger(__name__)

SHUTDOWN_TIMEOUT_S = 25.0
"""Below the 30 s that container platforms give before they kill."""
_STOP_GRACE_S = 10.0


class NodeFailedError(Exception):
    """A task of the node ended though nobody asked for it."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a node is built on, opened by the caller and not closed by the node.

    Args:
        folder: locked by this process.
        drivers: loaded.
        alone: this process is this node: it answers on the control socket and serves metrics. False in a simulator.
    """

    settings: Settings
    folder: StateFolder
    membership: Membership
    keys: NodeKeys
    drivers: DriverRegistry
    alone: bool = True


class Node:
    """See the module's mental model. Build it inside a running event loop, and run it: it holds open files.

    Args:
        parts: what it is built on.
        clock: the machine's by default.
        registry: for its metrics; a new one by default, never shared between nodes.
        backoff: how it comes back after refusals; the product's own by default.
        manager: is told how it goes.

    Raises:
        JournalDamagedError, JournalUnavailableError, MembershipError: a file of the state folder cannot be used; the
            message says what to do.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        clock: Clock | None = None,
        registry: Registry | None = None,
        backoff: BackoffPolicy | None = None,
        manager: ServiceManager | None = None,
    ) -> None:
        self._parts = parts
        self._manager = manager or ServiceManager()
        self._clock = clock or SystemClock()
        self._stopping = asyncio.Event()
        self._metrics_address = "off"
        settings, membership = parts.settings, parts.membership
        registry = registry or Registry()
        self.metrics = NodeMetrics(registry)
        self._process = (
            ProcessMetrics(registry, self._clock, component="fleet-node", version=software_version())
            if parts.alone
            else None
        )
        server_time = ServerTime(self._clock)
        self._key_audit = KeyAudit(self._clock)
        people = PeopleStore(
            parts.folder.people,
            cluster_id=membership.cluster_id,
            pin=pinned_owner(parts.folder.owner_pin, membership),
            clock=self._clock,
            server_time=server_time,
            audit=self._key_audit,
        )
        self.trust = TrustStore(
            BundleFile(parts.folder.bundle, cluster_id=membership.cluster_id, authority_key=membership.authority_key),
            self.metrics.link,
            people,
            self._key_audit,
        )
        self.telemetry = TelemetryService(
            spool=Spool(parts.folder.spool, max_bytes=settings.spool_max_bytes, now_ms=self._clock.now_ms()),
            clock=self._clock,
            metrics=self.metrics.telemetry,
        )
        self.collector = Collector(
            sources={
                **parts.drivers.samplers(),
                **({"own process": OwnProcess()} if settings.own_process_metrics else {}),
            },
            sink=self.telemetry.put,
            clock=self._clock,
            metrics=self.metrics.telemetry,
            interval_s=settings.telemetry_interval_s or membership.telemetry_interval_s,
        )
        credentials = Credentials(
            parts.folder,
            membership,
            parts.keys,
            server_time=server_time,
            pinned=bool(settings.fingerprint),
            audit=self._key_audit,
        )
        self._journal = open_journal(
            parts.folder.journal,
            membership.node_id,
            commit_duration=self.metrics.commands.commit_duration,
            signer=AuditSigner(lambda: credentials.keys, self._clock, server_time),
        )
        self.commands = CommandService(
            journal=self._journal,
            registry=parts.drivers,
            trust=self.trust,
            site=membership.site,
            clock=self._clock,
            server_time=server_time,
            metrics=self.metrics.commands,
            limits=CommandLimits(
                concurrency=settings.concurrency,
                max_in_flight=settings.max_in_flight or membership.max_in_flight,
                stop_grace_s=_STOP_GRACE_S,
            ),
            verifier=Verifier(
                node_id=membership.node_id,
                name=membership.name,
                fingerprint=lambda: credentials.preferred_keys.fingerprint,
                people=people,
                protected=settings.protected,
            ),
            refusals=self._key_audit,
        )
        self.commands.audit(
            NodeAuditKind.PROCESS_STARTED, bundle=list(self.trust.state.version), version=software_version()
        )
        self.commands.tell_owner_pin(people.people.pin)
        self._key_audit.audited_by(self.commands)
        self.routes = Routes(
            RouteParts(
                listen=settings.probe_listen,
                endpoints=settings.probe_endpoints,
                peer_endpoints=settings.routes_peer_endpoints,
                authority_required=settings.routes_authority_required,
                snapshot_path=parts.folder.routes,
                leaf_path=parts.folder.probe_leaf,
                identity=Identity(
                    membership.cluster_id, membership.node_id, lambda: credentials.preferred_keys.identity
                ),
                trust=self.trust,
                clock=self._clock,
                server_time=server_time,
                metrics=self.metrics.routes,
                audit=self._key_audit,
            )
        )
        self.link = Link(
            credentials=credentials,
            ports=Ports(
                commands=self.commands,
                telemetry=self.telemetry,
                trust=self.trust,
                ratchet=Ratchet(parts.folder.ratchet),
                mutual_tls=self._mutual_tls(parts),
                routes=self.routes,
            ),
            about=SelfDescription(
                software_version=software_version(),
                labels={**membership.labels, **settings.labels},
                drivers=parts.drivers.descriptors(settings.protected),
                boot_id=secrets.token_bytes(16),
            ),
            clock=self._clock,
            server_time=server_time,
            metrics=self.metrics.link,
            backoff=backoff,
            endpoints=settings.endpoints,
        )
        registry.before_collect(self._show_rooms)
        self._listener = MetricsListener(registry, healthz=_alive, readyz=self._ready) if parts.alone else None
        live = LiveSources(
            version=software_version(),
            started_at_ms=self._clock.now_ms(),
            clock=self._clock,
            server_time=server_time,
            link=self.link.live_status,
            credentials=self.link.credentials,
            trust=self.trust,
            drivers=parts.drivers,
            metrics=self.metrics,
            protected=lambda: protected_of(parts.drivers.actions, settings.protected, people.people.protects),
            metrics_address=lambda: self._metrics_address,
            routes=self.routes.status,
        )
        answers = Answers(
            live,
            folder=parts.folder,
            membership=membership,
            link=self.link,
            trust=self.trust,
            commands=self.commands,
            journal=self._journal,
        )
        self._control = ControlServer(parts.folder.control_socket, answers.short(), answers.long())

    def _mutual_tls(self, parts: Parts) -> MutualTls | None:
        if not parts.settings.mtls_endpoints:
            return None
        from fleet_node.link.mutual_tls import MutualTls  # reads certificates: a MiB that no other node needs

        path, node_id = parts.folder.client_certificate, parts.membership.node_id
        return MutualTls(parts.settings.mtls_endpoints, path, node_id, self._clock, self._key_audit)

    def stop(self) -> None:
        """End in order; `run` returns within `SHUTDOWN_TIMEOUT_S`."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve until `stop`.

        Raises:
            NodeFailedError: a task ended by itself; the cause is its exception.
            OSError: the control socket cannot be made.
        """
        running: dict[str, asyncio.Task[None]] = {}
        try:
            await self._start()
            running |= {name: asyncio.create_task(work, name=name) for name, work in self._tasks().items()}
            self._manager.ready(self._ready().detail)  # with the server away, too: it runs, and comes when it can
            await self._until_stopped(running)
        finally:
            await self._shut_down(running)

    def _tasks(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Everything that runs."""
        tasks: dict[str, Coroutine[Any, Any, None]] = {
            "link": self.link.run(),
            "collector": self.collector.run(),
            "routes": self.routes.run(),
        }
        if self._process is not None:
            tasks["process_metrics"] = self._process.run()
        if self._manager.listens:
            tasks["service_manager"] = self._manager.run(lambda: _alive().ok, lambda: self._ready().detail)
        return tasks

    async def _start(self) -> None:
        if self._parts.alone:
            await self._control.start()
        if self._process is not None:
            self._process.install()
        await self._listen()
        await self.routes.start()

    async def _listen(self) -> None:
        """Open the metrics listener. A taken port must not keep a node from its work: it is logged and shown."""
        address = self._parts.settings.metrics_listen
        if self._listener is None or not address:
            return
        host, _, port = address.rpartition(":")
        try:
            bound = await self._listener.start(host.strip("[]"), int(port))
        except OSError as error:
            self._metrics_address = f"not listening on {address}: {error.strerror or error}"
            log.error("metrics_listener_failed", address=address, error=str(error))
        else:
            self._metrics_address = f"{host}:{bound}"

    async def _until_stopped(self, running: dict[str, asyncio.Task[None]]) -> None:
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({*running.values(), stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        for name, task in running.items():
            if task.done():
                failure = task.exception() if not task.cancelled() else None
                log.critical("node_failed", task=name, exc_info=failure)
                raise NodeFailedError(f"{name} ended by itself: the node stops; see the log") from failure

    async def _shut_down(self, running: dict[str, asyncio.Task[None]]) -> None:
        self._manager.stopping("stopping")
        try:
            async with asyncio.timeout(SHUTDOWN_TIMEOUT_S):
                await self._shut_down_in_order(running)
        except TimeoutError:
            log.error("shutdown_cut_short", after_s=SHUTDOWN_TIMEOUT_S)
        finally:
            for task in running.values():
                task.cancel()
            if running:
                await asyncio.wait(running.values(), timeout=1.0)
            if self._process is not None:
                self._process.close()

    async def _shut_down_in_order(self, running: dict[str, asyncio.Task[None]]) -> None:
        self._key_audit.settle()
        await self.commands.close()
        self.link.stop()
        if "link" in running:
            await asyncio.wait({running["link"]})
        for name in running.keys() & {"collector", "routes"}:
            running[name].cancel()
            await asyncio.wait({running[name]})
        await self.telemetry.close()
        await self.routes.close()
        if self._listener is not None:
            await self._listener.close()
        await self._control.close()

    def _show_rooms(self) -> None:
        self.link.live_status()
        self.routes.show()

    def _ready(self) -> Health:
        state = self.link.status.state
        return Health(state in (LinkState.LIVE, LinkState.MOVING), f"stream: {state}")


def _alive() -> Health:
    return Health(True, "running")
