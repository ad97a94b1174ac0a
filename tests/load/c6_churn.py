"""C6: what a stream leaves behind that ends badly, beside bare streams that are opened and cancelled."""

from tests.load.bare import baselines
from tests.load.context import Context
from tests.load.product.leaks import churn
from tests.load.results import Figures, Row, Verdict

_MAX_KIB = 1.0


async def baseline(ctx: Context) -> Figures:
    """Streams on connections of their own, one after another, cancelled."""
    return await baselines.churn(ctx, ctx.scaled(4_000, 200))


def judge(product: Figures, bare: Figures) -> Verdict:
    """At most a KiB a stream on either side; the ratio is that to this budget: the bare slope may be nothing."""
    worst = max(product["server_kib_per_stream"], product["nodes_kib_per_stream"])
    return Verdict(worst / _MAX_KIB, met=worst <= _MAX_KIB)


ROW = Row(
    "C6",
    "20,000 streams opened and killed in every way",
    "memory grows by <= 1 KiB a stream on either side",
    baseline,
    churn,
    judge,
    timeout_s=540.0,
)
