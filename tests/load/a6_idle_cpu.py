"""A6: what an idle node costs the server in CPU, beside a bare stream with the same messages."""

from tests.load.bare import baselines
from tests.load.context import Context
from tests.load.product import measure
from tests.load.product.frames import frame_bytes
from tests.load.results import Figures, Row, Verdict

_SERIES = 100
_INTERVAL_S = 10.0
_BUDGET_US = 60.0


async def baseline(ctx: Context) -> Figures:
    """Bare streams that send as many bytes as often."""
    return await baselines.idle_cpu(ctx, frame_bytes(_SERIES), _INTERVAL_S)


async def product(ctx: Context) -> Figures:
    """Nodes that answer pings and send telemetry."""
    return await measure.idle_cpu(ctx, _SERIES, _INTERVAL_S)


def judge(product: Figures, bare: Figures) -> Verdict:
    """At most 60 us a second: 10,000 nodes in 60% of a core."""
    used_us = product["server_cpu_us_per_node_s"]
    return Verdict(used_us / bare["server_cpu_us_per_node_s"], met=used_us <= _BUDGET_US)


ROW = Row(
    "A6",
    "server CPU per idle node, 100 series every 10 s, heartbeats",
    "<= 60 us a second",
    baseline,
    product,
    judge,
)
