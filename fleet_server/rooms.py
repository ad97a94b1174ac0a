"""The rooms of a server: each is built here once, and handed what it needs of others.

Two steps, because half of them need the id of the cluster, which stands in the database: `ServerRooms(…)` builds what
stands under it, `build_rooms` the rest, once trust is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fleet.clock import Clock, SystemClock
from fleet.metrics import Registry
from fleet.process_metrics import ProcessMetrics
from fleet.version import software_version
from fleet_server.admin.access import OperatorService
from fleet_server.approvals.service import ApprovalService
from fleet_server.audit.node_audit import NodeAudit
from fleet_server.audit.rewinds import note_rewind
from fleet_server.audit.service import AuditService
from fleet_server.certificates import ServerCertificates
from fleet_server.commands.service import CommandService
from fleet_server.config import Settings
from fleet_server.database.engine import Connection, Database
from fleet_server.database.relay import Relay
from fleet_server.database.transports import transport_for
from fleet_server.database.wakeup import Wakeup
from fleet_server.enrollment.service import EnrollmentService
from fleet_server.installation.service import InstallationService
from fleet_server.nodes.ownership import refuse_stale
from fleet_server.nodes.service import NodeService
from fleet_server.observability.metrics import ServerMetrics
from fleet_server.replicas.fence import Fence
from fleet_server.replicas.identity import own_replica_id
from fleet_server.replicas.marks import CommitMarks
from fleet_server.replicas.rules import Vitals
from fleet_server.replicas.service import ReplicaService
from fleet_server.routes.service import RouteService, policy_of
from fleet_server.sessions.admission import Admission, AdmissionPolicy
from fleet_server.sessions.capacity import Capacity
from fleet_server.sessions.service import SessionService
from fleet_server.sessions.strangers import Strangers
from fleet_server.streams.balancing import Balancing
from fleet_server.streams.registry import StreamRegistry
from fleet_server.telemetry.service import TelemetryService
from fleet_server.trust.master_keys import MasterKeys
from fleet_server.trust.rotation import KeyRotation
from fleet_server.trust.secrets import Secrets
from fleet_server.trust.service import TrustService
from fleet_server.trust.tls_rotation import TlsRotation


class ServerRooms:
    """What one server process consists of.

    Args:
        settings: validated.
        secrets: derived from the secret encryption key.
        certificates: the server's TLS.
        clock: the machine's by default.
        place: of the data folder that this process has locked (`bootstrap.HeldFolder`); empty for none.
    """

    def __init__(
        self,
        settings: Settings,
        secrets: Secrets,
        certificates: ServerCertificates,
        clock: Clock | None = None,
        *,
        place: str = "",
    ) -> None:
        self.settings = settings
        self.replica_id = settings.replica_id or own_replica_id(settings.data_dir)
        self.clock = clock or SystemClock()
        self.registry = Registry()
        self.metrics = ServerMetrics(self.registry)
        self.process = ProcessMetrics(self.registry, self.clock, component="fleet-server", version=software_version())
        self.wakeup = Wakeup()
        self._secrets = secrets
        self._place = place
        self.certificates = certificates
        self._build_foundation()

    def _build_foundation(self) -> None:
        """Database, audit, trust, nodes: what does not need the cluster's id."""
        self.database = Database(
            self.settings.resolved_database_url(), metrics=self.metrics.database, readers=self.settings.database_readers
        )
        self.registry.before_collect(
            lambda: self.metrics.database.measure(
                self.database.writer.depth(),
                self.database.waiting_reads,
                self.database.clock.offset_ms(self.clock) / 1000,
            )
        )
        self.marks = CommitMarks(self.database, self.clock, self.replica_id, self._note_rewind)
        self.fence = Fence(
            database=self.database,
            clock=self.clock,
            replica_id=self.replica_id,
            place=self._place,
            version=software_version(),
            see_not_rewound=self.marks.look,
        )
        metrics = self.metrics.audit
        self.audit = AuditService(
            database=self.database,
            clock=self.clock,
            wakeup=self.wakeup,
            writer=self.replica_id,
            row_mac=self._secrets.row_mac,
            metrics=metrics,
            hold=self.fence.check,
        )
        self.node_audit = NodeAudit(
            self.database,
            self.clock,
            self.wakeup,
            self.audit,
            metrics,
            refuse_stale=lambda conn, node_id, epoch: refuse_stale(self.nodes, conn, node_id, epoch),
        )
        self.trust = TrustService(
            database=self.database,
            secrets=self._secrets,
            clock=self.clock,
            audit=self.audit,
            wakeup=self.wakeup,
            cluster_name=self.settings.cluster_name,
        )
        self.wakeup.on_hint("bundle", lambda _: self.trust.watch.look_soon(), pause_s=0.1)
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

    async def _note_rewind(self, found: Mapping[str, int], since: int | None) -> None:
        url, row_mac = self.settings.resolved_database_url(), self._secrets.row_mac
        await note_rewind(url, row_mac, self.clock, found_by=self.replica_id, detail=found, since=since)

    def build_rooms(self) -> None:
        """Everything that serves nodes and operators; once trust is loaded."""
        self._build_relay()
        self._build_sessions()
        self._build_rotations()
        self._build_enrollment()
        self._build_commands()
        self._build_telemetry()
        self._build_routes()
        self._build_streams()
        self.installation.make_owners_with(self.operators.make_owner)
        self.trust.people.expect_first_owner(self.installation.first_owner_key)

    def _build_relay(self) -> None:
        """The way of wake-ups to the other replicas; none where there can be none."""
        transport = transport_for(
            self.settings.wakeup,
            database_url=self.settings.resolved_database_url(),
            cluster_id=self.trust.cluster_id,
            ca_file=self.settings.wakeup_ca_file,
            credentials_file=self.settings.wakeup_credentials_file,
        )
        self.relay = (
            None
            if transport is None
            else Relay(transport=transport, wakeup=self.wakeup, clock=self.clock, metrics=self.metrics.wakeup)
        )

    def _build_sessions(self) -> None:
        self.sessions = SessionService(
            database=self.database,
            clock=self.clock,
            audit=self.audit,
            metrics=self.metrics.sessions,
            secrets=self._secrets,
            trust=self.trust,
            nodes=self.nodes,
            admission=Admission(
                clock=self.clock,
                metrics=self.metrics.sessions,
                policy=AdmissionPolicy.at(self.settings.handshake_rate_per_s),
            ),
            accepted_leaves=lambda: self.certificates.accepted_leaves() | self.settings.terminator_leaves(),
            session_ttl_ms=self.settings.session_ttl_s * 1000,
            rotations_per_day=self.settings.node_rotations_per_day,
        )
        self.nodes.on_revoke(self.sessions.rotations.revoke_api_keys)
        self.nodes.show_rotating_with(self.sessions.rotations.open)

    def _build_rotations(self) -> None:
        holdings = self.nodes.bundle_holdings
        self.rotation = KeyRotation(self.trust, holdings, days=self.settings.command_key_rotation_days)
        self.tls_rotation = TlsRotation.of_server(
            self.trust,
            holdings,
            self.settings,
            self.certificates,
            elsewhere=self._without_tls_ca,
        )

    def _without_tls_ca(self, conn: Connection, sha256: bytes) -> Sequence[str]:
        return self.replicas.without_tls_ca(conn, sha256)

    def _build_enrollment(self) -> None:
        self.enrollment = EnrollmentService(
            database=self.database,
            clock=self.clock,
            audit=self.audit,
            metrics=self.metrics.enrollment,
            secrets=self._secrets,
            trust=self.trust,
            nodes=self.nodes,
            admission=self.sessions.admission,
            issue_api_key=self.sessions.rotations.issue_api_key,
        )
        self.nodes.on_revoke(self.enrollment.checklist_of)

    def _build_commands(self) -> None:
        self.commands = CommandService(
            database=self.database,
            clock=self.clock,
            wakeup=self.wakeup,
            audit=self.audit,
            nodes=self.nodes,
            metrics=self.metrics.commands,
            row_mac=self._secrets.row_mac("commands"),
            cluster_id=self.trust.cluster_id,
            policy_covers=self.trust.people.policy_covers,
            retention_s=self.settings.command_retention_s,
        )
        self.nodes.count_open_with(self.commands.open_counts)
        self.operators = OperatorService(
            database=self.database, clock=self.clock, audit=self.audit, secrets=self._secrets
        )
        self.approvals = ApprovalService(
            database=self.database,
            clock=self.clock,
            audit=self.audit,
            trust=self.trust,
            commands=self.commands,
            may_order=self.operators.may_order,
            row_mac=self._secrets.row_mac("approvals"),
            retention_s=self.settings.approval_retention_s,
        )

    def _build_telemetry(self) -> None:
        self.telemetry = TelemetryService(
            database=self.database,
            clock=self.clock,
            nodes=self.nodes,
            metrics=self.metrics.telemetry,
            retention_s=self.settings.telemetry_retention_s,
        )

    def _build_routes(self) -> None:
        self.routes = RouteService(
            metrics=self.metrics.routes,
            database=self.database,
            clock=self.clock,
            wakeup=self.wakeup,
            audit=self.audit,
            nodes=self.nodes,
            trust=self.trust,
            row_mac=self._secrets.row_mac,
            policy=policy_of(self.settings),
            relay_loss_ms=int(self.settings.relay_loss_s * 1000),
            retention_ms=self.settings.route_retention_s * 1000,
        )
        self.nodes.on_revoke(self.routes.node_ended)
        self.nodes.on_decided(self.routes.nodes_decided)

    def _build_streams(self) -> None:
        self.streams = StreamRegistry(
            clock=self.clock,
            wakeup=self.wakeup,
            sessions=self.sessions,
            metrics=self.metrics.streams,
            heartbeat_ms=int(self.settings.heartbeat_interval_s * 1000),
            session_ttl_ms=self.settings.session_ttl_s * 1000,
            max_streams=self.settings.max_streams,
        )
        self.commands.hand_over_to(self.streams.lane)
        self.sessions.adopt_nodes(self.commands.abandon_signed)
        self._capacity = Capacity(self.sessions.admission, self.clock)
        self.replicas = ReplicaService(
            database=self.database,
            clock=self.clock,
            wakeup=self.wakeup,
            audit=self.audit,
            replica_id=self.replica_id,
            fence=self.fence,
            version=software_version(),
            vitals=self._vitals,
            on_lost=self.nodes.forget_streams,
            on_return=lambda: self.streams.leave_overtaken(self.nodes.newest_epochs),
            secret_keys=lambda: self._secrets.key_ids,
            tls_cas=self.tls_rotation.shown_from_outside,
        )
        self.balancing = Balancing(
            registry=self.streams,
            replicas=self.replicas.seen_lately,
            own_id=self.replica_id,
            clock=self.clock,
            metrics=self.metrics.streams,
            enabled=self.settings.rebalance,
        )

    def _vitals(self) -> Vitals:
        self._capacity.measure()
        return Vitals(
            streams=len(self.streams),
            max_streams=self.settings.max_streams,
            admission_per_s=self._capacity.offered_per_s,
            admitted_per_s=self._capacity.taking_per_s,
            endpoints=self.settings.advertised_endpoints(),
        )
