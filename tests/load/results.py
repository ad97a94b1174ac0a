"""What a row of the budget table is, what it measured, and how it is shown."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.load.context import Context

_UNBROKEN = ("row", "product", "bare baseline", "ratio", "met")
_HEADINGS = ("row", "workload", "product", "bare baseline", "ratio", "budget", "met", "others' cores")
Figures = Mapping[str, float]
"""Name with its unit (`p50_us`, `commands_per_s`) -> value."""
Measure = Callable[[Context], Awaitable[Figures]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the product stands beside the baseline and its budget."""

    ratio: float
    """Product over baseline in the figure that the budget is about."""
    met: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the budget table."""

    name: str
    workload: str
    budget: str
    baseline: Measure
    product: Measure | None = None
    judge: Callable[[Figures, Figures], Verdict] | None = None
    """Product's figures, baseline's figures -> verdict."""
    timeout_s: float = 240.0
    """What both may take together."""


@dataclass(frozen=True, slots=True)
class RowResult:
    """One row: the product's figures beside those of the bare baseline measured in the same run."""

    row: str
    workload: str
    budget: str
    baseline: Figures = field(default_factory=dict)
    product: Figures = field(default_factory=dict)
    ratio: float | None = None
    """Product over baseline in the figure that the budget is about; None when the product was not measured."""
    met: bool | None = None
    """Whether the budget held; None when there is nothing to judge."""
    others_cores: float | None = None
    """Cores that programs other than this run's used, on average while the row ran: how quiet the machine was."""


def to_json(results: Sequence[RowResult], conditions: Mapping[str, Any]) -> str:
    """All rows with the conditions they were measured under, as one JSON document."""
    rows = [asdict(result) for result in results]
    return json.dumps({"conditions": dict(conditions), "rows": rows}, indent=2)


def to_markdown(results: Sequence[RowResult], conditions: Mapping[str, Any]) -> str:
    """All rows with their conditions, as a Markdown table."""
    said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in conditions.items())
    lines = [f"Measured with {said}.", "", _markdown_row(_HEADINGS), _markdown_row("---" for _ in _HEADINGS)]
    for result in results:
        met = {None: "", True: "yes", False: "**no**"}[result.met]
        cells = [
            result.row,
            result.workload,
            "<br>".join(_lines(result.product)),
            "<br>".join(_lines(result.baseline)),
            _ratio(result),
            result.budget,
            met,
            _others(result),
        ]
        lines.append(_markdown_row(cells))
    return "\n".join(lines) + "\n"


def print_table(results: Sequence[RowResult], console: Console) -> None:
    """One line a row; figures one below another."""
    table = Table(title="Load rows", show_lines=True)
    for heading in _HEADINGS:
        table.add_column(heading, no_wrap=heading in _UNBROKEN)
    for result in results:
        table.add_row(
            result.row,
            result.workload,
            "\n".join(_lines(result.product)),
            "\n".join(_lines(result.baseline)),
            _ratio(result),
            result.budget,
            {None: "", True: "[green]yes", False: "[red]no"}[result.met],
            _others(result),
        )
    console.print(table)


def _markdown_row(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _ratio(result: RowResult) -> str:
    return "" if result.ratio is None else f"{result.ratio:.2f}"


def _others(result: RowResult) -> str:
    return "" if result.others_cores is None else f"{result.others_cores:.1f}"


def _lines(figures: Figures) -> list[str]:
    return [f"{name} {_short(value)}" for name, value in figures.items()] or ["not measured"]


def _short(value: float) -> str:
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"
