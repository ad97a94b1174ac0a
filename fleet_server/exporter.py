"""`fleet-server export`: a process that sends stored telemetry to a system of the user's own.

It needs the database and the receiver, and none of the installation's keys. Servers do not know of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence

from fleet.clock import Clock, SystemClock
from fleet.errors import Refusal
from fleet.logs import get_logger
from fleet.metrics import Registry
from fleet.metrics_listener import Health, MetricsListener
from fleet.process_metrics import ProcessMetrics
from fleet.version import software_version
from fleet_server import listeners
from fleet_server.config import Settings
from fleet_server.database.engine import Connection, Database
from fleet_server.nodes.descriptions import describe
from fleet_server.observability.metrics import DatabaseMetrics, ExportMetrics
from fleet_server.telemetry.export import Exporter
from fleet_server.telemetry.otlp import Origin
from fleet_server.telemetry.otlp_sinks import Sink, SinkError, open_sink, read_headers

log = get_logger(__name__)

COMPONENT = "fleet-export"
END_WITHIN_S = 40.0
"""From a signal to the end: a request that is under way gets its answer, or its timeout."""
_RELEASE_WITHIN_S = 3.0


def sink_of(settings: Settings) -> Sink:
    """The receiver that the settings describe.

    Raises:
        SinkError: they describe none, or one that is of no use.
    """
    if not settings.export_url:
        raise SinkError(
            "no receiver is set: set export_url (FLEET_EXPORT_URL), such as http://127.0.0.1:9090/api/v1/otlp/v1/metrics"
        )
    file = settings.export_headers_file
    return open_sink(
        settings.export_url, headers={} if file is None else read_headers(file), ca_file=settings.export_ca_file
    )


async def run(
    settings: Settings,
    sink: Sink,
    *,
    backfill_s: int,
    clock: Clock | None = None,
    end_within: Callable[[float], None] = lambda seconds: None,
) -> None:
    """Export until SIGTERM or SIGINT.

    Args:
        settings: validated.
        backfill_s: how far back an export begins that never ran.
        end_within: has this process be gone in so many seconds, whatever hangs.

    Raises:
        Refusal: another process took over.
        ListenError: the metrics' address cannot be listened on.
    """
    clock = clock or SystemClock()
    registry = Registry()
    database = Database(settings.resolved_database_url(), metrics=DatabaseMetrics(registry), readers=1)
    metrics = ExportMetrics(registry)
    exporter = Exporter(
        database=database,
        clock=clock,
        sink=sink,
        metrics=metrics,
        describe=origins,
        holder=f"{socket.gethostname()[:40]}-{os.getpid()}-{os.urandom(4).hex()}",
        cluster=settings.cluster_name,
        backfill_ms=backfill_s * 1000,
    )
    registry.before_collect(lambda: metrics.lag.set(exporter.lag_s()))
    process = ProcessMetrics(registry, clock, component=COMPONENT, version=software_version())
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    database.start()
    try:
        async with contextlib.AsyncExitStack() as stack:
            await _listen(settings.export_metrics_listen, registry, exporter, stack)
            tasks = {asyncio.create_task(work) for work in (exporter.run(), process.run())}
            stop = asyncio.create_task(stopping.wait())
            done, _ = await asyncio.wait({*tasks, stop}, return_when=asyncio.FIRST_COMPLETED)
            end_within(END_WITHIN_S)
            for task in {*tasks, stop} - done:
                task.cancel()
            await asyncio.gather(*tasks, stop, return_exceptions=True)
            await _release(exporter)
            _raise_first(tasks & done)
    finally:
        sink.close()
        await database.close()


def _raise_first(ended: set[asyncio.Task[None]]) -> None:
    """Neither ends by itself but by a fault."""
    for task in ended:
        error = task.exception()
        if isinstance(error, BaseExceptionGroup):
            refusals, rest = error.split(Refusal)
            raise (rest or refusals or error).exceptions[0]
        if error is not None:
            raise error


async def _release(exporter: Exporter) -> None:
    with contextlib.suppress(Refusal, TimeoutError):
        await asyncio.wait_for(exporter.release(), timeout=_RELEASE_WITHIN_S)


async def _listen(listen: str, registry: Registry, exporter: Exporter, stack: contextlib.AsyncExitStack) -> None:
    if listen in ("", "off"):
        return
    metrics = MetricsListener(
        registry, healthz=lambda: Health(True, "alive"), readyz=lambda: Health(True, exporter.doing)
    )
    host, port = listeners.split_listen(listen)
    try:
        port = await metrics.start(host, port)
    except OSError as error:
        raise listeners.cannot_listen(listen, "export_metrics_listen") from error
    stack.push_async_callback(metrics.close)
    log.info("metrics_listening", address=f"{host}:{port}")


def origins(conn: Connection, node_ids: Sequence[str]) -> Mapping[str, Origin]:
    """Nodes as they are shown to a receiver; on a reader thread."""
    found = describe(conn, node_ids)
    return {node_id: Origin(node_id, each.name, each.site, each.labels) for node_id, each in found.items()}
