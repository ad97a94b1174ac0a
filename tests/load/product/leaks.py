"""Memory that streams leave behind, on either side, when they are killed in every way."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence

from tests.load.context import Context
from tests.load.product.installation import installation
from tests.load.product.postgres import durable_postgres
from tests.load.results import Figures

_CHURN = "tests.load.product.churn:Churn"
_OF_A_NODE = 16
"""Fewer than the burst of handshakes that a node has: its own limit is not what is measured."""
_WARM = 0.3
_LOOK_EVERY_S = 1.0


async def churn(ctx: Context) -> Figures:
    """20,000 streams; memory after each second, and its slope over the streams once the first of them are through."""
    streams = ctx.scaled(20_000, 240)
    async with (
        durable_postgres() as postgres,
        installation(ctx, "c6", nodes=-(-streams // _OF_A_NODE), database_url=postgres.url) as server,
        ctx.child(_CHURN, uvloop=True) as nodes,
    ):
        await nodes.call("begin", folders=server.node_folders, gateway=server.settings.gateway_listen, streams=streams)
        points: list[tuple[float, float, float]] = []
        progress = {"busy": 1.0}
        while progress["busy"]:
            await asyncio.sleep(ctx.scaled(_LOOK_EVERY_S, 0.2))
            progress = await nodes.call("progress")
            points.append((progress["streams"], server.rss_bytes(), nodes.rss_bytes()))
    warm = [point for point in points if point[0] >= _WARM * streams]
    done, of_server, of_nodes = zip(*warm, strict=True)
    return {
        "streams": progress["streams"],
        "server_kib_per_stream": slope(done, of_server) / 1024,
        "nodes_kib_per_stream": slope(done, of_nodes) / 1024,
        "server_rss_mib": of_server[-1] / 1024**2,
        "nodes_rss_mib": of_nodes[-1] / 1024**2,
        "sent_away_for_a_while": progress["sent_away"],
        **{name: count for name, count in progress.items() if name.startswith("by_")},
    }


def slope(places: Sequence[float], heights: Sequence[float]) -> float:
    """Of the line that fits best; 0 where there is no way to tell."""
    if len(set(places)) < 2:
        return 0.0
    return statistics.linear_regression(places, heights).slope
