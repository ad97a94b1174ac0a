"""A3: small telemetry frames, stored, beside bare ingest of as many bytes."""

from tests.load.bare import baselines
from tests.load.context import Context
from tests.load.product import measure
from tests.load.product.frames import frame_bytes
from tests.load.results import Figures, Row, Verdict

_SAMPLES = 10


async def baseline(ctx: Context) -> Figures:
    """Bare ingest, on asyncio and, in a full run, on uvloop."""
    size = frame_bytes(_SAMPLES)
    figures = {**await baselines.telemetry_ingest(ctx, size), "message_bytes": size}
    if not ctx.quick:
        fast = await baselines.telemetry_ingest(ctx, size, uvloop=True)
        figures["uvloop_messages_per_core_s"] = fast["messages_per_core_s"]
    return figures


async def product(ctx: Context) -> Figures:
    """Frames stored and acknowledged."""
    return await measure.telemetry(ctx, _SAMPLES)


def judge(product: Figures, bare: Figures) -> Verdict:
    """At least 0.6 of the messages that a core takes in bare."""
    ratio = product["messages_per_core_s"] / bare["messages_per_core_s"]
    return Verdict(ratio, met=ratio >= 0.6)


ROW = Row(
    "A3",
    "telemetry, 10 samples a frame, 20 streams, TLS, stored",
    ">= 0.6x bare ingest a core",
    baseline,
    product,
    judge,
)
