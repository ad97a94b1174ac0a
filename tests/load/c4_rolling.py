"""C4: two replicas restarted one after the other under load, beside the same load while nothing is restarted."""

from tests.load.bare import baselines
from tests.load.context import Context
from tests.load.product.rolling import rolling_restart
from tests.load.results import Figures, Row, Verdict

_GAP_S = 1.0


async def baseline(ctx: Context) -> Figures:
    """A bare round trip: a server without streams to move has nothing to roll."""
    return await baselines.round_trip(ctx, tls=True)


def judge(product: Figures, bare: Figures) -> Verdict:
    """Nothing lost, nothing run twice, nobody without a command for a second; the ratio is over the quiet time."""
    met = (
        product["lost"] == 0
        and product["ran_twice"] == 0
        and product["refused_without_delay"] == 0
        and product["gap_p99_s"] < _GAP_S
    )
    return Verdict(product["gap_p99_s"] / product["quiet_gap_p99_s"], met=met)


ROW = Row(
    "C4",
    "rolling restart of two replicas, 1,000 nodes, 200 commands/s",
    "lost 0, run twice 0, p99 from call to run < 1 s",
    baseline,
    rolling_restart,
    judge,
)
