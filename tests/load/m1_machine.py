"""M1: what the machine itself gives; without it the other rows say nothing on another machine."""

from tests.load.bare.machine import commit_costs, signature_costs
from tests.load.context import Context
from tests.load.results import Figures, Row


async def baseline(ctx: Context) -> Figures:
    """Commits and signatures."""
    return {
        **commit_costs(ctx.folder, ctx.scaled(2_000, 300)),
        **signature_costs(ctx.scaled(5_000, 1_000)),
    }


ROW = Row("M1", "this machine: commits and signatures", "none: for comparison", baseline)
