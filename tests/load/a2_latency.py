"""A2: what one command takes when nothing else happens, beside a bare round trip and three commits."""

from tests.load.bare import baselines
from tests.load.bare.machine import commit_costs
from tests.load.context import Context
from tests.load.results import RowResult

ROW = "A2"
WORKLOAD = "one command at low load, issue to visible result"
BUDGET = "p50 <= 4x bare round trip + 3 commits; p99 <= 3x p50"


async def run(ctx: Context) -> RowResult:
    """Measure this row."""
    baseline = {
        **await baselines.round_trip(ctx),
        "sqlite_commit_us": commit_costs(ctx.folder, ctx.scaled(2_000, 300))["sqlite_commit_us"],
    }
    return RowResult(ROW, WORKLOAD, BUDGET, baseline)
