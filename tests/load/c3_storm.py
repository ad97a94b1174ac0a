"""C3: every node comes back at once after a replica was killed, beside bare streams that do."""

from tests.load.bare import baselines
from tests.load.context import Context
from tests.load.results import RowResult

ROW = "C3"
WORKLOAD = "2,000 nodes back after kill -9"
BUDGET = "<= 10 s"


async def run(ctx: Context) -> RowResult:
    """Measure this row."""
    nodes = ctx.scaled(2_000, 200)
    plain = await baselines.storm(ctx, nodes, tls=False)
    secure = await baselines.storm(ctx, nodes, tls=True)
    baseline = {**plain, "tls_all_back_s": secure["all_back_s"], "tls_back_per_s": secure["back_per_s"]}
    return RowResult(ROW, WORKLOAD, BUDGET, baseline)
