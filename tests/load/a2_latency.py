"""A2: what one command takes when nothing else happens, beside a bare round trip and three commits."""

from tests.load.bare import baselines
from tests.load.bare.machine import commit_costs, handed_commit_us
from tests.load.context import Context
from tests.load.product.measure import command_latency
from tests.load.results import Figures, Row, Verdict


async def baseline(ctx: Context) -> Figures:
    """A bare round trip, a commit, what the budget makes of them, and the floor under any way of doing it.

    That floor is two round trips (operator and server, server and node) and four commits in a row, each on a thread:
    the command, its acceptance and its result on the node, the result on the server. No work of the product is in it.
    """
    trip = await baselines.round_trip(ctx)
    commit_us = commit_costs(ctx.folder, ctx.scaled(2_000, 300))["sqlite_commit_us"]
    handed_us = await handed_commit_us(ctx.folder, ctx.scaled(1_000, 200))
    return {
        **trip,
        "sqlite_commit_us": commit_us,
        "handed_commit_us": handed_us,
        "allowed_p50_us": 4 * trip["p50_us"] + 3 * commit_us,
        "floor_us": 2 * trip["p50_us"] + 4 * handed_us,
    }


def judge(product: Figures, bare: Figures) -> Verdict:
    """The median within four round trips and three commits, the tail within three medians."""
    met = product["p50_us"] <= bare["allowed_p50_us"] and product["p99_us"] <= 3 * product["p50_us"]
    return Verdict(product["p50_us"] / bare["p50_us"], met=met)


ROW = Row(
    "A2",
    "one command at low load, issue to visible result",
    "p50 <= 4x bare round trip + 3 commits; p99 <= 3x p50",
    baseline,
    command_latency,
    judge,
)
