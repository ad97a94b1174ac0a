"""C5: what a command costs in a fleet of 10,000 nodes, beside the same in a fleet of 100."""

from tests.load.bare import baselines
from tests.load.context import Context
from tests.load.product.growth import growth
from tests.load.results import Figures, Row, Verdict

_TIMES = 1.3


async def baseline(ctx: Context) -> Figures:
    """Bare echo on 100 streams: the product's own small fleet is what it is judged by."""
    return await baselines.command_throughput(ctx, tls=True)


def judge(product: Figures, bare: Figures) -> Verdict:
    """At most 1.3 times the server's CPU; the ratio is that, not one over the bare echo."""
    ratio = product["server_cpu_us_per_command"] / product["few_server_cpu_us_per_command"]
    return Verdict(ratio, met=ratio <= _TIMES)


ROW = Row(
    "C5",
    "server CPU of a command to 100 nodes among 10,000, over that among 100",
    "<= 1.3x",
    baseline,
    growth,
    judge,
    timeout_s=540.0,
)
