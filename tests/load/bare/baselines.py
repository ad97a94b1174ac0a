"""The bare baselines as figures, one coroutine each; rows put them beside the product's."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from tests.load.children import Child
from tests.load.context import Context
from tests.load.results import Figures

_SERVER = "tests.load.bare.server:BareServer"
_CLIENT = "tests.load.bare.client:BareClient"
_COMMAND_BYTES = 128
_OPENED_AT_ONCE = 500
_MICROSECONDS = 1_000_000


@asynccontextmanager
async def _server(ctx: Context, *, tls: bool, uvloop: bool = False) -> AsyncIterator[tuple[Child, str]]:
    async with ctx.child(_SERVER, uvloop=uvloop) as server:
        files = ctx.tls_files() if tls else {"cert": None, "key": None}
        port = (await server.call("start", cert=files["cert"], key=files["key"]))["port"]
        yield server, f"127.0.0.1:{port}"


@asynccontextmanager
async def _pair(ctx: Context, *, tls: bool, uvloop: bool = False) -> AsyncIterator[tuple[Child, Child, str]]:
    async with (
        _server(ctx, tls=tls, uvloop=uvloop) as (server, address),
        ctx.child(_CLIENT, uvloop=uvloop) as client,
    ):
        yield server, client, address
        await client.call("check_open")


def _ca(ctx: Context, tls: bool) -> str | None:
    return ctx.tls_files()["ca"] if tls else None


async def command_throughput(
    ctx: Context, *, uvloop: bool = False, tls: bool = False, own_connections: bool = True
) -> Figures:
    """Echo of single messages on 100 streams, 32 in flight each; server CPU a command."""
    async with _pair(ctx, tls=tls, uvloop=uvloop) as (server, client, address):
        await client.call("echo", address=address, count=100, ca=_ca(ctx, tls), own_connections=own_connections)
        await server.call("wait_streams", count=100)
        done = await server.call(
            "pump", window=32, payload_bytes=_COMMAND_BYTES, warm_s=ctx.warm_s, measure_s=ctx.measure_s
        )
    return {
        "commands_per_s": done["messages"] / done["seconds"],
        "server_cpu_us_per_command": done["cpu_s"] / done["messages"] * _MICROSECONDS,
    }


async def round_trip(ctx: Context, *, tls: bool = False) -> Figures:
    """One message there and back on an otherwise idle stream."""
    async with _pair(ctx, tls=tls) as (server, client, address):
        await client.call("echo", address=address, count=1, ca=_ca(ctx, tls))
        await server.call("wait_streams", count=1)
        await server.call("round_trips", count=200, payload_bytes=_COMMAND_BYTES)
        count = ctx.scaled(5_000, 1_000)
        seconds = (await server.call("round_trips", count=count, payload_bytes=_COMMAND_BYTES))["seconds"]
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50_us": cuts[49] * _MICROSECONDS, "p99_us": cuts[98] * _MICROSECONDS}


async def telemetry_ingest(ctx: Context, payload_bytes: int, *, uvloop: bool = False) -> Figures:
    """20 streams push messages of `payload_bytes` over TLS; messages that a core of the server takes in."""
    async with _pair(ctx, tls=True, uvloop=uvloop) as (server, client, address):
        await client.call("push", address=address, count=20, payload_bytes=payload_bytes, ca=_ca(ctx, True))
        await server.call("wait_streams", count=20)
        done = await server.call("count", warm_s=ctx.warm_s, measure_s=ctx.measure_s)
    return {
        "messages_per_s": done["messages"] / done["seconds"],
        "messages_per_core_s": done["messages"] / done["cpu_s"],
    }


async def idle_memory(ctx: Context, *, tls: bool) -> Figures:
    """Server memory that one more idle stream on its own connection takes, from a warm start."""
    warm, measured = ctx.scaled((200, 1_000), (50, 200))
    async with _pair(ctx, tls=tls) as (server, client, address):
        await _open(server, [client], "echo", warm, address=address, ca=_ca(ctx, tls))
        before = await server.call("usage")
        await _open(server, [client], "echo", measured, already=warm, address=address, ca=_ca(ctx, tls))
        after = await server.call("usage")
    return {"kib_per_node": (after["rss_bytes"] - before["rss_bytes"]) / measured / 1024}


async def idle_cpu(ctx: Context, payload_bytes: int, every_s: float) -> Figures:
    """Server CPU a second that each node adds when it sends one message `every_s`, over TLS."""
    nodes = ctx.scaled(3_000, 150)
    async with _pair(ctx, tls=True) as (server, client, address):
        floor = await server.call("count", warm_s=ctx.warm_s, measure_s=ctx.scaled(every_s / 2, 1.0))
        sending = {"payload_bytes": payload_bytes, "every_s": every_s}
        await _open(server, [client], "push", nodes, address=address, ca=_ca(ctx, True), **sending)
        done = await server.call("count", warm_s=ctx.warm_s, measure_s=ctx.scaled(2 * every_s, every_s / 5))
    floor_per_s = floor["cpu_s"] / floor["seconds"]
    added_per_s = done["cpu_s"] / done["seconds"] - floor_per_s
    return {
        "server_cpu_us_per_node_s": added_per_s / nodes * _MICROSECONDS,
        "server_floor_cpu_percent": floor_per_s * 100,
    }


async def node_process(ctx: Context) -> Figures:
    """A process that holds one idle TLS stream: start to stream, memory, CPU."""
    async with _server(ctx, tls=True) as (server, address):
        started_at_s = time.perf_counter()
        async with ctx.child(_CLIENT) as client:
            await client.call("echo", address=address, count=1, ca=_ca(ctx, True))
            await server.call("wait_streams", count=1)
            start_s = time.perf_counter() - started_at_s
            cpu_s, span_s = client.cpu_s(), ctx.scaled(10.0, 2.0)
            await asyncio.sleep(span_s)
            return {
                "start_to_stream_s": start_s,
                "rss_mib": client.rss_bytes() / 1024**2,
                "idle_cpu_percent": (client.cpu_s() - cpu_s) / span_s * 100,
            }


async def fan_out(ctx: Context, nodes: int, *, tls: bool) -> Figures:
    """One message to each of `nodes` streams, until the last answer; median of five."""
    async with _server(ctx, tls=tls) as (server, address), AsyncExitStack() as stack:
        await _spread(ctx, stack, server, "echo", address, nodes, _ca(ctx, tls))
        runs = [await server.call("fan_out", payload_bytes=_COMMAND_BYTES) for _ in range(5)]
    seconds = statistics.median(run["seconds"] for run in runs)
    return {"nodes": nodes, "last_answer_s": seconds, "us_per_node": seconds / nodes * _MICROSECONDS}


async def storm(ctx: Context, nodes: int, *, tls: bool) -> Figures:
    """Kill the server under `nodes` streams, start another on its port: until the last one is back."""
    files: dict[str, Any] = dict(ctx.tls_files()) if tls else {"cert": None, "key": None}
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(ctx.child(_SERVER))
        second = await stack.enter_async_context(ctx.child(_SERVER))
        await second.call("usage")  # up and imported before the first one dies; it ends behind its clients
        port = (await first.call("start", cert=files["cert"], key=files["key"]))["port"]
        await _spread(ctx, stack, first, "return_always", f"127.0.0.1:{port}", nodes, _ca(ctx, tls))
        await first.kill()
        await second.call("start", cert=files["cert"], key=files["key"], port=port)
        back_s = (await second.call("wait_streams", count=nodes))["seconds"]
    return {"nodes": nodes, "all_back_s": back_s, "back_per_s": nodes / back_s}


async def churn(ctx: Context, streams: int) -> Figures:
    """Memory that bare streams leave behind on either side, after as many to warm up."""
    async with _pair(ctx, tls=True) as (server, client, address):
        await client.call("churn", address=address, count=streams, ca=_ca(ctx, True))
        server_before, client_before = await server.call("usage"), client.rss_bytes()
        await client.call("churn", address=address, count=streams, ca=_ca(ctx, True))
        server_after, client_after = await server.call("usage"), client.rss_bytes()
    return {
        "server_kib_per_stream": (server_after["rss_bytes"] - server_before["rss_bytes"]) / streams / 1024,
        "client_kib_per_stream": (client_after - client_before) / streams / 1024,
    }


async def _spread(
    ctx: Context, stack: AsyncExitStack, server: Child, do: str, address: str, nodes: int, ca: str | None
) -> None:
    """Open `nodes` streams from as many processes as keep each under 4,000 sockets."""
    clients = [await stack.enter_async_context(ctx.child(_CLIENT)) for _ in range(-(-nodes // 4_000))]
    await _open(server, clients, do, nodes, address=address, ca=ca)


async def _open(server: Child, clients: list[Child], do: str, count: int, *, already: int = 0, **args: Any) -> None:
    """Have the clients `do` open `count` streams beside `already` open ones, a step at a time.

    Of more than 1,000 calls that a gRPC server has not yet looked at, it cancels some at random
    (`grpc.server.max_pending_requests`); and thousands of TLS handshakes at once outlast their own timeouts.
    """
    for opened in range(0, count, _OPENED_AT_ONCE):
        step = min(_OPENED_AT_ONCE, count - opened)
        await clients[opened // _OPENED_AT_ONCE % len(clients)].call(do, count=step, **args)
        try:
            await server.call("wait_streams", count=already + opened + step)
        except ChildProcessError:
            for client in clients:
                await client.call("check_open")  # it knows more than how many are missing
            raise
