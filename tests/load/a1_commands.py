"""A1: how many commands a second go the whole way, beside a bare echo.

The baseline that the budget is about is the fastest bare one: 100 streams that share one connection, without TLS. The
others give each stream the connection of its own that real nodes have.
"""

from tests.load.bare import baselines
from tests.load.context import Context
from tests.load.results import Figures, RowResult

ROW = "A1"
WORKLOAD = "command round trip, 100 nodes, 32 in flight each"
BUDGET = ">= 1.0x bare echo"


async def run(ctx: Context) -> RowResult:
    """Measure this row."""
    shared = await baselines.command_throughput(ctx, own_connections=False)
    apart = await baselines.command_throughput(ctx)
    fast = await baselines.command_throughput(ctx, uvloop=True)
    secure = await baselines.command_throughput(ctx, tls=True)
    baseline = {
        **shared,
        **_named("own_connections", apart),
        **_named("own_connections_uvloop", fast),
        **_named("own_connections_tls", secure),
    }
    return RowResult(ROW, WORKLOAD, BUDGET, baseline)


def _named(variant: str, figures: Figures) -> Figures:
    return {f"{variant}_{name}": value for name, value in figures.items()}
