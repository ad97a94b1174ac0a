"""A5: what an idle node costs the server in memory, beside a bare idle stream."""

from tests.load.bare import baselines
from tests.load.context import Context
from tests.load.product.measure import idle_memory
from tests.load.results import Figures, Row, Verdict


async def baseline(ctx: Context) -> Figures:
    """A bare stream with TLS and, in a full run, without."""
    figures = dict(await baselines.idle_memory(ctx, tls=True))
    if not ctx.quick:
        plain = await baselines.idle_memory(ctx, tls=False)
        figures["without_tls_kib_per_node"] = plain["kib_per_node"]
    return figures


def judge(product: Figures, bare: Figures) -> Verdict:
    """At most half as much again as a bare stream with TLS."""
    ratio = product["kib_per_node"] / bare["kib_per_node"]
    return Verdict(ratio, met=ratio <= 1.5)


ROW = Row(
    "A5", "server memory per idle node, own connection, TLS", "<= 1.5x bare with TLS", baseline, idle_memory, judge
)
