"""What routes cost a server: a thousand of them, beside the same nodes without any."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fleet.v1 import admin_pb2_grpc, admin_route_pb2
from tests.load.children import Child
from tests.load.context import Context
from tests.load.product.installation import Installation, installation
from tests.load.product.postgres import durable_postgres
from tests.load.results import Figures

_ROUTE_NODES = "tests.load.product.route_nodes:RouteNodes"
_INTERVAL_MS = 10_000
_RELAYS = 4
_CALLS_AT_ONCE = 16
_MICROSECONDS = 1_000_000
_PERCENT = 100.0


async def routes(ctx: Context) -> Figures:
    """CPU of a server whose nodes report on 1,000 routes, beyond what it takes without any; on SQLite, and on
    PostgreSQL."""
    nodes, count = ctx.scaled((200, 1_000), (20, 60))
    async with installation(ctx, "r1", nodes=nodes) as server, ctx.child(_ROUTE_NODES, uvloop=True) as fleet:
        of_sqlite = await _measured(ctx, server, fleet, nodes, count, lambda: 0.0)
    async with (
        durable_postgres() as postgres,
        installation(ctx, "r1-postgres", nodes=nodes, database_url=postgres.url) as server,
        ctx.child(_ROUTE_NODES, uvloop=True) as fleet,
    ):
        of_postgres = await _measured(ctx, server, fleet, nodes, count, postgres.cpu_s)
    return {**of_sqlite, **{f"on_postgres_{name}": value for name, value in of_postgres.items() if name != "routes"}}


async def _measured(
    ctx: Context, server: Installation, fleet: Child, nodes: int, count: int, database_cpu_s: Callable[[], float]
) -> dict[str, float]:
    await fleet.call("start", folders=server.node_folders)
    await asyncio.sleep(ctx.scaled(5.0, 1.0))
    span_s = ctx.scaled(60.0, 5.0)
    without, database_without = await _cpu_percent(server, database_cpu_s, span_s)
    async with server.admin() as admin:
        await _make(server, admin, nodes, count)
    await fleet.call("wait_routes", count=count)
    # Each other way is walked once a minute, and told of every other time once it was told of twice.
    await asyncio.sleep(ctx.scaled(13 * _INTERVAL_MS / 1000, 2.0))
    before = await fleet.call("told")
    with_routes, database_with = await _cpu_percent(server, database_cpu_s, span_s)
    after = await fleet.call("told")
    findings = after["findings"] - before["findings"]
    own = with_routes - without
    figures = {
        "routes": float(count),
        "routes_cpu_percent": own,
        "without_routes_cpu_percent": without,
        "findings_per_s": findings / span_s,
        "frames_per_s": (after["frames"] - before["frames"]) / span_s,
        "cpu_us_per_finding": own / _PERCENT * span_s / findings * _MICROSECONDS,
        "configs_sent": after["configs"] - before["configs"],
    }
    if database_with:
        figures["database_cpu_percent"] = database_with - database_without
    return figures


async def _make(server: Installation, admin: admin_pb2_grpc.AdminAsyncStub, nodes: int, count: int) -> None:
    """A pool of relays, and routes from every node to as many others that are no relays."""
    for relay in range(_RELAYS):
        request = admin_route_pb2.AddRelayRequest(node=_name(relay), capacity=count // 2)
        await admin.AddRelay(request, metadata=server.metadata)
    ends = nodes - _RELAYS
    pairs = [(index % ends, (index % ends + 1 + index // ends) % ends) for index in range(count)]
    for start in range(0, count, _CALLS_AT_ONCE):
        await asyncio.gather(
            *(
                admin.CreateRoute(
                    admin_route_pb2.CreateRouteRequest(
                        source=_name(_RELAYS + source),
                        destination=_name(_RELAYS + destination),
                        probe_interval_ms=_INTERVAL_MS,
                    ),
                    metadata=server.metadata,
                )
                for source, destination in pairs[start : start + _CALLS_AT_ONCE]
            )
        )


def _name(index: int) -> str:
    return f"node-{index:05}"


async def _cpu_percent(
    server: Installation, database_cpu_s: Callable[[], float], seconds: float
) -> tuple[float, float]:
    """What the server, and its database, take of a core, all their threads."""
    before_s, database_before_s = server.cpu_s(), database_cpu_s()
    await asyncio.sleep(seconds)
    used_s, database_used_s = server.cpu_s() - before_s, database_cpu_s() - database_before_s
    return used_s / seconds * _PERCENT, database_used_s / seconds * _PERCENT
