"""Every metric of the server, by the room that keeps it. docs/metrics.md is generated from here.

A room is handed its own group and nothing else: `ServerMetrics(registry).streams` goes to `streams`. Labels
hold stable words (reasons, states, table names), never a node's name: a fleet of 10,000 would make 10,000
series of each. Label values are the names in the wire's enums without their prefix, and the reasons of
docs/protocol.md, "Refusals".
"""

from __future__ import annotations

from fleet.metrics import BATCH_BUCKETS, COMMIT_BUCKETS_S, LATENCY_BUCKETS_S, Registry
from fleet_server.observability.route_metrics import RouteMetrics

FINAL_STATES = ("SUCCEEDED", "FAILED", "EXPIRED", "CANCELLED", "REJECTED", "INTERRUPTED", "QUARANTINED")
GOAWAY_REASONS = (
    "DRAIN",
    "UPGRADE",
    "REBALANCE",
    "RESTART",
    "SUPERSEDED",
    "SUSPENDED",
    "REVOKED",
    "SHUTDOWN",
)


class StreamMetrics:
    """Streams of nodes, and the goaways and drains that end them (docs/protocol.md, "Frames" and "Drain")."""

    def __init__(self, registry: Registry) -> None:
        self.open = registry.gauge("fleet_server_streams_open", "Streams this replica holds now.")
        self.opens = registry.counter("fleet_server_stream_opens_total", "Streams welcomed.")
        self.closes = registry.counters(
            "fleet_server_stream_closes_total",
            "Streams ended, by reason: a goaway's, a refusal's, or how the connection was lost.",
            labels=("reason",),
        )
        self.goaways = registry.counters(
            "fleet_server_goaways_total",
            "Goaways sent, by reason.",
            labels=("reason",),
            values=GOAWAY_REASONS,
        )
        self.refusals = registry.counters(
            "fleet_server_refusals_total",
            "Calls, frames and commands refused, by reason and by where: an rpc, stream, issue.",
            labels=("reason", "where"),
            max_series=256,
        )
        self.route_findings_given_up = registry.counter(
            "fleet_server_route_findings_given_up_total",
            "Findings about routes that were never recorded: newer ones, or those of ways that fail, took their room.",
        )
        self.drain_streams_left = registry.gauge(
            "fleet_server_drain_streams_left",
            "Streams that the running drain still has to move; 0 when none runs.",
        )
        self.drain_streams = registry.gauge(
            "fleet_server_drain_streams", "Streams the running drain began with; 0 when none runs."
        )
        self.balance_excess = registry.gauge(
            "fleet_server_rebalance_excess_streams",
            "Streams that this replica holds beyond its share; negative below it, 0 while it takes no nodes.",
        )
        self.balance_moves = registry.counter(
            "fleet_server_rebalance_moves_total", "Nodes asked to move to a replica that holds less than its share."
        )
        self.balance_stayed = registry.counter(
            "fleet_server_rebalance_stayed_total",
            "Nodes that were asked to move for balance, and stayed or came back.",
        )
        self.drain_short = registry.gauge(
            "fleet_server_drain_short_seconds",
            "By how much the running drain's deadline is too near for what the other replicas admit; 0 when it is not.",
        )
        self.drain_rate = registry.gauge(
            "fleet_server_drain_streams_per_second",
            "Streams the running drain moves in a second.",
        )


class SessionMetrics:
    """Handshakes and load shedding (docs/protocol.md, "Session")."""

    def __init__(self, registry: Registry) -> None:
        self.handshakes = registry.counters(
            "fleet_server_handshakes_total",
            "Handshakes finished, by outcome: ok or the reason.",
            labels=("outcome",),
        )
        self.handshake_duration = registry.histogram(
            "fleet_server_handshake_seconds",
            "Time the server worked on a handshake that succeeded.",
            buckets=LATENCY_BUCKETS_S,
            unit="seconds",
        )
        self.reauths = registry.counters(
            "fleet_server_reauths_total",
            "Sessions renewed on a stream, by outcome: ok or the reason.",
            labels=("outcome",),
        )
        self.rate_limited = registry.counters(
            "fleet_server_rate_limited_total",
            "Calls answered with a delay to obey, by rpc and limit: concurrency, credential, address.",
            labels=("rpc", "limit"),
        )


class EnrollmentMetrics:
    """Nodes that ask to join (docs/protocol.md, "Enrollment")."""

    def __init__(self, registry: Registry) -> None:
        self.enrollments = registry.counters(
            "fleet_server_enrollments_total",
            "Enrollment requests and decisions, by outcome: pending, approved, rejected or the reason.",
            labels=("outcome",),
        )


class CommandMetrics:
    """Commands from issue to result (docs/protocol.md, "Commands")."""

    def __init__(self, registry: Registry) -> None:
        self.issued = registry.counter("fleet_server_commands_issued_total", "Commands issued and committed.")
        self.finished = registry.counters(
            "fleet_server_commands_finished_total",
            "Commands that reached a final state, by state.",
            labels=("state",),
            values=FINAL_STATES,
        )
        self.open = registry.gauge(
            "fleet_server_commands_open",
            "Queue depth: commands issued and without a final state, in the whole cluster.",
        )
        self.issue_to_sent = registry.histogram(
            "fleet_server_command_issue_to_sent_seconds",
            "Time from the issue call to the statement handed to the stream.",
            buckets=LATENCY_BUCKETS_S,
            unit="seconds",
        )
        self.issue_to_accepted = registry.histogram(
            "fleet_server_command_issue_to_accepted_seconds",
            "Time from the issue call to the node's durable acceptance, as recorded here.",
            buckets=LATENCY_BUCKETS_S,
            unit="seconds",
        )
        self.issue_to_result = registry.histogram(
            "fleet_server_command_issue_to_result_seconds",
            "Time from the issue call to the committed result.",
            buckets=LATENCY_BUCKETS_S,
            unit="seconds",
        )
        self.statements = registry.counter("fleet_server_statements_signed_total", "Command statements signed.")
        self.per_statement = registry.histogram(
            "fleet_server_commands_per_statement", "Commands under one signature.", buckets=BATCH_BUCKETS
        )
        self.statement_refusals = registry.counters(
            "fleet_server_statement_refusals_total",
            "Whole statements that nodes refused, by reason. Anything here deserves a look.",
            labels=("reason",),
        )
        self.reports = registry.counter(
            "fleet_server_reports_total", "State reports received from nodes, repeats among them."
        )
        self.unmatched = registry.counters(
            "fleet_server_unmatched_reports_total",
            "Reports about commands that are not here, by what their ids say: old enough to be forgotten, or unknown."
            " Unknown ones deserve a look.",
            labels=("kind",),
            values=("forgotten", "unknown"),
        )
        self.forgotten = registry.counter(
            "fleet_server_commands_forgotten_total", "Commands deleted because their issue ended long ago."
        )


class TelemetryMetrics:
    """Telemetry taken in, and series handed out (docs/protocol.md, "Telemetry")."""

    def __init__(self, registry: Registry) -> None:
        self.batches = registry.counter("fleet_server_telemetry_batches_total", "Telemetry batches received.")
        self.samples = registry.counter("fleet_server_telemetry_samples_total", "Telemetry samples received.")
        self.received = registry.counter(
            "fleet_server_telemetry_received_bytes_total", "Telemetry received, as it came.", unit="bytes"
        )
        self.dropped = registry.counters(
            "fleet_server_telemetry_dropped_batches_total",
            "Batches not stored, by reason; node means that the node dropped them while it was offline.",
            labels=("reason",),
        )
        self.chunks = registry.counter(
            "fleet_server_telemetry_chunk_bytes_total",
            "Compressed chunks written to the database.",
            unit="bytes",
        )
        self.federation_dropped = registry.counter(
            "fleet_server_federation_dropped_series_total",
            "Series left out of answers at /federate because the cap was reached.",
        )


class ExportMetrics:
    """Telemetry that goes out, of the process that exports it (docs/operations/telemetry.md)."""

    def __init__(self, registry: Registry) -> None:
        self.active = registry.gauge(
            "fleet_export_active", "1 while this process exports, 0 while it waits for another one to end."
        )
        self.samples = registry.counter("fleet_export_samples_total", "Samples that the receiver took.")
        self.rejected = registry.counter(
            "fleet_export_rejected_samples_total",
            "Samples that the receiver refused for good; its words stand in the log.",
        )
        self.requests = registry.counters(
            "fleet_export_requests_total",
            "Requests to the receiver, by its answer: taken, refused for good, later, fault for a 500, or setup for"
            " what somebody has to change.",
            labels=("answer",),
            values=("taken", "refused", "later", "fault", "setup"),
        )
        self.lag = registry.gauge(
            "fleet_export_lag_seconds",
            "Age of the oldest samples that go out now; 0 when everything has. What is older than the servers'"
            " telemetry_retention_s is lost to the receiver.",
            unit="seconds",
        )
        self.unreadable = registry.counter(
            "fleet_export_unreadable_chunks_total", "Stored chunks that could not be read, and were left out."
        )


class DatabaseMetrics:
    """The writer and the readers. The writer's thread writes the first two, a scrape asks for the others."""

    def __init__(self, registry: Registry) -> None:
        self.commit_duration = registry.histogram(
            "fleet_server_database_commit_seconds",
            "Time of one group commit, statements among it.",
            buckets=COMMIT_BUCKETS_S,
            unit="seconds",
        )
        self.jobs_per_commit = registry.histogram(
            "fleet_server_database_jobs_per_commit", "Callers served by one commit.", buckets=BATCH_BUCKETS
        )
        self.writer_queue = registry.gauge(
            "fleet_server_database_writer_queue", "Jobs that wait for the writer's next commit."
        )
        self.reads_running = registry.gauge(
            "fleet_server_database_reads_running",
            "Threads of the read pool in use, and reads waiting for one.",
        )

        self.clock_offset = registry.gauge(
            "fleet_server_database_clock_offset_seconds",
            "By how much the database's clock is ahead of this replica's; both should be right.",
            unit="seconds",
        )

    def measure(self, writer_queue: int, reads_running: int, clock_offset_s: float) -> None:
        """Set what is only looked up."""
        self.clock_offset.set(clock_offset_s)
        self.writer_queue.set(writer_queue)
        self.reads_running.set(reads_running)

    def committed(self, jobs: int, seconds: float) -> None:
        """The writer committed `jobs` jobs at once."""
        self.jobs_per_commit.observe(jobs)
        self.commit_duration.observe(seconds)


class WakeupMetrics:
    """Hints between replicas, which only save time (docs/architecture.md, "How replicas wake each other")."""

    def __init__(self, registry: Registry) -> None:
        self.sent = registry.counter("fleet_server_wakeups_sent_total", "Wake-ups told to the other replicas.")
        self.received = registry.counter("fleet_server_wakeups_received_total", "Wake-ups that other replicas told.")
        self.lost = registry.counters(
            "fleet_server_wakeups_dropped_total",
            "Wake-ups not passed on one by one: so many waited that the replicas were told to poll everything instead"
            " (overflow), so many came that this one does (flood), or it was none (malformed).",
            labels=("why",),
            values=("overflow", "flood", "malformed"),
        )
        self.transport_up = registry.gauge(
            "fleet_server_wakeup_transport_up",
            "1 while what this replica tells the others comes back to it, or nothing is configured to tell them with;"
            " at 0 replicas only poll.",
        )
        self.transport_up.set(1)

    def told(self, words: int) -> None:
        """So many words were sent."""
        self.sent.inc(words)

    def heard(self, words: int) -> None:
        """So many words of other replicas came."""
        self.received.inc(words)

    def dropped(self, why: str, words: int) -> None:
        """So many were not sent, or not read."""
        self.lost.labels(why).inc(words)

    def up(self, up: bool) -> None:
        """Whether what is said is heard."""
        self.transport_up.set(1 if up else 0)


class AuditMetrics:
    """The audit chains (docs/protocol.md, "Audit")."""

    def __init__(self, registry: Registry) -> None:
        self.rows = registry.counter("fleet_server_audit_rows_total", "Audit rows appended.")
        self.checkpoint = registry.gauge("fleet_server_audit_checkpoint", "Number of the last signed checkpoint.")
        self.quarantined = registry.counters(
            "fleet_server_quarantined_rows_total",
            "Rows whose MAC did not fit, by table: somebody wrote to the database directly.",
            labels=("table",),
        )

        self.node_rows = registry.counter(
            "fleet_server_node_audit_rows_total", "Rows of nodes' own audit chains that were stored."
        )
        self.node_findings = registry.counters(
            "fleet_server_node_audit_findings_total",
            "Nodes' audit chains that did not continue, by what was found. Anything here deserves a look.",
            labels=("finding",),
        )
        self.node_pauses = registry.counter(
            "fleet_server_node_audit_paused_total", "Nodes told to wait, once a day: they wrote more than a day's rows."
        )

        self.tampered = registry.counters(
            "fleet_server_audit_tampered_total",
            "Finds that the audit itself was changed around the server, by what: a chain's head, a checkpoint, or which"
            " is the newest. Anything here deserves a look.",
            labels=("what",),
        )

    def audit_tampered(self, what: str) -> None:
        """Something of the audit was changed around the server."""
        self.tampered.labels(what).inc()

    def node_rows_stored(self, rows: int) -> None:
        """`rows` rows of a node were committed."""
        self.node_rows.inc(rows)

    def node_finding(self, finding: str) -> None:
        """A node's chain was found broken."""
        self.node_findings.labels(finding).inc()

    def node_paused(self) -> None:
        """A node was told to wait."""
        self.node_pauses.inc()

    def appended(self, rows: int) -> None:
        """This replica committed `rows` rows."""
        self.rows.inc(rows)

    def row_quarantined(self, table: str) -> None:
        """A row of `table` was found changed around the server."""
        self.quarantined.labels(table).inc()

    def checkpointed(self, number: int) -> None:
        """`number` is the newest checkpoint of the cluster."""
        self.checkpoint.set(number)


class ServerMetrics:
    """All groups. Build one for each app instance; a registry takes each name once.

    Args:
        registry: the instance's registry.
    """

    def __init__(self, registry: Registry) -> None:
        self.streams = StreamMetrics(registry)
        self.sessions = SessionMetrics(registry)
        self.enrollment = EnrollmentMetrics(registry)
        self.commands = CommandMetrics(registry)
        self.routes = RouteMetrics(registry)
        self.telemetry = TelemetryMetrics(registry)
        self.database = DatabaseMetrics(registry)
        self.wakeup = WakeupMetrics(registry)
        self.audit = AuditMetrics(registry)
