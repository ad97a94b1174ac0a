"""Numbers as pictures: a chart of a series, a sparkline for a table cell, a figure with the right number of digits."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING

from fleet_server.cli.terminal import printable, wants_colour
from fleet_server.cli.views import labels_text

if TYPE_CHECKING:
    from fleet.v1 import admin_pb2

CHART_ROWS = 16
_MAX_CHART_COLUMNS = 120
_TICKS = 6
_BLOCKS = "▁▂▃▄▅▆▇█"
_BINARY_PREFIXES = ("", "Ki", "Mi", "Gi", "Ti", "Pi")


def draw(series: admin_pb2.SeriesHistory) -> str:
    """A line chart of one series over local time, as wide as the terminal."""
    import plotext

    points = [(at, value) for at, value in zip(series.at_ms, series.values, strict=False) if math.isfinite(value)]
    title = printable(
        " ".join(
            [series.name, f"({unit})" if (unit := unit_text(series.unit)) else "", labels_text(series.labels.items())]
        )
    )
    if not points:
        return f"{title.strip()}: no samples"
    moments = [at / 1000 for at, _ in points]
    figure = plotext.figure
    figure.clear()
    figure.theme("simple")  # the default one paints a white field, whatever the terminal's own background is
    figure.plot_size(min(shutil.get_terminal_size().columns, _MAX_CHART_COLUMNS), CHART_ROWS)
    signal = figure.signal(moments, [value for _, value in points], marker="braille")
    signal.lines()
    figure.draw(signal)
    figure.title(title.strip())
    ticks = _ticks(moments[0], moments[-1])
    figure.ruler("x").ticks(ticks, [_clock(tick, moments[-1] - moments[0]) for tick in ticks])
    text: str = figure.build().string(colorless=not wants_colour(sys.stdout))
    return text.rstrip("\n")


def sparkline(values: Sequence[float], cells: int) -> str:
    """Values as at most `cells` blocks; each block is the mean of its share, so that no spike decides by chance."""
    if not values:
        return ""
    count = min(cells, len(values))
    edges = [i * len(values) // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    least, span = min(means), max(means) - min(means)
    if span == 0:
        return _BLOCKS[0] * count
    return "".join(_BLOCKS[min(int((mean - least) / span * len(_BLOCKS)), len(_BLOCKS) - 1)] for mean in means)


def quantity(value: float, unit: str) -> str:
    """A value with four significant digits; bytes with a binary prefix."""
    if not math.isfinite(value):
        return "-"
    if unit.startswith("bytes"):
        magnitude = abs(value)
        step = 0
        while magnitude >= 1024 and step < len(_BINARY_PREFIXES) - 1:
            magnitude /= 1024
            value /= 1024
            step += 1
        return f"{value:.4g}{_BINARY_PREFIXES[step]}"
    if value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.4g}"


def unit_text(unit: str) -> str:
    """A unit for people: "1" is how telemetry writes that there is none."""
    return "" if unit == "1" else unit


def finite(values: Iterable[float]) -> list[float]:
    """Values without NaN and infinities, which a node may send and no figure survives."""
    return [value for value in values if math.isfinite(value)]


def _ticks(first: float, last: float) -> list[float]:
    if last <= first:
        return [first]
    return [first + (last - first) * i / (_TICKS - 1) for i in range(_TICKS)]


def _clock(moment: float, span_s: float) -> str:
    local = datetime.fromtimestamp(moment).astimezone()
    return local.strftime("%d %b %H:%M" if span_s > 86_400 else "%H:%M:%S" if span_s < 600 else "%H:%M")
