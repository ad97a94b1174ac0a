"""The rooms behind the Admin service, each with its file here, built from what the server consists of."""

from __future__ import annotations

from typing import Protocol

from fleet.clock import Clock
from fleet_server.admin.access import OperatorService
from fleet_server.admin.approvals import ApprovalsApi
from fleet_server.admin.commands import CommandsApi
from fleet_server.admin.enrollment import EnrollmentApi
from fleet_server.admin.keys import KeysApi
from fleet_server.admin.nodes import NodesApi
from fleet_server.admin.operators import OperatorsApi
from fleet_server.admin.replicas import ReplicasApi
from fleet_server.admin.routes import RoutesApi
from fleet_server.admin.rpc import AdminRooms
from fleet_server.admin.telemetry import TelemetryApi
from fleet_server.admin.tls import TlsApi
from fleet_server.admin.trail import TrailApi
from fleet_server.approvals.service import ApprovalService
from fleet_server.audit.node_audit import NodeAudit
from fleet_server.audit.service import AuditService
from fleet_server.commands.service import CommandService
from fleet_server.config import Settings
from fleet_server.database.wakeup import Wakeup
from fleet_server.enrollment.service import EnrollmentService
from fleet_server.installation.service import InstallationService
from fleet_server.nodes.service import NodeService
from fleet_server.observability.metrics import ServerMetrics
from fleet_server.replicas.service import ReplicaService
from fleet_server.routes.service import RouteService
from fleet_server.sessions.service import SessionService
from fleet_server.telemetry.service import TelemetryService
from fleet_server.trust.rotation import KeyRotation
from fleet_server.trust.service import TrustService
from fleet_server.trust.succession import AuthorityRotation
from fleet_server.trust.tls_rotation import TlsRotation


class Services(Protocol):
    """What the server consists of, as far as operators reach it."""

    settings: Settings
    replica_id: str
    clock: Clock
    wakeup: Wakeup
    metrics: ServerMetrics
    audit: AuditService
    trust: TrustService
    installation: InstallationService
    rotation: KeyRotation
    tls_rotation: TlsRotation
    nodes: NodeService
    sessions: SessionService
    node_audit: NodeAudit
    enrollment: EnrollmentService
    commands: CommandService
    approvals: ApprovalService
    replicas: ReplicaService
    telemetry: TelemetryService
    operators: OperatorService
    routes: RouteService


def admin_rooms(server: Services) -> AdminRooms:
    """One handler object a room."""
    return AdminRooms(
        operators=OperatorsApi(server.operators, server.trust, server.installation, server.replica_id),
        enrollment=EnrollmentApi(server.enrollment, server.clock),
        nodes=NodesApi(
            server.nodes,
            server.sessions.rotations,
            server.node_audit,
            server.wakeup,
            server.clock,
            server.sessions.any_machine_until_ms,
        ),
        commands=CommandsApi(server.commands, server.metrics.streams.refusals),
        replicas=ReplicasApi(
            server.replicas,
            server.clock,
            delay_s=server.settings.drain_delay_s,
            deadline_s=server.settings.drain_deadline_s,
        ),
        telemetry=TelemetryApi(server.telemetry),
        trail=TrailApi(server.audit),
        approvals=ApprovalsApi(server.trust, server.approvals),
        keys=KeysApi(server.trust, server.rotation, AuthorityRotation(server.trust), server.nodes),
        tls=TlsApi(server.trust, server.tls_rotation),
        routes=RoutesApi(server.routes, server.nodes, server.wakeup, server.clock),
    )
