"""`fleetctl telemetry`: the newest values, and history as a chart in the terminal."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from fleet_server.cli import complete
from fleet_server.cli.grammar import Duration, Noun
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.tables import Cell, Column
from fleet_server.cli.terminal import Styled, age

if TYPE_CHECKING:
    from fleet.v1 import admin_pb2

_LATEST_COLUMNS = [
    Column("NODE"),
    Column("SERIES"),
    Column("VALUE", right=True),
    Column("UNIT", spare=2),
    Column("AGE", right=True, spare=1),
    Column("LABELS", flexible=True),
]
_HISTORY_COLUMNS = [
    Column("SERIES"),
    Column("LABELS", flexible=True),
    Column("TREND", spare=3),
    Column("LAST", right=True),
    Column("MIN", right=True),
    Column("MEAN", right=True),
    Column("MAX", right=True),
    Column("UNIT", spare=2),
    Column("SAMPLES", right=True, spare=1),
]
_SPARKLINE_CELLS = 24


@click.group(cls=Noun)
def telemetry() -> None:
    """Read what nodes measure."""


@telemetry.command("latest", example="fleetctl telemetry latest 'press-*' --series 'host.cpu.*'")
@click.argument("targets", nargs=-1, shell_complete=complete.node)
@click.option("--series", "series_glob", default="", metavar="GLOB", help="Only series whose name matches.")
@click.pass_obj
def latest(invocation: Invocation, targets: tuple[str, ...], series_glob: str) -> None:
    """Show the newest value of each series, of all nodes without TARGETS."""
    from fleet.v1 import admin_pb2

    request = admin_pb2.LatestTelemetryRequest(selector=admin_pb2.Selector(patterns=targets), series_glob=series_glob)
    with invocation.connect() as admin:
        answer = admin.call(admin.stub.LatestTelemetry, request)
    now_ms = invocation.now_ms()
    invocation.emit_list(answer.values, _LATEST_COLUMNS, lambda value: _latest_row(value, now_ms))
    if not answer.values:
        invocation.say("Nothing matches. Series that there are: `fleetctl telemetry latest`")
    if answer.truncated:
        invocation.say("More series match than were sent: narrow TARGETS or --series.")


@telemetry.command("history", example="fleetctl telemetry history press-7 --series host.cpu.percent --since 6h")
@click.argument("node", shell_complete=complete.node)
@click.option("--series", "series_glob", default="", metavar="GLOB", help="Only series whose name matches.")
@click.option("--since", type=Duration(), default="1h", show_default=True, help="How far back.")
@click.option("--samples", type=click.IntRange(2, 10_000), default=500, show_default=True, help="Most per series.")
@click.option("--charts", type=click.IntRange(0, 100), default=4, show_default=True, help="Most charts to draw.")
@click.pass_obj
def history(invocation: Invocation, node: str, series_glob: str, since: int, samples: int, charts: int) -> None:
    """Draw the stored samples of a node, with their trend, least, mean and most."""
    from fleet.v1 import admin_pb2

    to_ms = invocation.now_ms()
    request = admin_pb2.TelemetryHistoryRequest(
        node=node, series_glob=series_glob, from_ms=to_ms - since * 1000, to_ms=to_ms, max_samples=samples
    )
    with invocation.connect() as admin:
        answer = admin.call(admin.stub.TelemetryHistory, request)
    if not invocation.wants_json:
        from fleet_server.cli.chart import draw

        for series in answer.series[:charts]:
            invocation.emit_text(draw(series))
    invocation.emit_list(answer.series, _HISTORY_COLUMNS, _history_row)
    if not answer.series:
        invocation.say(
            f"Nothing matches in this time. Series that there are: `fleetctl telemetry latest {shlex.quote(node)}`"
        )
    if len(answer.series) > charts and not invocation.wants_json:
        invocation.say(f"{charts} of {len(answer.series)} series are drawn: narrow --series, or raise --charts.")


def _latest_row(value: admin_pb2.LatestValue, now_ms: int) -> list[Cell]:
    from fleet_server.cli.chart import quantity, unit_text
    from fleet_server.cli.views import labels_text

    return [
        Styled(value.node_name or value.node_id, bold=True),
        value.name,
        quantity(value.value, value.unit),
        unit_text(value.unit),
        age(value.at_ms, now_ms),
        labels_text(value.labels.items()),
    ]


def _history_row(series: admin_pb2.SeriesHistory) -> list[Cell]:
    from fleet_server.cli.chart import finite, quantity, sparkline, unit_text
    from fleet_server.cli.views import labels_text

    values = finite(series.values)
    figures = (values[-1], min(values), sum(values) / len(values), max(values)) if values else ()
    shown = [quantity(figure, series.unit) for figure in figures] or ["-"] * 4
    return [
        Styled(series.name, bold=True),
        labels_text(series.labels.items()),
        Styled(sparkline(values, _SPARKLINE_CELLS), "cyan"),
        *shown,
        unit_text(series.unit),
        str(len(series.values)),
    ]
