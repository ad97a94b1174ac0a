"""A5: what an idle node costs the server in memory, beside a bare idle stream."""

from tests.load.bare import baselines
from tests.load.context import Context
from tests.load.results import RowResult

ROW = "A5"
WORKLOAD = "server memory per idle node, own connection, TLS"
BUDGET = "<= 1.5x bare with TLS"


async def run(ctx: Context) -> RowResult:
    """Measure this row."""
    secure = await baselines.idle_memory(ctx, tls=True)
    plain = await baselines.idle_memory(ctx, tls=False)
    baseline = {**secure, "without_tls_kib_per_node": plain["kib_per_node"]}
    return RowResult(ROW, WORKLOAD, BUDGET, baseline)
