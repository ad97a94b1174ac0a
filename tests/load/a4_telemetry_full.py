"""A4: full telemetry frames, stored."""

from tests.load.bare import baselines
from tests.load.context import Context
from tests.load.results import RowResult

ROW = "A4"
WORKLOAD = "telemetry, 64 KiB frames, 20 streams, TLS"
BUDGET = ">= 1,000,000 samples/s a core"
_FRAME_BYTES = 64 * 1024


async def run(ctx: Context) -> RowResult:
    """Measure this row."""
    baseline = await baselines.telemetry_ingest(ctx, _FRAME_BYTES)
    return RowResult(ROW, WORKLOAD, BUDGET, baseline)
