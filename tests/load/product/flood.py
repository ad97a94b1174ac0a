"""What strangers cost those who belong here: latency of commands, streams, memory, admission of a genuine node."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence

from fleet.v1 import admin_pb2, admin_pb2_grpc
from tests.load.children import Child
from tests.load.context import Context
from tests.load.product.installation import Installation
from tests.load.product.measure import NOOP, alongside, commanded, follow_results
from tests.load.results import Figures

_STRANGERS = "tests.load.product.strangers:Strangers"
_LINKS = "tests.load.product.idle_links:IdleLinks"
_RESULT_TIMEOUT_S = 30.0
_EVERY_S = 0.02
_MICROSECONDS = 1_000_000
_PER_S = 1_000.0


async def quiet(ctx: Context) -> Figures:
    """Latency of single commands to random ones of 200 nodes while nobody else calls."""
    async with commanded(ctx, "t1-quiet", ctx.scaled(200, 20)) as (server, _), server.admin() as admin:
        return _latency(await _commands(ctx, server, admin))


async def under_flood(ctx: Context) -> Figures:
    """The same while strangers call 1,000 times a second, then as fast as one core can."""
    nodes, newcomers = ctx.scaled((200, 20), (20, 5))
    async with (
        commanded(ctx, "t1-flood", nodes, members=nodes + newcomers) as (server, fleet),
        ctx.child(_STRANGERS, uvloop=True) as strangers,
        ctx.child(_LINKS, uvloop=True) as links,
        server.admin() as admin,
    ):
        call = {"address": server.settings.gateway_listen, "ca": server.ca_pem.decode()}
        await asyncio.sleep(ctx.scaled(2.0, 0.5))
        await strangers.call("flood", **call, per_s=_PER_S)
        started_at_s = time.perf_counter()
        at_rate = _latency(await _commands(ctx, server, admin))
        done = await strangers.call("stop")
        offered_per_s = sum(done.values()) / (time.perf_counter() - started_at_s)
        await strangers.call("flood", **call)
        await asyncio.sleep(ctx.scaled(5.0, 1.0))  # first calls of every kind, and their memory, are behind it
        before = server.rss_bytes()
        started_at_s = time.perf_counter()
        at_most = _latency(await _commands(ctx, server, admin))
        admitted = await _admitted(links, server.node_folders[nodes:])
        full = await strangers.call("stop")
        span_s = time.perf_counter() - started_at_s
        return {
            **at_rate,
            "offered_per_s": offered_per_s,
            "streams_lost": (await fleet.call("reopened"))["streams"],
            "flood_per_s": sum(full.values()) / span_s,
            "flood_p50_us": at_most["p50_us"],
            "flood_p99_us": at_most["p99_us"],
            "flood_rss_growth_mib": (server.rss_bytes() - before) / 1024**2,
            "newcomers_admitted_s": admitted,
        }


async def _admitted(links: Child, folders: Sequence[str]) -> float:
    """Seconds until genuine nodes that share the strangers' address have their streams."""
    started_at_s = time.perf_counter()
    await links.call("start", folders=folders)
    return time.perf_counter() - started_at_s


async def _commands(ctx: Context, server: Installation, admin: admin_pb2_grpc.AdminAsyncStub) -> list[float]:
    """Seconds of single commands, one after another, each to the next node."""
    names = [node.name for node in (await admin.ListNodes(_all(), metadata=server.metadata)).nodes if node.online]
    seen: asyncio.Queue[bytes] = asyncio.Queue()
    took_s: list[float] = []
    async with alongside(follow_results(server, admin, seen)):
        await asyncio.sleep(0.5)
        for name in itertools.islice(itertools.cycle(names), ctx.scaled(400, 60)):
            request = admin_pb2.IssueCommandsRequest(selector=admin_pb2.Selector(patterns=[name]), commands=[NOOP])
            started_at_s = time.perf_counter()
            answer = await admin.IssueCommands(request, metadata=server.metadata)
            async with asyncio.timeout(_RESULT_TIMEOUT_S):
                while await seen.get() != answer.issued[0].command_id:
                    pass
            took_s.append(time.perf_counter() - started_at_s)
            await asyncio.sleep(_EVERY_S)
    return took_s


def _all() -> admin_pb2.ListNodesRequest:
    return admin_pb2.ListNodesRequest(page=admin_pb2.Page(size=1000))


def _latency(took_s: Sequence[float]) -> Figures:
    cuts = statistics.quantiles(took_s[len(took_s) // 10 :], n=100)
    return {"p50_us": cuts[49] * _MICROSECONDS, "p99_us": cuts[98] * _MICROSECONDS}
