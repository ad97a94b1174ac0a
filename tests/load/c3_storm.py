"""C3: nodes that all come back at once after their replica was killed, beside bare streams that do."""

from tests.load.bare import baselines
from tests.load.context import Context
from tests.load.product.storm import storm
from tests.load.results import Figures, Row, Verdict

_WITHIN_S = 10.0


async def baseline(ctx: Context) -> Figures:
    """Without TLS and with it."""
    nodes = ctx.scaled(2_000, 60)
    plain = await baselines.storm(ctx, nodes, tls=False)
    secure = await baselines.storm(ctx, nodes, tls=True)
    return {**plain, "tls_all_back_s": secure["all_back_s"], "tls_back_per_s": secure["back_per_s"]}


def judge(product: Figures, bare: Figures) -> Verdict:
    """All back in ten seconds, and nobody sent away without being told for how long."""
    met = product["all_back_s"] <= _WITHIN_S and product["refused_without_delay"] == 0
    return Verdict(product["all_back_s"] / bare["tls_all_back_s"], met=met)


ROW = Row(
    "C3",
    "2,000 nodes back after kill -9 of their replica, TLS and handshake",
    "<= 10 s; nobody refused without a delay",
    baseline,
    storm,
    judge,
)
