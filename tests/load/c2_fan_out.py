"""C2: one message to every stream, bare: the floor under a fan-out of one command to every node."""

from tests.load.bare import baselines
from tests.load.context import Context
from tests.load.results import Figures, Row


async def baseline(ctx: Context) -> Figures:
    """Few nodes and many."""
    few = await baselines.fan_out(ctx, ctx.scaled(2_000, 200), tls=True)
    many = await baselines.fan_out(ctx, ctx.scaled(10_000, 1_000), tls=True)
    return {**few, **{f"many_{name}": value for name, value in many.items()}}


ROW = Row("C2", "fan-out of one command to 2,000 and 10,000 nodes", "<= 6x bare; linear (<= 1.2x per node)", baseline)
