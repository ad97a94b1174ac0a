"""The server's figures under simulated nodes, one coroutine each; rows put them beside the bare baselines."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import statistics
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fleet.v1 import admin_pb2, admin_pb2_grpc
from tests.load.children import Child
from tests.load.context import Context
from tests.load.product.installation import Installation, installation
from tests.load.results import Figures

FLEET = "tests.load.product.fleet:Fleet"
_IDLE_LINKS = "tests.load.product.idle_links:IdleLinks"
_MICROSECONDS = 1_000_000
NOOP = admin_pb2.CommandSpec(action="simulated.noop")
_EVERYONE = admin_pb2.Selector(patterns=["*"])
_SPECS_PER_ISSUE = 32
_ISSUES_AHEAD = 4
_POLL_S = 0.05
_SETTLE_S = 0.5
_STARTED_S = 2.0
_RESULT_TIMEOUT_S = 10.0


@asynccontextmanager
async def commanded(
    ctx: Context, name: str, nodes: int, *, members: int = 0, **overrides: object
) -> AsyncIterator[tuple[Installation, Child]]:
    """A server with `nodes` whole nodes that run, of `members` that could; `overrides` are its settings.

    One node has the daemon's own event loop; many share a process, which must not be what is measured.
    """
    async with (
        installation(ctx, name, nodes=max(nodes, members), **overrides) as server,
        ctx.child(FLEET, uvloop=nodes > 1) as fleet,
    ):
        await fleet.call("start", folders=server.node_folders[:nodes])
        yield server, fleet


@asynccontextmanager
async def _idle(ctx: Context, name: str, nodes: int) -> AsyncIterator[tuple[Installation, Child]]:
    async with installation(ctx, name, nodes=nodes) as server, ctx.child(_IDLE_LINKS, uvloop=True) as links:
        yield server, links


async def command_throughput(ctx: Context, nodes: int = 100, *, name: str = "a1") -> Figures:
    """Commands finished per second while every node always has more to do than it may have in flight."""
    async with commanded(ctx, name, nodes) as (server, fleet):
        return await throughput(ctx, [server], fleet, nodes)


async def throughput(
    ctx: Context,
    servers: Sequence[Installation],
    fleet: Child,
    nodes: int,
    aside: Callable[[], AbstractAsyncContextManager[None]] = contextlib.nullcontext,
) -> Figures:
    """The same of `nodes` nodes that run already; CPU and commits are those of all `servers`.

    Args:
        aside: entered when the measurement begins, left when it ends.
    """
    async with alongside(_keep_busy(servers, fleet, nodes)):
        await asyncio.sleep(ctx.scaled(4.0, 1.0))
        async with aside():
            before = await _snapshots(servers, fleet)
            await asyncio.sleep(ctx.scaled(12.0, 3.0))
            after = await _snapshots(servers, fleet)
    done = after.commands - before.commands
    return {
        "commands_per_s": done / (after.at_s - before.at_s),
        "server_cpu_us_per_command": (after.server_cpu_s - before.server_cpu_s) / done * _MICROSECONDS,
        "nodes_cpu_us_per_command": (after.nodes_cpu_s - before.nodes_cpu_s) / done * _MICROSECONDS,
        "server_commits_per_command": (after.commits - before.commits) / done,
    }


async def _keep_busy(servers: Sequence[Installation], fleet: Child, nodes: int) -> None:
    """Issue whenever less than `_ISSUES_AHEAD` calls' worth of commands is unfinished, at each server in turn.

    The nodes say what is: asking them costs the servers nothing."""
    request = admin_pb2.IssueCommandsRequest(selector=_EVERYONE, commands=[NOOP] * _SPECS_PER_ISSUE, summary_only=True)
    issued = 0
    async with contextlib.AsyncExitStack() as stack:
        admins = itertools.cycle([await stack.enter_async_context(server.admin()) for server in servers])
        while True:
            if issued - (await fleet.call("finished"))["commands"] < _ISSUES_AHEAD * nodes * _SPECS_PER_ISSUE:
                answer = await next(admins).IssueCommands(request, metadata=servers[0].metadata)
                issued += answer.issued_count
            else:
                await asyncio.sleep(_POLL_S)


async def command_latency(ctx: Context) -> Figures:
    """One command at a time: from the issue call until its result is visible to whoever watches."""
    async with commanded(ctx, "a2", 1) as (server, fleet), server.admin() as admin:
        request = admin_pb2.IssueCommandsRequest(selector=_EVERYONE, commands=[NOOP])
        seen: asyncio.Queue[bytes] = asyncio.Queue()
        took_s: list[float] = []
        async with alongside(follow_results(server, admin, seen)):
            await asyncio.sleep(_SETTLE_S)
            before = await _snapshot(server, fleet)
            for _ in range(ctx.scaled(1_500, 300)):
                started_at_s = time.perf_counter()
                answer = await admin.IssueCommands(request, metadata=server.metadata)
                async with asyncio.timeout(_RESULT_TIMEOUT_S):
                    while await seen.get() != answer.issued[0].command_id:
                        pass
                took_s.append(time.perf_counter() - started_at_s)
            after = await _snapshot(server, fleet)
    done = after.commands - before.commands
    cuts = statistics.quantiles(took_s[len(took_s) // 10 :], n=100)
    return {
        "p50_us": cuts[49] * _MICROSECONDS,
        "p99_us": cuts[98] * _MICROSECONDS,
        "server_cpu_us_per_command": (after.server_cpu_s - before.server_cpu_s) / done * _MICROSECONDS,
        "node_cpu_us_per_command": (after.nodes_cpu_s - before.nodes_cpu_s) / done * _MICROSECONDS,
        "server_commits_per_command": (after.commits - before.commits) / done,
    }


async def follow_results(
    server: Installation, admin: admin_pb2_grpc.AdminAsyncStub, seen: asyncio.Queue[bytes]
) -> None:
    """Put the id of each command that ends into `seen`, for ever."""
    async for change in admin.WatchCommands(admin_pb2.WatchCommandsRequest(brief=True), metadata=server.metadata):
        for command in change.commands:
            if command.finished_at_ms:
                seen.put_nowait(command.command_id)


async def telemetry(ctx: Context, samples: int, streams: int = 20) -> Figures:
    """Frames of `samples` samples stored and acknowledged, on 20 streams, per core of the server."""
    async with _idle(ctx, f"telemetry-{samples}", streams) as (server, links):
        await links.call("start", folders=server.node_folders, samples=samples, flood=True)
        await asyncio.sleep(ctx.scaled(3.0, 1.0))
        before, cpu_before_s, links_before = await _acknowledged(server, links)
        await asyncio.sleep(ctx.scaled(8.0, 2.0))
        after, cpu_after_s, links_after = await _acknowledged(server, links)
    frames, cpu_s = after["frames"] - before["frames"], cpu_after_s - cpu_before_s
    return {
        "messages_per_s": frames / (after["at_s"] - before["at_s"]),
        "messages_per_core_s": frames / cpu_s,
        "samples_per_core_s": frames * samples / cpu_s,
        "server_cpu_us_per_message": cpu_s / frames * _MICROSECONDS,
        "nodes_cpu_us_per_message": (links_after - links_before) / frames * _MICROSECONDS,
    }


async def idle_memory(ctx: Context) -> Figures:
    """Server memory that one more idle node takes, from a warm start."""
    warm, measured = ctx.scaled((200, 1_000), (50, 150))
    async with _idle(ctx, "a5", warm + measured) as (server, links):
        await links.call("start", folders=server.node_folders[:warm])
        await asyncio.sleep(ctx.scaled(3.0, 1.0))
        before = server.rss_bytes()
        await links.call("start", folders=server.node_folders[warm:])
        await asyncio.sleep(ctx.scaled(3.0, 1.0))
        after = server.rss_bytes()
    return {"kib_per_node": (after - before) / measured / 1024}


async def idle_cpu(ctx: Context, series: int, interval_s: float) -> Figures:
    """Server CPU a second that each idle node adds: it answers pings and sends telemetry."""
    few, nodes = ctx.scaled((1_000, 3_000), (50, 150))
    async with _idle(ctx, "a6", nodes) as (server, links):
        await asyncio.sleep(_STARTED_S)
        floor_per_s = await _cpu_per_s(server, ctx.scaled(5.0, 2.0))

        async def added_us(new: list[str], count: int) -> float:
            await links.call("start", folders=new, samples=series, interval_s=interval_s)
            await asyncio.sleep(ctx.scaled(interval_s, interval_s / 5))
            used_per_s = await _cpu_per_s(server, ctx.scaled(2 * interval_s, interval_s / 2))
            return (used_per_s - floor_per_s) / count * _MICROSECONDS

        of_few_us = await added_us(server.node_folders[:few], few)
        of_all_us = await added_us(server.node_folders[few:], nodes)
    return {
        "server_cpu_us_per_node_s": of_all_us,
        f"server_cpu_us_per_node_s_of_{few}": of_few_us,
        "server_floor_cpu_percent": floor_per_s * 100,
    }


@asynccontextmanager
async def alongside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` for the length of the block; when it fails, so does the block, with its reason."""
    task = asyncio.create_task(work)
    block = asyncio.current_task()
    task.add_done_callback(lambda done: block.cancel() if block is not None and not done.cancelled() else None)
    try:
        yield
    except asyncio.CancelledError:
        if not task.done() or task.cancelled():
            raise
        if block is not None:
            block.uncancel()
        raise ChildProcessError(f"the operator's side failed: {task.exception()!r}") from task.exception()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task})


async def _cpu_per_s(server: Installation, seconds: float) -> float:
    before_s, started_at_s = server.cpu_s(), time.perf_counter()
    await asyncio.sleep(seconds)
    return (server.cpu_s() - before_s) / (time.perf_counter() - started_at_s)


async def _acknowledged(server: Installation, links: Child) -> tuple[dict[str, float], float, float]:
    return await links.call("acknowledged"), server.cpu_s(), links.cpu_s()


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """Commands finished and database commits as the server counts them, the time, and CPU of both sides."""

    commands: float
    commits: float
    at_s: float
    server_cpu_s: float
    nodes_cpu_s: float


async def _snapshots(servers: Sequence[Installation], fleet: Child) -> _Snapshot:
    """Of all servers together."""
    each = [await _snapshot(server, fleet) for server in servers]
    commands, commits, cpu_s = (
        sum(getattr(one, name) for one in each) for name in ("commands", "commits", "server_cpu_s")
    )
    return _Snapshot(commands, commits, each[-1].at_s, cpu_s, each[-1].nodes_cpu_s)


async def _snapshot(server: Installation, fleet: Child) -> _Snapshot:
    """A scrape costs the server milliseconds, so there is one at each end of a measurement and none between."""
    text = await asyncio.to_thread(scrape, server.settings.metrics_listen)
    commands = _total(text, r"fleet_server_commands_finished_total\{[^}]*\}")
    commits = _total(text, "fleet_server_database_commit_seconds_count")
    return _Snapshot(commands, commits, time.monotonic(), server.cpu_s(), fleet.cpu_s())


def _total(exposition: str, series: str) -> float:
    return sum(map(float, re.findall(rf"^{series} (\S+)$", exposition, re.MULTILINE)))


def scrape(address: str) -> str:
    """What a server's metrics listener tells."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        return str(answer.read().decode())
