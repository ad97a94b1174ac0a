"""Generate docs/metrics.md from the declarations of both sides, or check that it is current.

It stands here because it reads both sides, and neither side may import the other.

    python tests/architecture/check_metrics_docs.py           # exits with 1 when docs/metrics.md is stale
    python tests/architecture/check_metrics_docs.py --write   # writes it
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from fleet.clock import SystemClock
from fleet.metrics import MetricSpec, Registry
from fleet.metrics_listener import Health, MetricsListener
from fleet.process_metrics import ProcessMetrics
from fleet_node.observability.metrics import NodeMetrics
from fleet_server.observability.metrics import ExportMetrics, ServerMetrics

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"

HEAD = """# Metrics

Generated from the declarations in `fleet_server/observability/metrics.py`, `fleet_node/observability/metrics.py` and
`shared/fleet/`; do not edit it by hand.

The server answers at `http://127.0.0.1:9464/metrics`, a node at `http://127.0.0.1:9465/metrics`, `fleet-server
export` at `http://127.0.0.1:9466/metrics`, in the Prometheus text format or OpenMetrics, whichever the scraper asks
for. `/healthz` and `/readyz` stand beside it. The server's `/federate` holds the latest telemetry of the nodes, with
a capped number of series.

Labels hold stable words: reasons (docs/protocol.md, "Refusals"), states, names of calls. A metric takes a limited
number of label values; past that, updates are counted under the value `_other`.
"""


def shared_specs() -> list[MetricSpec]:
    """What both sides report: the process, and the listener itself."""
    registry = Registry()
    ProcessMetrics(registry, SystemClock(), component="", version="")
    MetricsListener(registry, healthz=lambda: Health(True, ""), readyz=lambda: Health(True, ""))
    return list(registry.specs)


def side_specs(side: type[ServerMetrics | NodeMetrics | ExportMetrics]) -> list[MetricSpec]:
    """What one side alone reports."""
    registry = Registry()
    before = len(registry.specs)
    side(registry)
    return list(registry.specs[before:])


def table(specs: Iterable[MetricSpec]) -> str:
    """One Markdown row for each metric."""
    rows = ["| Metric | Type | Unit | Labels | Meaning |", "|---|---|---|---|---|"]
    for spec in specs:
        labels = ", ".join(f"`{label}`" for label in spec.labels)
        if spec.values:
            labels += f" ({', '.join(spec.values)})"
        rows.append(f"| `{spec.name}` | {spec.kind} | {spec.unit} | {labels} | {spec.help} |")
    return "\n".join(rows)


def render() -> str:
    """The whole page."""
    return "\n".join(
        [
            HEAD,
            f"## Server\n\n{table(side_specs(ServerMetrics))}\n",
            f"## Export\n\n{table(side_specs(ExportMetrics))}\n",
            f"## Node\n\n{table(side_specs(NodeMetrics))}\n",
            f"## Both: process and listener\n\n{table(shared_specs())}\n",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Write or check the page; the exit code says whether it is current."""
    parser = argparse.ArgumentParser(description="Generate docs/metrics.md, or check that it is current.")
    parser.add_argument("--write", action="store_true", help="write the page instead of checking it")
    page = render()
    if parser.parse_args(arguments).write:
        PAGE.write_text(page, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page:
        return 0
    print(
        f"{PAGE.name} is stale: run `python tests/architecture/check_metrics_docs.py --write` and commit the result.",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
