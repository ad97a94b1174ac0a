"""M1: what the machine itself gives; without it the other rows say nothing on another machine."""

from tests.load.bare.machine import commit_costs, signature_costs
from tests.load.context import Context
from tests.load.results import RowResult

ROW = "M1"
WORKLOAD = "this machine: commits and signatures"
BUDGET = "none: for comparison"


async def run(ctx: Context) -> RowResult:
    """Measure this row."""
    baseline = {
        **commit_costs(ctx.folder, ctx.scaled(2_000, 300)),
        **signature_costs(ctx.scaled(5_000, 1_000)),
    }
    return RowResult(ROW, WORKLOAD, BUDGET, baseline)
