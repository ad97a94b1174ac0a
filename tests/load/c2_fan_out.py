"""C2: one command to every node, beside a bare fan-out."""

from tests.load.bare import baselines
from tests.load.context import Context
from tests.load.results import RowResult

ROW = "C2"
WORKLOAD = "fan-out of one command to 2,000 and 10,000 nodes"
BUDGET = "<= 6x bare; linear (<= 1.2x per node)"


async def run(ctx: Context) -> RowResult:
    """Measure this row."""
    few = await baselines.fan_out(ctx, ctx.scaled(2_000, 200), tls=True)
    many = await baselines.fan_out(ctx, ctx.scaled(10_000, 1_000), tls=True)
    baseline = {**few, **{f"many_{name}": value for name, value in many.items()}}
    return RowResult(ROW, WORKLOAD, BUDGET, baseline)
