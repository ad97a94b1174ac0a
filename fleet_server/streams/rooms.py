"""What a stream goes down into: the rooms below it, and what all streams of a replica share."""

from __future__ import annotations

from dataclasses import dataclass, field

from fleet.clock import Clock
from fleet_server.audit.node_audit import NodeAudit
from fleet_server.commands.service import CommandService
from fleet_server.nodes.service import NodeService
from fleet_server.observability.metrics import ServerMetrics
from fleet_server.routes.service import RouteService
from fleet_server.sessions.service import SessionService
from fleet_server.streams.report_lane import HeldReports
from fleet_server.telemetry.service import TelemetryService
from fleet_server.trust.service import TrustService


@dataclass(frozen=True, slots=True)
class Rooms:
    """The rooms that a stream goes down into."""

    commands: CommandService
    nodes: NodeService
    sessions: SessionService
    telemetry: TelemetryService
    trust: TrustService
    node_audit: NodeAudit
    routes: RouteService
    clock: Clock
    metrics: ServerMetrics
    held_reports: HeldReports = field(default_factory=HeldReports)
