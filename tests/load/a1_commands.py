"""A1: how many commands a second go the whole way, beside a bare echo.

The baseline that the budget is about is the fastest bare one: 100 streams that share one connection, without TLS. The
others give each stream the connection of its own that real nodes have.
"""

from tests.load.bare import baselines
from tests.load.context import Context
from tests.load.product.measure import command_throughput
from tests.load.results import Figures, Row, Verdict


async def baseline(ctx: Context) -> Figures:
    """Bare echo: streams that share a connection, and, in a full run, streams that do not."""
    figures = dict(await baselines.command_throughput(ctx, own_connections=False))
    if not ctx.quick:
        figures |= _named("own_connections", await baselines.command_throughput(ctx))
        figures |= _named("own_connections_uvloop", await baselines.command_throughput(ctx, uvloop=True))
        figures |= _named("own_connections_tls", await baselines.command_throughput(ctx, tls=True))
    return figures


def judge(product: Figures, bare: Figures) -> Verdict:
    """At least as many commands as a bare echo answers messages."""
    ratio = product["commands_per_s"] / bare["commands_per_s"]
    return Verdict(ratio, met=ratio >= 1.0)


def _named(variant: str, figures: Figures) -> Figures:
    return {f"{variant}_{name}": value for name, value in figures.items()}


ROW = Row(
    "A1",
    "command round trip, 100 nodes, 32 in flight each",
    ">= 1.0x bare echo",
    baseline,
    command_throughput,
    judge,
)
