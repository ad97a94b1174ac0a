"""A4: full telemetry frames, stored: what a sample costs when a frame's own cost no longer counts."""

from tests.load.bare import baselines
from tests.load.context import Context
from tests.load.product import measure
from tests.load.product.frames import frame_bytes, samples_in_a_full_frame
from tests.load.results import Figures, Row, Verdict

_SAMPLES_PER_CORE_S = 1_000_000


async def baseline(ctx: Context) -> Figures:
    """Bare ingest of messages as large."""
    size = frame_bytes(samples_in_a_full_frame())
    return {**await baselines.telemetry_ingest(ctx, size), "message_bytes": size}


async def product(ctx: Context) -> Figures:
    """Frames stored and acknowledged; as many samples in each as fit into 64 KiB."""
    samples = samples_in_a_full_frame()
    return {**await measure.telemetry(ctx, samples), "samples_per_frame": samples}


def judge(product: Figures, bare: Figures) -> Verdict:
    """A million samples a second and core; the ratio is that of messages."""
    ratio = product["messages_per_core_s"] / bare["messages_per_core_s"]
    return Verdict(ratio, met=product["samples_per_core_s"] >= _SAMPLES_PER_CORE_S)


ROW = Row(
    "A4", "telemetry, 64 KiB frames, 20 streams, TLS, stored", ">= 1,000,000 samples/s a core", baseline, product, judge
)
