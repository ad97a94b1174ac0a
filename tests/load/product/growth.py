"""The same work of a hundred nodes, in a small fleet and in a large one: what those cost who have nothing to do."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass

from fleet.v1 import admin_pb2
from tests.load.context import Context
from tests.load.product.installation import Installation, installation
from tests.load.product.light_nodes import LightFleet, light_fleet
from tests.load.product.measure import NOOP, alongside
from tests.load.product.postgres import Postgres, durable_postgres
from tests.load.results import Figures

_SPECS = 32
_CALLS_AHEAD = 4
_GROUP = 100
_POLL_S = 0.02
_MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class _Used:
    commands: float
    at_s: float
    server_cpu_s: float
    postgres_cpu_s: float


async def growth(ctx: Context) -> Figures:
    """100 nodes commanded in a fleet of 100, and 100 of 10,000, others every few calls; on one replica."""
    many = ctx.scaled(10_000, 2 * _GROUP)
    async with (
        durable_postgres() as postgres,
        installation(ctx, "c5", nodes=many, database_url=postgres.url) as server,
        light_fleet(ctx, many) as fleet,
    ):
        await fleet.start(server.node_folders[:_GROUP])
        of_few = await _loaded(ctx, server, postgres, fleet, 1)
        few_rss = server.rss_bytes()
        await fleet.start(server.node_folders[_GROUP:])
        of_many = await _loaded(ctx, server, postgres, fleet, many // _GROUP)
        many_rss = server.rss_bytes()
    return {
        "nodes": many,
        **of_many,
        "rss_kib_per_node": (many_rss - few_rss) / (many - _GROUP) / 1024,
        **{f"few_{name}": value for name, value in of_few.items()},
    }


async def _loaded(ctx: Context, server: Installation, postgres: Postgres, fleet: LightFleet, groups: int) -> Figures:
    """A command's CPU without what the fleet takes while nothing is asked of it, which is told apart."""
    await asyncio.sleep(ctx.scaled(3.0, 0.5))
    idle_from = await _used(server, postgres, fleet)
    await asyncio.sleep(ctx.scaled(10.0, 1.0))
    idle_to = await _used(server, postgres, fleet)
    async with alongside(_keep_busy(server, fleet, groups)):
        await asyncio.sleep(ctx.scaled(4.0, 1.0))
        busy_from = await _used(server, postgres, fleet)
        await asyncio.sleep(ctx.scaled(12.0, 3.0))
        busy_to = await _used(server, postgres, fleet)
    commands, span_s = busy_to.commands - busy_from.commands, busy_to.at_s - busy_from.at_s
    idle_share = span_s / (idle_to.at_s - idle_from.at_s)
    idle_cpu_s = (idle_to.server_cpu_s - idle_from.server_cpu_s) * idle_share
    postgres_idle_s = (idle_to.postgres_cpu_s - idle_from.postgres_cpu_s) * idle_share
    used_s = busy_to.server_cpu_s - busy_from.server_cpu_s
    postgres_used_s = busy_to.postgres_cpu_s - busy_from.postgres_cpu_s
    return {
        "server_cpu_us_per_command": (used_s - idle_cpu_s) / commands * _MICROSECONDS,
        "with_idle_us_per_command": used_s / commands * _MICROSECONDS,
        "postgres_cpu_us_per_command": (postgres_used_s - postgres_idle_s) / commands * _MICROSECONDS,
        "idle_cpu_percent": idle_cpu_s / span_s * 100,
        "postgres_idle_cpu_percent": postgres_idle_s / span_s * 100,
        "commands_per_s": commands / span_s,
    }


async def _keep_busy(server: Installation, fleet: LightFleet, groups: int) -> None:
    """Issue to a hundred nodes at a time, named by a glob, while less than `_CALLS_AHEAD` calls are unfinished."""
    globs = itertools.cycle(f"node-{group:03}*" for group in range(groups) for _ in range(_CALLS_AHEAD))
    done = sum(await fleet.acknowledged())
    issued = 0
    async with server.admin() as admin:
        while True:
            if issued - (sum(await fleet.acknowledged()) - done) < _CALLS_AHEAD * _GROUP * _SPECS:
                request = admin_pb2.IssueCommandsRequest(
                    selector=admin_pb2.Selector(patterns=[next(globs)]), commands=[NOOP] * _SPECS, summary_only=True
                )
                issued += (await admin.IssueCommands(request, metadata=server.metadata)).issued_count
            else:
                await asyncio.sleep(_POLL_S)


async def _used(server: Installation, postgres: Postgres, fleet: LightFleet) -> _Used:
    done = sum(await fleet.acknowledged())
    return _Used(done, time.monotonic(), server.cpu_s(), postgres.cpu_s())
