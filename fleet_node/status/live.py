"""What the running daemon tells of itself: the answer to `status` on the control socket."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fleet.clock import Clock, ServerTime
from fleet_node.drivers.protected import Protected
from fleet_node.drivers.registry import DriverRegistry
from fleet_node.link.credentials import Credentials
from fleet_node.link.link_status import LinkStatus
from fleet_node.link.ports import TrustPort
from fleet_node.observability.metrics import NodeMetrics


@dataclass(frozen=True, slots=True)
class LiveSources:
    """Where the figures come from.

    Args:
        version: of the software.
        started_at_ms: when the node started, its own clock.
        protected: which actions need people's intent, as things stand.
        metrics_address: where the metrics listener is, or why it is not.
        routes: what the routes room tells; None while the node has nothing to do with routes.
    """

    version: str
    started_at_ms: int
    clock: Clock
    server_time: ServerTime
    link: Callable[[], LinkStatus]
    credentials: Credentials
    trust: TrustPort
    drivers: DriverRegistry
    metrics: NodeMetrics
    protected: Callable[[], Protected]
    metrics_address: Callable[[], str]
    routes: Callable[[], Mapping[str, Any] | None]


def live_status(sources: LiveSources) -> Mapping[str, Any]:
    """All of it, as JSON takes it. Durations and sizes carry their units in their names."""
    metrics, trust = sources.metrics, sources.trust.state
    link = asdict(sources.link())
    link["state"] = str(link["state"])
    return {
        "pid": os.getpid(),
        "version": sources.version,
        "started_at_ms": sources.started_at_ms,
        "link": link,
        "trust": {
            "generation": trust.generation,
            "number": trust.number,
            "expires_at_ms": trust.expires_at_ms,
            "fresh": trust.fresh(sources.server_time.now_ms()),
        },
        "credentials": {"fingerprint": sources.credentials.fingerprint, "rotating": sources.credentials.rotating},
        "commands": {
            "running": int(metrics.commands.running.value),
            "journal_rows": int(metrics.commands.journal_rows.value),
            "reports_unacknowledged": int(metrics.commands.report_backlog.value),
            "drained": bool(metrics.commands.drained.value),
        },
        "telemetry": {
            "spool_bytes": int(metrics.telemetry.spool_size.value),
            "spool_batches": int(metrics.telemetry.spool_batches.value),
            "dropped_batches": int(metrics.telemetry.spool_dropped.value),
        },
        "drivers": [driver.name for driver in sources.drivers.drivers],
        "driver_problems": [asdict(problem) for problem in sources.drivers.problems],
        "protected": asdict(sources.protected()),
        "metrics_address": sources.metrics_address(),
        "routes": sources.routes(),
    }
