"""The product's figures, one coroutine each; rows put them beside the bare baselines."""

import asyncio
import re
import statistics
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fleet.v1 import admin_pb2
from tests.load.children import Child
from tests.load.context import Context
from tests.load.product.installation import Installation, installation
from tests.load.results import Figures

_FLEET = "tests.load.product.fleet:Fleet"
_IDLE_FLEET = "tests.load.product.fleet:IdleFleet"
_MICROSECONDS = 1_000_000
_NOOP = admin_pb2.CommandSpec(action="simulated.noop")
_EVERYONE = admin_pb2.Selector(patterns=["*"])
_SPECS_PER_ISSUE = 64
_POLL_S = 0.05


@asynccontextmanager
async def _running(ctx: Context, name: str, nodes: int) -> AsyncIterator[tuple[Installation, Child]]:
    async with installation(ctx, name, nodes=nodes) as server, ctx.child(_FLEET, uvloop=True) as fleet:
        await fleet.call("start", folders=server.node_folders)
        await fleet.call("wait_live")
        yield server, fleet


async def command_throughput(ctx: Context, nodes: int = 100) -> Figures:
    """Commands finished per second while every node always has more to do than it may have in flight."""
    async with _running(ctx, "a1", nodes) as (server, fleet), server.admin() as admin:
        request = admin_pb2.IssueCommandsRequest(
            selector=_EVERYONE, commands=[_NOOP] * _SPECS_PER_ISSUE, summary_only=True
        )
        issued = 0

        async def issue() -> None:
            nonlocal issued
            while True:
                if issued - await _finished(server) < 2 * nodes * _SPECS_PER_ISSUE:
                    issued += (await admin.IssueCommands(request, metadata=server.metadata)).issued_count
                await asyncio.sleep(_POLL_S)

        issuing = asyncio.create_task(issue())
        try:
            await asyncio.sleep(ctx.warm_s * 2)
            before = await _snapshot(server, fleet)
            await asyncio.sleep(ctx.measure_s)
            after = await _snapshot(server, fleet)
        finally:
            issuing.cancel()
    done, seconds, server_cpu_s, fleet_cpu_s = (b - a for a, b in zip(before, after, strict=True))
    return {
        "commands_per_s": done / seconds,
        "server_cpu_us_per_command": server_cpu_s / done * _MICROSECONDS,
        "nodes_cpu_us_per_command": fleet_cpu_s / done * _MICROSECONDS,
    }


async def command_latency(ctx: Context) -> Figures:
    """One command at a time: from the issue call until its result is visible to whoever watches."""
    async with _running(ctx, "a2", 1) as (server, _), server.admin() as admin:
        request = admin_pb2.IssueCommandsRequest(selector=_EVERYONE, commands=[_NOOP])
        watch = admin.WatchCommands(admin_pb2.WatchCommandsRequest(brief=True), metadata=server.metadata)
        seen: asyncio.Queue[bytes] = asyncio.Queue()

        async def follow() -> None:
            async for change in watch:
                for command in change.commands:
                    if command.finished_at_ms:
                        seen.put_nowait(command.command_id)

        following = asyncio.create_task(follow())
        await asyncio.sleep(0.2)
        took: list[float] = []
        for _ in range(ctx.scaled(2_000, 300)):
            started = time.perf_counter()
            answer = await admin.IssueCommands(request, metadata=server.metadata)
            while await asyncio.wait_for(seen.get(), timeout=10) != answer.issued[0].command_id:
                pass
            took.append(time.perf_counter() - started)
        following.cancel()
    cuts = statistics.quantiles(took[len(took) // 10 :], n=100)
    return {"p50_us": cuts[49] * _MICROSECONDS, "p99_us": cuts[98] * _MICROSECONDS}


async def telemetry(ctx: Context, samples: int, streams: int = 20) -> Figures:
    """Frames of `samples` values stored and acknowledged, on 20 streams, per core of the server."""
    async with (
        installation(ctx, f"telemetry-{samples}", nodes=streams) as server,
        ctx.child(_IDLE_FLEET, uvloop=True) as fleet,
    ):
        await fleet.call("start", folders=server.node_folders, samples=samples)
        await asyncio.sleep(ctx.warm_s * 3)
        before, cpu_before = await fleet.call("frames"), server.cpu_s()
        await asyncio.sleep(ctx.measure_s)
        after, cpu_after = await fleet.call("frames"), server.cpu_s()
    frames, cpu_s = after["frames"] - before["frames"], cpu_after - cpu_before
    return {
        "messages_per_s": frames / (after["at_s"] - before["at_s"]),
        "messages_per_core_s": frames / cpu_s,
        "samples_per_core_s": frames * samples / cpu_s,
    }


async def idle_memory(ctx: Context) -> Figures:
    """Server memory for each idle node."""
    count = ctx.scaled(1_000, 200)
    warm = count // 10
    async with installation(ctx, "a5", nodes=count) as server, ctx.child(_IDLE_FLEET, uvloop=True) as fleet:
        await fleet.call("start", folders=server.node_folders[:warm])
        await asyncio.sleep(1)
        before = server.rss_bytes()
        await fleet.call("start", folders=server.node_folders[warm:])
        await asyncio.sleep(3)
        after = server.rss_bytes()
    return {"kib_per_node": (after - before) / (count - warm) / 1024}


async def idle_cpu(ctx: Context, series: int, interval_s: float) -> Figures:
    """Server CPU for each idle node that answers pings and sends telemetry."""
    count = ctx.scaled(1_000, 200)
    async with installation(ctx, "a6", nodes=count) as server, ctx.child(_IDLE_FLEET, uvloop=True) as fleet:
        await fleet.call("start", folders=server.node_folders, series=series, interval_s=interval_s)
        await asyncio.sleep(interval_s)
        before = server.cpu_s()
        watch_s = ctx.scaled(3 * interval_s, interval_s)
        await asyncio.sleep(watch_s)
        used = server.cpu_s() - before
    return {"cpu_us_per_node_s": used / count / watch_s * _MICROSECONDS}


async def _snapshot(server: Installation, fleet: Child) -> tuple[float, float, float, float]:
    usage = await fleet.call("usage")
    return await _finished(server), time.monotonic(), server.cpu_s(), usage["cpu_s"]


async def _finished(server: Installation) -> float:
    text = await asyncio.to_thread(_scrape, server.settings.metrics_listen)
    return sum(float(value) for value in re.findall(r"fleet_server_commands_finished_total\{[^}]*\} ([0-9.e+]+)", text))


def _scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        return str(answer.read().decode())
