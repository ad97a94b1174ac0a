"""The composition root: every room is built here, and `Server.run` ends in the visible list of running tasks.

Order of a start: database, trust, rooms, listeners, ready. Order of an end: not ready, replica DRAINING, listener
closed while live streams go on, goaways, what is left aborted, last writes, exit. A second signal shortens the
deadline; nothing waits without a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from fleet.clock import Clock, SystemClock
from fleet.heap import settle_heap
from fleet.logs import get_logger
from fleet.metrics import Registry
from fleet.metrics_listener import Federation, MetricsListener
from fleet.process_metrics import ProcessMetrics
from fleet.version import software_version
from fleet_server import leaving, listeners
from fleet_server.admin.access import OperatorService
from fleet_server.admin.reflection import Reflection
from fleet_server.admin.rooms import admin_rooms
from fleet_server.admin.rpc import SERVICE as ADMIN_SERVICE
from fleet_server.admin.rpc import Admin
from fleet_server.approvals.service import ApprovalService
from fleet_server.audit.node_audit import NodeAudit
from fleet_server.audit.service import AuditService
from fleet_server.boundary import Boundary
from fleet_server.certificates import ServerCertificates
from fleet_server.commands.service import CommandService
from fleet_server.config import Settings
from fleet_server.database.engine import Database
from fleet_server.database.wakeup import Wakeup
from fleet_server.enrollment.service import EnrollmentService
from fleet_server.installation.rpc import SERVICE as INSTALLATION_SERVICE
from fleet_server.installation.rpc import InstallationApi
from fleet_server.installation.service import InstallationService
from fleet_server.leaving import Leaving, write_last
from fleet_server.listeners import Listener
from fleet_server.nodes.service import NodeService
from fleet_server.observability.health import GATEWAY_SERVICE, ServerHealth
from fleet_server.observability.metrics import ServerMetrics
from fleet_server.replicas.identity import own_replica_id
from fleet_server.replicas.rules import ReplicaState
from fleet_server.replicas.service import ReplicaService
from fleet_server.sessions.admission import Admission, AdmissionPolicy, Strangers
from fleet_server.sessions.service import SessionService
from fleet_server.stop_request import StopRequest
from fleet_server.streams.frames import FrameLimits
from fleet_server.streams.registry import StreamRegistry
from fleet_server.streams.rpc import Gateway
from fleet_server.streams.stream import Rooms
from fleet_server.telemetry.service import TelemetryService
from fleet_server.trust.master_keys import MasterKeys
from fleet_server.trust.rotation import KeyRotation
from fleet_server.trust.secrets import Secrets
from fleet_server.trust.service import TrustService
from fleet_server.trust.tls_rotation import TlsRotation

log = get_logger(__name__)


class Server:
    """One server process.

    Args:
        settings: validated.
        secrets: derived from the secret encryption key.
        certificates: the server's TLS.
        clock: the machine's by default.
        end_within: has this process be gone in so many seconds, whatever hangs; nothing does by default.
    """

    def __init__(
        self,
        settings: Settings,
        secrets: Secrets,
        certificates: ServerCertificates,
        clock: Clock | None = None,
        *,
        end_within: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.settings = settings
        self._end_within = end_within
        self.replica_id = settings.replica_id or own_replica_id(settings.data_dir)
        self.clock = clock or SystemClock()
        self.registry = Registry()
        self.metrics = ServerMetrics(self.registry)
        self.process = ProcessMetrics(self.registry, self.clock, component="fleet-server", version=software_version())
        self.wakeup = Wakeup()
        self._secrets = secrets
        self.certificates = certificates
        self._build_foundation()

    def _build_foundation(self) -> None:
        """Database, audit, trust, nodes: what does not need the cluster's id."""
        self.database = Database(
            self.settings.resolved_database_url(), metrics=self.metrics.database, readers=self.settings.database_readers
        )
        self.registry.before_collect(
            lambda: self.metrics.database.measure(self.database.writer.depth(), self.database.waiting_reads)
        )
        metrics = self.metrics.audit
        self.audit = AuditService(
            database=self.database,
            clock=self.clock,
            wakeup=self.wakeup,
            writer=self.replica_id,
            row_mac=self._secrets.row_mac,
            metrics=metrics,
        )
        self.node_audit = NodeAudit(self.database, self.clock, self.wakeup, self.audit, metrics)
        self.trust = TrustService(
            database=self.database,
            secrets=self._secrets,
            clock=self.clock,
            audit=self.audit,
            wakeup=self.wakeup,
            cluster_name=self.settings.cluster_name,
        )
        self.master_keys = MasterKeys(database=self.database, secrets=self._secrets, clock=self.clock)
        self.installation = InstallationService(
            database=self.database,
            clock=self.clock,
            audit=self.audit,
            strict=self.settings.is_strict,
            root_key=self.settings.root_key(),
            challenge_key=lambda: self._secrets.derive("owner-challenge"),
            bucket=Strangers(self.clock.monotonic()),
        )
        self.nodes = NodeService(
            database=self.database,
            clock=self.clock,
            wakeup=self.wakeup,
            audit=self.audit,
            row_mac=self._secrets.row_mac("nodes"),
            replica_id=self.replica_id,
        )

    def build_rooms(self) -> None:
        """Everything that serves nodes and operators."""
        settings, clock = self.settings, self.clock
        self.sessions = SessionService(
            database=self.database,
            clock=clock,
            audit=self.audit,
            metrics=self.metrics.sessions,
            secrets=self._secrets,
            trust=self.trust,
            nodes=self.nodes,
            admission=Admission(
                clock=clock, metrics=self.metrics.sessions, policy=AdmissionPolicy.at(settings.handshake_rate_per_s)
            ),
            accepted_leaves=lambda: self.certificates.accepted_leaves() | settings.terminator_leaves(),
            session_ttl_ms=settings.session_ttl_s * 1000,
            rotations_per_day=settings.node_rotations_per_day,
        )
        self.nodes.on_revoke(self.sessions.rotations.revoke_api_keys)
        self.nodes.show_rotating_with(self.sessions.rotations.open)
        holdings = self.nodes.bundle_holdings
        self.rotation = KeyRotation(self.trust, holdings, days=settings.command_key_rotation_days)
        self.tls_rotation = TlsRotation.of_server(self.trust, holdings, settings, self.certificates)
        self.enrollment = EnrollmentService(
            database=self.database,
            clock=clock,
            audit=self.audit,
            metrics=self.metrics.enrollment,
            secrets=self._secrets,
            trust=self.trust,
            nodes=self.nodes,
            admission=self.sessions.admission,
            issue_api_key=self.sessions.rotations.issue_api_key,
        )
        self.nodes.on_revoke(self.enrollment.checklist_of)
        self.commands = CommandService(
            database=self.database,
            clock=clock,
            wakeup=self.wakeup,
            audit=self.audit,
            nodes=self.nodes,
            metrics=self.metrics.commands,
            row_mac=self._secrets.row_mac("commands"),
            cluster_id=self.trust.cluster_id,
            policy_covers=self.trust.people.policy_covers,
            retention_s=settings.command_retention_s,
        )
        self.nodes.count_open_with(self.commands.open_counts)
        self.operators = OperatorService(database=self.database, clock=clock, audit=self.audit, secrets=self._secrets)
        self.approvals = ApprovalService(
            database=self.database,
            clock=clock,
            audit=self.audit,
            trust=self.trust,
            commands=self.commands,
            may_order=self.operators.may_order,
            row_mac=self._secrets.row_mac("approvals"),
            retention_s=settings.approval_retention_s,
        )
        self.telemetry = TelemetryService(
            database=self.database,
            clock=clock,
            nodes=self.nodes,
            metrics=self.metrics.telemetry,
            retention_s=settings.telemetry_retention_s,
        )
        self.streams = StreamRegistry(
            clock=clock,
            wakeup=self.wakeup,
            sessions=self.sessions,
            metrics=self.metrics.streams,
            heartbeat_ms=int(settings.heartbeat_interval_s * 1000),
            session_ttl_ms=settings.session_ttl_s * 1000,
            max_streams=settings.max_streams,
        )
        self.commands.hand_over_to(self.streams.lane)
        self.sessions.adopt_nodes(self.commands.abandon_signed)
        self.replicas = ReplicaService(
            database=self.database,
            clock=clock,
            wakeup=self.wakeup,
            audit=self.audit,
            replica_id=self.replica_id,
            version=software_version(),
            streams=lambda: len(self.streams),
            admission_per_s=lambda: self.sessions.admission.rate_per_s,
            on_lost=self.nodes.forget_streams,
            secret_keys=lambda: self._secrets.key_ids,
        )
        self.installation.make_owners_with(self.operators.make_owner)
        self.trust.people.expect_first_owner(self.installation.first_owner_key)

    async def run(self) -> int:
        """Serve until a signal or a drain request; the exit code.

        Raises:
            Refusal, ListenError, TrustSetupError: it cannot start; the message says what to do.
        """
        stopping = StopRequest()
        self.database.start()
        try:
            await self.master_keys.load()
            await self.trust.load()
            await self.installation.load(self.trust.installation_id, self.trust.cluster_id)
            self.build_rooms()
            await self.commands.load()
            await self.replicas.register()
            await self.tls_rotation.open(self.settings.advertised_endpoints())
            async with contextlib.AsyncExitStack() as listening:
                gateway = await self._listen(listening)
                return await self._serve(gateway, stopping)
        finally:
            self._end_within(leaving.LEAVE_WITHIN_S)
            await self.database.close()

    async def _listen(self, stack: contextlib.AsyncExitStack) -> Listener:
        settings = self.settings
        boundary = Boundary(self.metrics.streams.refusals)
        self.health = await ServerHealth.create()
        rooms = Rooms(
            commands=self.commands,
            nodes=self.nodes,
            sessions=self.sessions,
            telemetry=self.telemetry,
            trust=self.trust,
            node_audit=self.node_audit,
            clock=self.clock,
            metrics=self.metrics,
        )
        self.gateway = Gateway(
            rooms=rooms,
            enrollment=self.enrollment,
            registry=self.streams,
            boundary=boundary,
            require_active=self.installation.require_active,
            replica_id=self.replica_id,
            max_unary_calls=settings.handshake_concurrency,
            limits=FrameLimits(settings.max_frame_bytes, settings.max_telemetry_frame_bytes),
        )
        admin = Admin(
            rooms=admin_rooms(self),
            access=self.operators,
            boundary=boundary,
            require_active=self.installation.require_active,
        )
        installation = InstallationApi(
            self.installation, boundary, authenticate=self.operators.authenticate, chain=self.trust.fresh_chain
        )
        gateway_server = listeners.open_gateway(self.gateway.handlers(), settings.max_streams, settings.max_frame_bytes)
        services = (ADMIN_SERVICE, INSTALLATION_SERVICE)
        reflection = Reflection(services=services, access=self.operators, boundary=boundary)
        admin_server = listeners.open_admin((admin.handlers(), installation.handlers(), reflection.handlers()))
        self.health.register(gateway_server, GATEWAY_SERVICE)
        self.health.register(admin_server, ADMIN_SERVICE)
        admin_listener = await listeners.start(
            admin_server, settings.admin_listen, self.certificates.credentials(), "admin_listen"
        )
        stack.push_async_callback(admin_server.stop, 0.5)
        if settings.metrics_listen not in ("", "off"):
            metrics = MetricsListener(
                self.registry,
                healthz=self.health.healthz,
                readyz=self.health.readyz,
                federate=Federation(self.telemetry.federate, self.metrics.telemetry.federation_dropped),
            )
            host, port = listeners.split_listen(settings.metrics_listen)
            log.info("metrics_listening", address=f"{host}:{await metrics.start(host, port)}")
            stack.push_async_callback(metrics.close)
        if settings.mtls_listen:
            credentials = self.certificates.credentials(self.sessions.certificates.offer())
            mtls = listeners.bind(gateway_server, settings.mtls_listen, credentials, "mtls_listen")
            log.info("mtls_listening", address=mtls.address)
        gateway = await listeners.start(
            gateway_server, settings.gateway_listen, self.certificates.credentials(), "gateway_listen"
        )
        stack.push_async_callback(gateway_server.stop, 0)
        log.info("listening", gateway=gateway.address, admin=admin_listener.address)
        return gateway

    async def _serve(self, gateway: Listener, stopping: StopRequest) -> int:
        tasks = [
            asyncio.create_task(work, name=name)
            for name, work in {
                "heartbeats": self.streams.run(),
                "liveness": self.nodes.run_liveness(),
                "node-decisions": self.nodes.run_decisions(),
                "command-expiry": self.commands.run_expiry(),
                "command-poll": self.commands.run_poll(),
                "telemetry-flush": self.telemetry.run_flush(),
                "telemetry-retention": self.telemetry.run_retention(),
                "session-cleanup": self.sessions.run_cleanup(),
                "refusal-audit": self.sessions.run_audit(),
                "call-audit": self.operators.run(),
                "trust": self.trust.run(),
                "secret-keys": self.master_keys.run(),
                "approvals": self.approvals.run(),
                "installation": self.installation.run(),
                "trust-watch": self.trust.watch.run(),
                "key-rotation": self.rotation.run(),
                "certificates": self.tls_rotation.run(),
                "audit-checkpoints": self.audit.run_checkpoints(self.trust.sign_checkpoint, self.trust.cluster_id),
                "replica": self.replicas.run(),
                "process-metrics": self.process.run(),
            }.items()
        ]
        self.process.install()
        settle_heap()
        await self.health.set_ready()
        await self.replicas.set_state(ReplicaState.READY)
        log.info("ready", replica_id=self.replica_id, version=software_version())
        try:
            failed = await self._wait_for_end(tasks, stopping)
            ending = Leaving(
                gateway=self.gateway,
                streams=self.streams,
                replicas=self.replicas,
                sessions=self.sessions,
                health=self.health,
                clock=self.clock,
                metrics=self.metrics.streams,
                end_within=self._end_within,
            )
            await ending.drain(gateway.server, stopping, self.settings.drain_deadline_s)
            await self._last_writes()
        finally:
            self.process.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return 1 if failed else 0

    async def _wait_for_end(self, tasks: list[asyncio.Task[None]], stopping: StopRequest) -> bool:
        """Until a signal, a drain request, or a task that should never end; whether it was the last."""
        asked = asyncio.create_task(self._drain_requested(stopping))
        signalled = asyncio.create_task(stopping.first.wait())
        done, _ = await asyncio.wait({*tasks, asked, signalled}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        signalled.cancel()
        for task in set(tasks) & done:
            log.error("task_ended", task=task.get_name(), exc_info=task.exception())
        return bool(set(tasks) & done)

    async def _drain_requested(self, stopping: StopRequest) -> None:
        request = await self.replicas.wait_drain_requested()
        stopping.ordered(request.reason, request.deadline_ms, self.clock.now_ms())

    async def _last_writes(self) -> None:
        await write_last(
            [
                self.telemetry.flush(),
                self.nodes.flush(),
                self.sessions.flush_audit(),
                self.operators.flush(),
                self.replicas.set_state(ReplicaState.STOPPED),
                self.audit.checkpoint(self.trust.sign_checkpoint, self.trust.cluster_id),
            ]
        )
        self.telemetry.close()
        await self.health.close()
