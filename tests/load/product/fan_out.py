"""One command to every node, few and many: until the last result is committed."""

from __future__ import annotations

import statistics
import time

from fleet.v1 import admin_pb2
from tests.load.context import Context
from tests.load.product.installation import Installation, installation
from tests.load.product.light_nodes import LightFleet, light_fleet
from tests.load.product.measure import NOOP
from tests.load.product.postgres import durable_postgres
from tests.load.results import Figures

_TIMES = 5
_EVERYONE = admin_pb2.Selector(patterns=["*"])


async def fan_out(ctx: Context) -> Figures:
    """To 2,000 nodes, then to 10,000, of one replica on PostgreSQL; medians of five."""
    few, many = ctx.scaled((2_000, 10_000), (100, 300))
    async with (
        durable_postgres() as postgres,
        installation(ctx, "c2", nodes=many, database_url=postgres.url) as server,
        light_fleet(ctx, many) as fleet,
    ):
        await fleet.start(server.node_folders[:few])
        of_few = await _measured(server, fleet, few)
        await fleet.start(server.node_folders[few:])
        of_many = await _measured(server, fleet, many)
    return {**of_few, **{f"many_{name}": value for name, value in of_many.items()}}


async def _measured(server: Installation, fleet: LightFleet, nodes: int) -> Figures:
    seconds, calls_s, cpu_s = [], [], server.cpu_s()
    request = admin_pb2.IssueCommandsRequest(selector=_EVERYONE, commands=[NOOP], summary_only=True)
    async with server.admin() as admin:
        for _ in range(_TIMES):
            before = await fleet.acknowledged()
            started_at_s = time.monotonic()
            await admin.IssueCommands(request, metadata=server.metadata)
            calls_s.append(time.monotonic() - started_at_s)
            seconds.append(await fleet.wait_acknowledged(before) - started_at_s)
    last_s = statistics.median(seconds)
    return {
        "nodes": nodes,
        "last_result_s": last_s,
        "us_per_node": last_s / nodes * 1_000_000,
        "issue_call_s": statistics.median(calls_s),
        "server_cpu_us_per_command": (server.cpu_s() - cpu_s) / nodes / _TIMES * 1_000_000,
    }
