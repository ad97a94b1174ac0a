"""A3: small telemetry frames, stored, beside bare ingest of the same bytes."""

from tests.load.bare import baselines
from tests.load.context import Context
from tests.load.results import RowResult

ROW = "A3"
WORKLOAD = "telemetry, 10 samples (274 B) a frame, 20 streams, TLS"
BUDGET = ">= 0.6x bare ingest a core"
_FRAME_BYTES = 274


async def run(ctx: Context) -> RowResult:
    """Measure this row."""
    plain = await baselines.telemetry_ingest(ctx, _FRAME_BYTES)
    fast = await baselines.telemetry_ingest(ctx, _FRAME_BYTES, uvloop=True)
    baseline = {**plain, "uvloop_messages_per_core_s": fast["messages_per_core_s"]}
    return RowResult(ROW, WORKLOAD, BUDGET, baseline)
