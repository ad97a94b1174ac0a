"""C3: bare streams that all come back at once after their server was killed: the floor under a storm of nodes."""

from tests.load.bare import baselines
from tests.load.context import Context
from tests.load.results import Figures, Row


async def baseline(ctx: Context) -> Figures:
    """Without TLS and with it."""
    nodes = ctx.scaled(2_000, 200)
    plain = await baselines.storm(ctx, nodes, tls=False)
    secure = await baselines.storm(ctx, nodes, tls=True)
    return {**plain, "tls_all_back_s": secure["all_back_s"], "tls_back_per_s": secure["back_per_s"]}


ROW = Row("C3", "2,000 nodes back after kill -9", "<= 10 s", baseline)
