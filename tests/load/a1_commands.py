"""A1: how many commands a second go the whole way, beside a bare echo.

The baseline that the budget is about has the product's shape: 100 streams, each with a connection and a TLS session of
its own, as nodes have. The others show what that shape costs: without TLS, and the fastest of all, streams that share
one connection without TLS.
"""

from tests.load.bare import baselines
from tests.load.context import Context
from tests.load.product.measure import command_throughput
from tests.load.results import Figures, Row, Verdict


async def baseline(ctx: Context) -> Figures:
    """Bare echo of the product's shape, and, in a full run, of cheaper ones."""
    figures = dict(await baselines.command_throughput(ctx, tls=True))
    if not ctx.quick:
        figures |= _named("without_tls", await baselines.command_throughput(ctx))
        figures |= _named("without_tls_uvloop", await baselines.command_throughput(ctx, uvloop=True))
        figures |= _named("one_connection", await baselines.command_throughput(ctx, own_connections=False))
    return figures


def judge(product: Figures, bare: Figures) -> Verdict:
    """At least as many commands as a bare echo answers messages."""
    ratio = product["commands_per_s"] / bare["commands_per_s"]
    return Verdict(ratio, met=ratio >= 1.0)


def _named(variant: str, figures: Figures) -> Figures:
    return {f"{variant}_{name}": value for name, value in figures.items()}


ROW = Row(
    "A1",
    "command round trip, 100 nodes, 32 in flight each, TLS",
    ">= 1.0x bare echo of the same shape",
    baseline,
    command_throughput,
    judge,
)
