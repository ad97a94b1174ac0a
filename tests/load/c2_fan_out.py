"""C2: one command to every node, until the last result is committed, beside one message to every bare stream."""

from tests.load.bare import baselines
from tests.load.context import Context
from tests.load.product.fan_out import fan_out
from tests.load.results import Figures, Row, Verdict

_OF_BARE = 6.0
_PER_NODE = 1.2


async def baseline(ctx: Context) -> Figures:
    """Few nodes and many."""
    few = await baselines.fan_out(ctx, ctx.scaled(2_000, 100), tls=True)
    many = await baselines.fan_out(ctx, ctx.scaled(10_000, 300), tls=True)
    return {**few, **{f"many_{name}": value for name, value in many.items()}}


def judge(product: Figures, bare: Figures) -> Verdict:
    """At most six times the bare time for few nodes, and a node of many takes at most 1.2 times one of few."""
    ratio = product["last_result_s"] / bare["last_answer_s"]
    return Verdict(ratio, met=ratio <= _OF_BARE and product["many_us_per_node"] <= _PER_NODE * product["us_per_node"])


ROW = Row(
    "C2",
    "fan-out of one command to 2,000 and to 10,000 nodes, last result committed",
    "<= 6x bare; a node of many <= 1.2x one of few",
    baseline,
    fan_out,
    judge,
    timeout_s=540.0,
)
