"""Every metric of a node, by the room that keeps it. docs/metrics.md is generated from here.

A room is handed its own group and nothing else: `NodeMetrics(registry).link` goes to `link`. Label values
are the names in the wire's enums without their prefix, and the reasons of docs/protocol.md, "Refusals".
"""

from __future__ import annotations

from fleet.metrics import COMMIT_BUCKETS_S, LATENCY_BUCKETS_S, Registry

STREAM_STATES = ("connecting", "live", "moving", "waiting", "stopped")
FINAL_STATES = ("SUCCEEDED", "FAILED", "EXPIRED", "CANCELLED", "REJECTED", "INTERRUPTED")
WALK_RESULTS = ("ANSWERED", "DRIFT", "UNREACHABLE", "INCONCLUSIVE")
ROUTE_STATES = ("UNSPECIFIED", "HEALTHY", "DEGRADED", "DRIFT", "UNREACHABLE")
REFRESH_OUTCOMES = ("REPLACED", "SAME_VERSION", "NO_CHANGE", "WITHDRAWN", "TIMED_OUT", "REFUSED")


class LinkMetrics:
    """The stream to the server (docs/protocol.md, "Session" and "Liveness")."""

    def __init__(self, registry: Registry) -> None:
        self.stream = registry.state(
            "fleet_node_stream_state",
            "1 for the state the stream is in, 0 for the others.",
            states=STREAM_STATES,
        )
        self.reconnects = registry.counters(
            "fleet_node_reconnects_total",
            "Streams that had to be replaced, by reason: a goaway's, a refusal's, or how it was lost.",
            labels=("reason",),
        )
        self.backoff = registry.gauge(
            "fleet_node_backoff_seconds",
            "Delay before the next attempt; 0 while a stream is up.",
            unit="seconds",
        )
        self.handshakes = registry.counters(
            "fleet_node_handshakes_total",
            "Attempts to open a stream, by outcome: ok or the reason.",
            labels=("outcome",),
        )
        self.clock_offset = registry.gauge(
            "fleet_node_clock_offset_seconds",
            "Node clock minus server clock, from the last ping.",
            unit="seconds",
        )
        self.round_trip = registry.gauge(
            "fleet_node_round_trip_seconds", "Round trip over the stream, from the last ping.", unit="seconds"
        )
        self.bundle_generation = registry.gauge(
            "fleet_node_trust_bundle_generation", "Authority generation of the trust bundle in force."
        )
        self.bundle_number = registry.gauge("fleet_node_trust_bundle_number", "Number of the trust bundle in force.")


class CommandMetrics:
    """Commands and the journal (docs/protocol.md, "Commands"). Its thread writes `commit_duration`."""

    def __init__(self, registry: Registry) -> None:
        self.finished = registry.counters(
            "fleet_node_commands_finished_total",
            "Commands that reached a final state, by state.",
            labels=("state",),
            values=FINAL_STATES,
        )
        self.accept_to_result = registry.histogram(
            "fleet_node_command_accept_to_result_seconds",
            "Time from durable acceptance to durable result.",
            buckets=LATENCY_BUCKETS_S,
            unit="seconds",
        )
        self.running = registry.gauge("fleet_node_commands_running", "Commands that run now.")
        self.statement_refusals = registry.counters(
            "fleet_node_statement_refusals_total",
            "Whole statements refused, by reason. Anything here deserves a look.",
            labels=("reason",),
        )
        self.intent_refusals = registry.counters(
            "fleet_node_protected_refusals_total",
            "Commands of protected actions refused for what people signed or did not sign, by reason.",
            labels=("reason",),
        )
        self.audit_sent = registry.counter(
            "fleet_node_audit_rows_acknowledged_total", "Rows of the node's own audit that the server stored."
        )
        self.commit_duration = registry.histogram(
            "fleet_node_journal_commit_seconds",
            "Time of one journal commit, to the disk.",
            buckets=COMMIT_BUCKETS_S,
            unit="seconds",
        )
        self.journal_rows = registry.gauge("fleet_node_journal_rows", "Commands in the journal, not yet trimmed.")
        self.report_backlog = registry.gauge(
            "fleet_node_reports_unacknowledged", "State reports that the server has not acknowledged."
        )
        self.disk_full = registry.counter(
            "fleet_node_disk_full_refusals_total",
            "Commands refused because the journal could not be written.",
        )
        self.drained = registry.gauge("fleet_node_drained", "1 while the node is drained and takes no work.")


class TelemetryMetrics:
    """Telemetry collected and spooled (docs/protocol.md, "Telemetry")."""

    def __init__(self, registry: Registry) -> None:
        self.samples = registry.counter("fleet_node_telemetry_samples_total", "Telemetry samples collected.")
        self.stalled = registry.gauge(
            "fleet_node_telemetry_drivers_stalled",
            "Drivers whose telemetry has not come back for half a minute; the log names them.",
        )
        self.batches = registry.counter(
            "fleet_node_telemetry_batches_total", "Telemetry batches sent, repeats among them."
        )
        self.spool_size = registry.gauge("fleet_node_spool_bytes", "Telemetry spooled on disk.", unit="bytes")
        self.spool_batches = registry.gauge("fleet_node_spool_batches", "Telemetry batches spooled on disk.")
        self.spool_dropped = registry.counter(
            "fleet_node_spool_dropped_batches_total", "Oldest batches dropped because the spool was full."
        )


class RouteMetrics:
    """Routes and probes (docs/protocol.md, "Routes" and "Probes")."""

    def __init__(self, registry: Registry) -> None:
        self.walks = registry.counters(
            "fleet_node_route_walks_total",
            "Walks of paths whose source this node is, by what they showed.",
            labels=("result",),
            values=WALK_RESULTS,
        )
        self.walk_rtt = registry.histogram(
            "fleet_node_route_walk_seconds",
            "Round trip of walks that were answered.",
            buckets=LATENCY_BUCKETS_S,
            unit="seconds",
        )
        self.routes = registry.gauges(
            "fleet_node_routes",
            "Routes whose source this node is, by the state of the path in force.",
            labels=("state",),
            values=ROUTE_STATES,
        )
        self.refreshes_asked = registry.counter(
            "fleet_node_route_refreshes_asked_total", "Routes for which the node asked for its snapshot."
        )
        self.refreshes_held_back = registry.counter(
            "fleet_node_route_refreshes_held_back_total",
            "Routes for which it would have, but for one that was out, a minimum interval or a cooldown.",
        )
        self.refreshes = registry.counters(
            "fleet_node_route_refreshes_total",
            "What came of asks, by outcome; REPLACED and WITHDRAWN were useful.",
            labels=("outcome",),
            values=REFRESH_OUTCOMES,
        )
        self.snapshots = registry.counters(
            "fleet_node_route_snapshots_total",
            "Config snapshots that came, by outcome: applied, or the reason of the refusal.",
            labels=("outcome",),
        )
        self.config_version = registry.gauge(
            "fleet_node_route_config_version", "Version of the config snapshot in force; 0 when there is none."
        )
        self.findings_dropped = registry.counter(
            "fleet_node_route_findings_dropped_total",
            "Findings about routes that were dropped because the server was away for long.",
        )
        self.probes_answered = registry.counter(
            "fleet_node_probes_answered_total", "Probes of other nodes that were answered, as an end or as a relay."
        )
        self.probes_refused = registry.counters(
            "fleet_node_probes_refused_total", "Probes of other nodes that were refused, by reason.", labels=("reason",)
        )


class NodeMetrics:
    """All groups. Build one for each node instance; a registry takes each name once.

    Args:
        registry: the instance's registry.
    """

    def __init__(self, registry: Registry) -> None:
        self.link = LinkMetrics(registry)
        self.commands = CommandMetrics(registry)
        self.telemetry = TelemetryMetrics(registry)
        self.routes = RouteMetrics(registry)
