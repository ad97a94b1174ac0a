"""A6: what an idle node costs the server in CPU, beside a bare stream with the same messages."""

from tests.load.bare import baselines
from tests.load.context import Context
from tests.load.results import RowResult

ROW = "A6"
WORKLOAD = "server CPU per idle node, 100 series every 10 s, heartbeats"
BUDGET = "<= 60 us a second"
_FRAME_BYTES = 1_000
_INTERVAL_S = 10.0


async def run(ctx: Context) -> RowResult:
    """Measure this row."""
    baseline = await baselines.idle_cpu(ctx, _FRAME_BYTES, _INTERVAL_S)
    return RowResult(ROW, WORKLOAD, BUDGET, baseline)
