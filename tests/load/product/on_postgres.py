"""A1's load on a PostgreSQL that waits for its disk: on one replica and on two, and what the database does for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.load.children import Child
from tests.load.context import Context
from tests.load.product.installation import Installation, replicas
from tests.load.product.measure import FLEET, commanded, throughput
from tests.load.product.postgres import Work, durable_postgres, per_command
from tests.load.results import Figures

_NODES = 100


async def one_and_two_replicas(ctx: Context) -> Figures:
    """Commands finished per second on one replica, then on two; half of the nodes are on each, and the operator goes
    from one to the other."""
    async with durable_postgres() as postgres, commanded(ctx, "c1", _NODES, database_url=postgres.url) as (one, fleet):
        alone = await throughput(ctx, [one], fleet, _NODES)
    async with (
        durable_postgres() as postgres,
        replicas(ctx, "c1-two", nodes=_NODES, database_url=postgres.url) as both,
        _spread(ctx, both) as fleet,
    ):
        shared = await throughput(ctx, both, fleet, _NODES)
    return {
        **alone,
        **{f"two_{name}": value for name, value in shared.items()},
        "two_over_one": shared["commands_per_s"] / alone["commands_per_s"],
    }


async def database_work(ctx: Context) -> Figures:
    """What PostgreSQL does for a command under load."""
    seen: list[Work] = []
    async with durable_postgres() as postgres, commanded(ctx, "c7", _NODES, database_url=postgres.url) as (one, fleet):

        @asynccontextmanager
        async def watched() -> AsyncIterator[None]:
            seen.append(postgres.work())
            yield
            seen.append(postgres.work())

        figures = await throughput(ctx, [one], fleet, _NODES, watched)
        span_s = ctx.scaled(12.0, 3.0)
    return {**per_command(*seen, figures["commands_per_s"] * span_s), **figures}


@asynccontextmanager
async def _spread(ctx: Context, servers: tuple[Installation, ...]) -> AsyncIterator[Child]:
    """Whole nodes, as many on each server."""
    async with ctx.child(FLEET, uvloop=True) as fleet:
        gateways = [server.settings.gateway_listen for server in servers]
        await fleet.call("start", folders=servers[0].node_folders, gateways=gateways)
        yield fleet
