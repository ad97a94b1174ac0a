"""C1: A1 on PostgreSQL, on one replica and on two, beside A1 on SQLite in the same run and the bare echo."""

from tests.load.bare import baselines
from tests.load.context import Context
from tests.load.product.measure import command_throughput
from tests.load.product.on_postgres import one_and_two_replicas
from tests.load.results import Figures, Row, Verdict

_OF_SQLITE = 0.8


async def baseline(ctx: Context) -> Figures:
    """The product on SQLite, and bare echo of the same shape."""
    echo = await baselines.command_throughput(ctx, tls=True)
    return {**await command_throughput(ctx, name="c1-sqlite"), "bare_commands_per_s": echo["commands_per_s"]}


def judge(product: Figures, bare: Figures) -> Verdict:
    """At least 0.8 of A1 on one replica. What a second one adds is printed: two cores have none to spare for it."""
    ratio = product["commands_per_s"] / bare["commands_per_s"]
    return Verdict(ratio, met=ratio >= _OF_SQLITE)


ROW = Row(
    "C1",
    "A1 on PostgreSQL, one replica; and two (baseline: A1 on SQLite)",
    ">= 0.8x A1; two replicas >= 1.5x of one where cores allow",
    baseline,
    one_and_two_replicas,
    judge,
)
