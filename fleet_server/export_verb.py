"""`fleet-server export`."""

from __future__ import annotations

from pathlib import Path

import click

from fleet_server.cli.grammar import Duration
from fleet_server.verbs import BadSetup, Verb, load_settings, settings_options


@click.command(
    cls=Verb,
    example="fleet-server export --set export_url=http://127.0.0.1:9090/api/v1/otlp/v1/metrics\n"
    "fleet-server export --config /etc/fleet/fleet-server.toml --backfill 6h",
)
@click.option(
    "--backfill", type=Duration(), help="How far back it begins when it never ran; with what comes from now on, else."
)
@settings_options
def export(backfill: int | None, file: Path | None, data_dir: str | None, pairs: tuple[str, ...]) -> None:
    """Send stored telemetry, as OTLP, to a system of your own until SIGTERM or SIGINT.

    A process beside the servers: it needs their database, and none of their keys. Each sample goes out at least once;
    while the receiver is away it waits, and servers go on. A second one waits until the first has ended.
    """
    from functools import partial

    import uvloop

    from fleet.process_end import end_within
    from fleet_server import bootstrap, exporter
    from fleet_server.listeners import ListenError
    from fleet_server.observability import logging as server_logging
    from fleet_server.telemetry.otlp_sinks import SinkError

    settings = load_settings(file, data_dir, pairs).settings
    server_logging.configure(settings.log_level, log_format=settings.log_format)
    bootstrap.require_schema(settings)
    try:
        sink = exporter.sink_of(settings)
        uvloop.run(exporter.run(settings, sink, backfill_s=backfill or 0, end_within=partial(end_within, code=1)))
    except (SinkError, ListenError) as error:
        raise BadSetup(str(error)) from error
