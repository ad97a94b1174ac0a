"""A replica is killed under all its nodes: until the last of them has a stream at the other one."""

from __future__ import annotations

import asyncio
import time

from tests.load.context import Context
from tests.load.product.installation import prepare_replicas
from tests.load.product.light_nodes import light_fleet
from tests.load.product.postgres import durable_postgres
from tests.load.results import Figures

_SETTLE_S = 3.0
_OF_A_PROCESS = 1_000
"""One process has no more than a core, and all of them come back at once."""


async def storm(ctx: Context) -> Figures:
    """2,000 nodes on one replica, which is killed; the other one, which has none, was started a moment before."""
    nodes = ctx.scaled(2_000, 60)
    async with durable_postgres() as postgres, light_fleet(ctx, nodes, of_a_process=_OF_A_PROCESS) as fleet:
        # A replica that joins is given nodes of the other one: these would not be among those that come back.
        first, second = await prepare_replicas(ctx, "c3", nodes=nodes, database_url=postgres.url, rebalance=False)
        gateways = [replica.settings.gateway_listen for replica in (first, second)]
        async with first.running() as killed:
            await fleet.start(first.node_folders, gateways)
            async with second.running() as other:
                await asyncio.sleep(_SETTLE_S)
                before, cpu_before_s = await fleet.streams(), other.cpu_s()
                refused_before = await fleet.tally()
                killed.process.kill()
                killed_at_s = time.monotonic()
                back_s = await fleet.wait_streams(before) - killed_at_s
                cpu_s = other.cpu_s() - cpu_before_s
                refused = await fleet.tally() - refused_before
    return {
        "nodes": nodes,
        "all_back_s": back_s,
        "back_per_s": nodes / back_s,
        "server_cpu_us_per_node": cpu_s / nodes * 1_000_000,
        "sent_away_for_a_while": refused["refused_OVERLOADED_with_delay"],
        "refused_without_delay": sum(
            count
            for what, count in refused.items()
            # UNAVAILABLE is what a node says itself of a peer that does not answer.
            if what.startswith("refused_") and what.endswith("_without_delay") and "UNAVAILABLE" not in what
        ),
    }
