"""The metrics listener, asked by real connections: what it serves, and what strangers get."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from prometheus_client.core import GaugeMetricFamily, Metric, Sample
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from fleet.metrics import Counter, Registry
from fleet.metrics_listener import Federation, Health, Limits, MetricsListener

WATCHDOG_S = 20.0
QUICK_S = 0.05


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: str


@asynccontextmanager
async def listening(
    registry: Registry | None = None,
    *,
    healthz: Callable[[], Health] = lambda: Health(True, "alive"),
    readyz: Callable[[], Health] = lambda: Health(True, "ready"),
    federate: Federation | None = None,
    limits: Limits | None = None,
) -> AsyncIterator[int]:
    listener = MetricsListener(registry or Registry(), healthz=healthz, readyz=readyz, federate=federate, limits=limits)
    port = await listener.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        await listener.close()
        await listener.close()  # twice is harmless


async def send(port: int, request: bytes) -> Reply:
    """One connection, these bytes, and everything that comes back until the listener closes."""
    async with asyncio.timeout(WATCHDOG_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        raw = await reader.read(-1)
        writer.close()
    head, _, body = raw.decode().partition("\r\n\r\n")
    status, *fields = head.split("\r\n")
    return Reply(int(status.split()[1]), {k.lower(): v for k, v in (f.split(": ", 1) for f in fields)}, body)


async def get(port: int, path: str, *fields: str, method: str = "GET", host: str = "localhost") -> Reply:
    return await send(port, "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *fields, "", ""]).encode())


def figures(families: Iterable[Metric]) -> dict[str, float]:
    """Sample name to value, without labels."""
    return {sample.name: sample.value for family in families for sample in family.samples}


async def test_metrics_in_the_format_that_is_asked_for() -> None:
    registry = Registry()
    registry.counter("fleet_x_total", "X.").inc(2)
    async with listening(registry) as port:
        plain = await get(port, "/metrics?name=ignored")
        openmetrics = await get(port, "/metrics", "Accept: application/openmetrics-text;version=1.0.0")
        odd = await get(port, "/metrics", "Accept: application/openmetrics-text;version=abc")
    assert plain.status == openmetrics.status == odd.status == 200
    assert plain.headers["content-type"].startswith("text/plain")
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert odd.headers["content-type"].startswith("text/plain")
    assert figures(parse_text(plain.body))["fleet_x_total"] == 2
    assert figures(parse_openmetrics(openmetrics.body))["fleet_x_total"] == 2
    assert int(plain.headers["content-length"]) == len(plain.body)
    assert plain.headers["connection"] == "close"


async def test_head_answers_without_a_body() -> None:
    async with listening() as port:
        reply = await get(port, "/healthz", method="HEAD")
    assert (reply.status, reply.body, reply.headers["content-length"]) == (200, "", "6")


async def test_health_and_readiness_are_what_the_app_says_at_that_moment() -> None:
    health = Health(False, "draining: 3 streams left")
    async with listening(readyz=lambda: health) as port:
        alive, draining = await get(port, "/healthz"), await get(port, "/readyz")
        health = Health(True, "ready")
        ready = await get(port, "/readyz")
    assert (alive.status, alive.body) == (200, "alive\n")
    assert (draining.status, draining.body) == (503, "draining: 3 streams left\n")
    assert (ready.status, ready.body) == (200, "ready\n")


async def test_nothing_else_is_served() -> None:
    async with listening() as port:
        for path in ("/", "/metrics/", "/federate", "/../etc/passwd", "*", "http://localhost/metrics"):
            assert (await get(port, path)).status == 404, path


async def test_a_failing_figure_is_a_500_without_its_text() -> None:
    def fail() -> Health:
        raise RuntimeError("db password=hunter2")

    async with listening(readyz=fail) as port:
        reply = await get(port, "/readyz")
        assert (await get(port, "/healthz")).status == 200
    assert reply.status == 500
    assert "hunter2" not in reply.body


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET /metrics HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
        (b"GET /metrics\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400),  # a TLS client on a plain port
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400),
        (b"GET  /metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", 400),
    ],
)
async def test_malformed_and_unwanted_requests(request_bytes: bytes, status: int) -> None:
    async with listening() as port:
        assert (await send(port, request_bytes)).status == status
        assert (await get(port, "/healthz")).status == 200, "the listener goes on"


async def test_an_oversized_head_is_refused_however_it_is_sent() -> None:
    async with listening(limits=Limits(max_head_bytes=1024)) as port:
        whole = await get(port, "/metrics", "X-Filler: " + "x" * 2000)
        endless = await send(port, b"GET /" + b"x" * 100_000)
    assert whole.status == endless.status == 431


async def test_a_folded_accept_field_cannot_write_headers() -> None:
    async with listening() as port:
        reply = await get(port, "/metrics", "Accept: application/openmetrics-text;version=1.0.0", "\tX-Forged: 1")
    assert "x-forged" not in reply.headers
    assert "\n" not in reply.headers["content-type"]


async def test_slow_loris_is_told_and_dropped_while_others_are_served() -> None:
    async with listening(limits=Limits(request_timeout_s=QUICK_S)) as port, asyncio.timeout(WATCHDOG_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nX-Slow: ")
        assert (await get(port, "/healthz")).status == 200
        assert (await reader.read(-1)).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_a_drip_of_bytes_does_not_extend_the_deadline() -> None:
    async with listening(limits=Limits(request_timeout_s=QUICK_S)) as port, asyncio.timeout(WATCHDOG_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answer = asyncio.ensure_future(reader.read(-1))
        while not answer.done():
            writer.write(b"x")
            await asyncio.wait([answer], timeout=QUICK_S / 10)
        assert answer.result().startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_a_peer_that_never_reads_is_dropped() -> None:
    more_than_socket_buffers_hold = GaugeMetricFamily("fleet_wide", "Wide.", labels=["text"])
    for number in range(32):
        more_than_socket_buffers_hold.add_metric([f"{number}" * (1 << 20)], 1.0)
    federation = Federation(lambda: [more_than_socket_buffers_hold], Counter())
    limits = Limits(answer_timeout_s=QUICK_S * 20)
    async with listening(federate=federation, limits=limits) as port, asyncio.timeout(WATCHDOG_S):
        _, deaf = await asyncio.open_connection("127.0.0.1", port)
        deaf.transport.pause_reading()  # type: ignore[attr-defined]
        deaf.write(b"GET /federate HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await deaf.drain()
        while not deaf.transport.is_closing():
            deaf.write(b"x")  # how it finds out
            assert await _probe(port) == 200


async def _probe(port: int) -> int:
    try:
        return (await get(port, "/healthz")).status
    except (OSError, IndexError):
        return 0


async def test_who_only_holds_places_keeps_nobody_out() -> None:
    registry = Registry()
    async with listening(registry, limits=Limits(max_connections=2)) as port, asyncio.timeout(WATCHDOG_S):
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for _, writer in idle:
            writer.write(b"GET")
        assert (await get(port, "/metrics")).status == 200
        with pytest.raises(ConnectionError):
            await _read_some(idle[0][0])
        for _, writer in idle:
            writer.transport.abort()
    assert figures(registry.collect())["fleet_metrics_connections_refused_total"] >= 1


async def test_whoever_asks_without_end_is_shown_what_was_rendered_for_all() -> None:
    """The attack: scrapes, as many as there are places, of series by the thousand."""
    begun, go_on = threading.Event(), threading.Event()

    class Slow(GaugeMetricFamily):
        @property
        def samples(self) -> list[Sample]:
            begun.set()
            go_on.wait(WATCHDOG_S)
            return [Sample("fleet_slow", {}, 1.0)]

        @samples.setter
        def samples(self, _: object) -> None:
            pass

    calls = 0

    def source() -> list[Metric]:
        nonlocal calls
        calls += 1
        return [Slow("fleet_slow", "Slow.")]

    async with listening(federate=Federation(source, Counter())) as port, asyncio.timeout(WATCHDOG_S):
        first = asyncio.create_task(get(port, "/federate"))
        await asyncio.to_thread(begun.wait, WATCHDOG_S)
        more = [asyncio.create_task(get(port, "/federate")) for _ in range(8)]
        while (await _probe(port)) != 200:
            pass
        go_on.set()
        replies = await asyncio.gather(first, *more)
    assert {reply.status for reply in replies} == {200}
    assert calls <= 2


async def _read_some(reader: asyncio.StreamReader) -> None:
    if not await reader.read(1):
        raise ConnectionResetError


async def test_a_web_page_cannot_read_figures_by_rebinding_its_name() -> None:
    async with listening() as port:
        assert (await get(port, "/metrics", host=f"evil.example:{port}")).status == 421
        for host in ("localhost", f"127.0.0.1:{port}", "[::1]:9464"):
            assert (await get(port, "/metrics", host=host)).status == 200, host


async def test_close_drops_idle_connections() -> None:
    listener = MetricsListener(Registry(), healthz=lambda: Health(True, ""), readyz=lambda: Health(True, ""))
    port = await listener.start("127.0.0.1", 0)
    async with asyncio.timeout(WATCHDOG_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET")
        await writer.drain()
        await listener.close()
        with pytest.raises(ConnectionError):
            await _read_some(reader)
        writer.close()


def host_metrics(nodes: int) -> list[Metric]:
    cpu = GaugeMetricFamily("fleet_telemetry_cpu_percent", "CPU.", labels=["node"])
    memory = GaugeMetricFamily("fleet_telemetry_memory_percent", "Memory.", labels=["node"])
    for number in range(nodes):
        cpu.add_metric([f"node-{number}"], 1.0)
        memory.add_metric([f"node-{number}"], 2.0)
    return [cpu, memory]


@pytest.mark.parametrize(("nodes", "kept", "dropped"), [(3, 6, 0), (5, 8, 2), (20, 8, 32)])
async def test_federation_is_capped_and_says_how_much_it_left_out(nodes: int, kept: int, dropped: int) -> None:
    counter = Counter()
    federation = Federation(lambda: host_metrics(nodes), counter, max_series=8)
    async with listening(federate=federation) as port:
        first = await get(port, "/federate")
        second = await get(port, "/federate", "Accept: application/openmetrics-text;version=1.0.0")
    assert first.status == second.status == 200
    assert sum(len(family.samples) for family in parse_text(first.body)) == kept
    assert sum(len(family.samples) for family in parse_openmetrics(second.body)) == kept
    assert counter.value == 2 * dropped


async def test_federation_is_called_on_the_loop_and_rendered_elsewhere() -> None:
    threads: dict[str, int] = {}

    def families() -> Iterable[Metric]:
        threads["render"] = threading.get_ident()
        yield from host_metrics(1)

    def source() -> Iterable[Metric]:
        threads["source"] = threading.get_ident()
        return families()

    async with listening(federate=Federation(source, Counter())) as port:
        assert (await get(port, "/federate")).status == 200
    assert threads["source"] == threading.get_ident() != threads["render"]


async def test_requests_are_counted_by_status() -> None:
    registry = Registry()
    async with listening(registry) as port:
        await get(port, "/nowhere")
        body = (await get(port, "/metrics")).body
    requests = {f.name: f for f in parse_text(body)}["fleet_metrics_requests"]
    assert {s.labels["status"]: s.value for s in requests.samples} == {"404": 1}


async def test_a_taken_port_is_an_error_that_names_it() -> None:
    async with listening() as port:
        second = MetricsListener(Registry(), healthz=lambda: Health(True, ""), readyz=lambda: Health(True, ""))
        with pytest.raises(OSError, match=str(port)):
            await second.start("127.0.0.1", port)
        await second.close()


async def test_of_a_burst_beyond_the_cap_no_connection_stays_open() -> None:
    async with listening(limits=Limits(max_connections=4, request_timeout_s=QUICK_S, linger_timeout_s=QUICK_S)) as port:
        burst = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]  # accepted in one turn of the loop
        opened = [await asyncio.open_connection(sock=sock) for sock in burst]
        async with asyncio.timeout(WATCHDOG_S):
            for reader, writer in opened:
                with contextlib.suppress(ConnectionError):
                    await reader.read(-1)
                writer.close()


async def test_versions_that_are_made_up_are_one_rendering() -> None:
    async with listening() as port:
        fields = [f"Accept: application/openmetrics-text;version=2.{number}.0" for number in range(3)]
        replies = [await get(port, "/metrics", field) for field in fields]
    assert {reply.status for reply in replies} == {200}
    assert len({reply.headers["content-type"] for reply in replies}) == 1
