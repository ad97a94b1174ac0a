"""The metrics listener of either side: /metrics, /healthz, /readyz, on the server /federate, nothing else.

Why an own responder on the event loop: prometheus-client's `start_http_server` starts a thread for each
connection and gives up on none, so a few hundred idle connections to it cost hundreds of threads; its ASGI
app needs an ASGI server, a dependency larger than the node's whole budget for this. What is left to write
is one GET with `Connection: close`: the head is parsed by `http.client`, format negotiation and rendering
are prometheus-client's. Figures are rendered on one worker thread, so that a large scrape does not hold up
streams. Answers are not compressed: the listener is meant for the loopback interface or a scraper beside
it.

What a stranger can do is capped: connections at a time, bytes and seconds of a request, seconds of an
answer; no request has a body, no connection serves two requests. When all places are taken the newest
connection gets the oldest one of the address that holds most, so that nobody who only holds places keeps
the scraper out. Figures are rendered a quarter of the time at most, once for all who ask meanwhile.
"""

from __future__ import annotations

import asyncio
import io
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from http.client import HTTPException, parse_headers
from ipaddress import ip_address
from typing import Any, NamedTuple

from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from fleet.logs import get_logger
from fleet.metrics import Counter, Registry

_log = get_logger(__name__)
_TEXT = "text/plain; charset=utf-8"
_LINGER_MAX_BYTES = 256 * 1024
_REST = 3.0
"""So many times as long as a rendering took nothing is rendered: whoever asks without end costs a quarter of a core."""


@dataclass(frozen=True, slots=True)
class Health:
    """An answer to /healthz or /readyz.

    Args:
        ok: 200 or 503.
        detail: one line for a person, such as `draining: 12 streams left`. Anybody who reaches the listener
            can read it.
    """

    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Federation:
    """Further series, served at /federate.

    Args:
        source: called on the event loop for each scrape; returns at once with families over a snapshot,
            since they are iterated on the worker thread. They bring few names and bounded labels.
        dropped: counts series left out because of `max_series`.
        max_series: series in one answer; the first ones are kept.
    """

    source: Callable[[], Iterable[Metric]]
    dropped: Counter
    max_series: int = 20_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps on a connection, and on how many there are."""

    max_connections: int = 16
    max_head_bytes: int = 8 * 1024
    request_timeout_s: float = 5.0
    answer_timeout_s: float = 30.0
    linger_timeout_s: float = 1.0


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    headers: Message


@dataclass(frozen=True, slots=True)
class _Answer:
    status: HTTPStatus
    body: bytes
    content_type: str = _TEXT
    headers: Mapping[str, str] | None = None


class _RefusedError(Exception):
    def __init__(self, status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.answer = _Answer(status, f"{detail}\n".encode(), headers=headers)


class _Peer(NamedTuple):
    """Who is on a connection: an address."""

    address: str
    writer: asyncio.StreamWriter


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class MetricsListener:
    """Serves one app's figures and health over HTTP/1.1.

    Args:
        registry: what /metrics shows; the listener declares its own two metrics in it.
        healthz: liveness: whether the process should be left running.
        readyz: readiness: whether it should be sent work.
        federate: the series of /federate; None answers 404 there.
        limits: caps.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        healthz: Callable[[], Health],
        readyz: Callable[[], Health],
        federate: Federation | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._registry = registry
        self._healthz = healthz
        self._readyz = readyz
        self._federate = federate
        self._limits = limits or Limits()
        self._requests = registry.counters(
            "fleet_metrics_requests_total",
            "Requests to the metrics listener, by HTTP status of the answer.",
            labels=("status",),
        )
        self._turned_away = registry.counter(
            "fleet_metrics_connections_refused_total",
            "Connections to the metrics listener closed because too many were open.",
        )
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], _Peer] = {}  # the oldest first
        self._renderings: dict[tuple[str, str], asyncio.Task[bytes]] = {}
        self._turn = asyncio.Lock()
        self._rested_at_s = 0.0
        self._renderer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics")
        self._loopback_only = True

    async def start(self, host: str, port: int) -> int:
        """Listen on `host`:`port`; port 0 takes a free one. Returns the port.

        Raises:
            OSError: the address cannot be had; the text names it.
        """
        self._loopback_only = bool(host) and _is_loopback(host)
        self._server = await asyncio.start_server(self._accept, host, port, limit=self._limits.max_head_bytes)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and drop what is open. Safe to call twice, and before `start`."""
        if self._server is not None:
            self._server.close()
        ending: list[asyncio.Task[Any]] = [*self._connections, *self._renderings.values()]
        for task in ending:
            task.cancel()
        for peer in self._connections.values():
            peer.writer.transport.abort()  # here, for one that has not begun ends without a step
        await asyncio.gather(*ending, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None
        self._renderer.shutdown(wait=False, cancel_futures=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= self._limits.max_connections:
            self._turned_away.inc()
            self._make_room()
        connection = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        peer = writer.get_extra_info("peername")
        self._connections[connection] = _Peer(str(peer[0]) if peer else "", writer)
        connection.add_done_callback(lambda ended: self._connections.pop(ended, None))

    def _make_room(self) -> None:
        crowd, _ = Tally(peer.address for peer in self._connections.values()).most_common(1)[0]
        oldest = next(task for task, peer in self._connections.items() if peer.address == crowd)
        self._connections.pop(oldest).writer.transport.abort()  # here, for one that has not begun ends without a step
        oldest.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head_only = False
        try:
            try:
                request = await self._read_request(reader)
                head_only = request.method == "HEAD"
                async with asyncio.timeout(self._limits.answer_timeout_s):
                    answer = await self._answer(request)
            except _RefusedError as refused:
                answer = refused.answer
            except (OSError, EOFError):
                raise
            except Exception:  # noqa: BLE001 - a figure that cannot be read must not look like a dead host
                _log.exception("metrics_request_failed")
                answer = _Answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"The answer could not be made: see the log.\n")
            self._requests.labels(str(answer.status.value)).inc()
            async with asyncio.timeout(self._limits.answer_timeout_s):
                await _write(writer, answer, head_only=head_only)
            await self._linger(reader)
        except (OSError, EOFError, TimeoutError):
            pass  # the peer went away, or was too slow to be told so
        finally:
            writer.transport.abort()

    async def _read_request(self, reader: asyncio.StreamReader) -> _Request:
        try:
            # One deadline for the whole head: a byte now and then (slow loris) does not keep a connection.
            async with asyncio.timeout(self._limits.request_timeout_s):
                head = await reader.readuntil(b"\r\n\r\n")
        except TimeoutError:
            raise _RefusedError(HTTPStatus.REQUEST_TIMEOUT, "The request was not complete in time.") from None
        except asyncio.LimitOverrunError:
            detail = f"A request head is at most {self._limits.max_head_bytes} bytes."
            raise _RefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail) from None
        return self._check(_parse(head))

    def _check(self, request: _Request) -> _Request:
        if request.method not in ("GET", "HEAD"):
            raise _RefusedError(
                HTTPStatus.METHOD_NOT_ALLOWED, "Only GET and HEAD are served here.", {"Allow": "GET, HEAD"}
            )
        if "transfer-encoding" in request.headers or request.headers.get("content-length", "0").strip() != "0":
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "Requests have no body here.")
        # DNS rebinding: a web page in a browser on this host resolves its own name to the loopback address
        # and reads the figures.
        if self._loopback_only and not _is_loopback(_host_of(request.headers)):
            detail = "This listener is on the loopback interface: ask it as localhost or by its address."
            raise _RefusedError(HTTPStatus.MISDIRECTED_REQUEST, detail)
        return request

    async def _answer(self, request: _Request) -> _Answer:
        if request.path == "/metrics":
            return await self._render(request, lambda: lambda: self._registry)
        if request.path == "/federate" and self._federate is not None:
            federation = self._federate

            def snapshot() -> Callable[[], Collector]:
                families = federation.source()
                return lambda: _capped(families, federation)

            return await self._render(request, snapshot)
        if request.path in ("/healthz", "/readyz"):
            health = self._healthz() if request.path == "/healthz" else self._readyz()
            status = HTTPStatus.OK if health.ok else HTTPStatus.SERVICE_UNAVAILABLE
            return _Answer(status, f"{health.detail}\n".encode())
        raise _RefusedError(HTTPStatus.NOT_FOUND, "Here are /metrics, /healthz and /readyz.")

    async def _render(self, request: _Request, snapshot: Callable[[], Callable[[], Collector]]) -> _Answer:
        encode, content_type = _encoding(request.headers.get("accept", ""))
        key = request.path, content_type
        rendering = self._renderings.get(key)
        if rendering is None:
            rendering = asyncio.get_running_loop().create_task(self._rendered(key, encode, snapshot))
            self._renderings[key] = rendering
        return _Answer(HTTPStatus.OK, await asyncio.shield(rendering), content_type)

    async def _rendered(
        self,
        key: tuple[str, str],
        encode: Callable[[Collector], bytes],
        snapshot: Callable[[], Callable[[], Collector]],
    ) -> bytes:
        """One rendering after another, with rests between."""
        loop = asyncio.get_running_loop()
        try:
            async with self._turn:
                await asyncio.sleep(max(0.0, self._rested_at_s - loop.time()))
                began_s, collector = loop.time(), snapshot()
                try:
                    return await loop.run_in_executor(self._renderer, lambda: encode(collector()))
                finally:
                    self._rested_at_s = loop.time() + _REST * (loop.time() - began_s)
        finally:
            del self._renderings[key]

    async def _linger(self, reader: asyncio.StreamReader) -> None:
        # Closing with unread bytes resets the connection, and the reset can overtake the answer (RFC 9112
        # section 9.6).
        async with asyncio.timeout(self._limits.linger_timeout_s):
            read_bytes = 0
            while read_bytes < _LINGER_MAX_BYTES and (chunk := await reader.read(16 * 1024)):
                read_bytes += len(chunk)


def _encoding(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    """One of two, whatever version is asked for: each is rendered for all who ask for it, so there are to be few."""
    try:
        _, content_type = choose_encoder(" ".join(accept.split()))
    except (TypeError, ValueError):  # a version that is no number
        content_type = CONTENT_TYPE_PLAIN_0_0_4
    if content_type.startswith("application/openmetrics-text"):
        return openmetrics.generate_latest, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest, CONTENT_TYPE_PLAIN_0_0_4


def _parse(head: bytes) -> _Request:
    """Split a request head (RFC 9112 sections 3 and 5)."""
    try:
        line, _, fields = head.partition(b"\r\n")
        method, target, version = line.decode("ascii").split(" ")
        headers = parse_headers(io.BytesIO(fields))
    except (ValueError, HTTPException):
        raise _RefusedError(HTTPStatus.BAD_REQUEST, "This is not an HTTP/1.1 request.") from None
    if version not in ("HTTP/1.0", "HTTP/1.1"):
        raise _RefusedError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "Only HTTP/1.0 and HTTP/1.1 are spoken here.")
    return _Request(method, target.partition("?")[0], headers)


async def _write(writer: asyncio.StreamWriter, answer: _Answer, *, head_only: bool) -> None:
    headers = {
        "Content-Type": answer.content_type,
        "Content-Length": str(len(answer.body)),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Connection": "close",
        **(answer.headers or {}),
    }
    lines = [
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    # Without a buffer, drain() waits until the kernel has it all, and the deadline covers a peer that does
    # not read.
    writer.transport.set_write_buffer_limits(high=0)
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
    if not head_only:
        writer.write(answer.body)
    await writer.drain()
    writer.write_eof()


def _host_of(headers: Message) -> str:
    """The Host field without its port; empty when absent, which no browser leaves out."""
    host = str(headers.get("host", ""))
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _is_loopback(host: str) -> bool:
    if host in ("", "localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _capped(families: Iterable[Metric], federation: Federation) -> Collector:
    """Keep the first `max_series` samples. Runs on the worker thread, the only writer of `dropped`."""
    kept: list[Metric] = []
    room = federation.max_series
    for family in families:
        excess = len(family.samples) - room
        if excess > 0:
            federation.dropped.inc(excess)
            family.samples = family.samples[:room]
        room -= len(family.samples)
        if family.samples:
            kept.append(family)
    return _Families(kept)
