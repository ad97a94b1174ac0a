"""A7: what the node daemon takes of its host, beside a process that only holds a stream."""

from tests.load.bare import baselines
from tests.load.context import Context
from tests.load.results import RowResult

ROW = "A7"
WORKLOAD = "node daemon, one stream, idle"
BUDGET = "RSS <= 75 MiB, CPU <= 0.5%, stream <= 1.5 s"


async def run(ctx: Context) -> RowResult:
    """Measure this row."""
    baseline = await baselines.node_process(ctx)
    return RowResult(ROW, WORKLOAD, BUDGET, baseline)
