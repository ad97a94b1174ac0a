"""What a row of the budget table measured, and how it is shown."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

_UNBROKEN = ("row", "product", "bare baseline", "ratio", "met")
Figures = Mapping[str, float]
"""Name with its unit (`p50_us`, `commands_per_s`) -> value."""


@dataclass(frozen=True, slots=True)
class RowResult:
    """One row: the product's figures beside those of the bare baseline measured in the same run."""

    row: str
    workload: str
    budget: str
    baseline: Figures
    product: Figures = field(default_factory=dict)
    ratio: float | None = None
    """Product over baseline in the figure that the budget is about; None when the product was not measured."""
    met: bool | None = None
    """Whether the budget held; None when there is nothing to judge."""


def to_json(results: Sequence[RowResult], conditions: Mapping[str, Any]) -> str:
    """All rows with the conditions they were measured under, as one JSON document."""
    rows = [asdict(result) for result in results]
    return json.dumps({"conditions": dict(conditions), "rows": rows}, indent=2)


def print_table(results: Sequence[RowResult], console: Console) -> None:
    """One line a row; figures one below another."""
    table = Table(title="Load rows", show_lines=True)
    for heading in ("row", "workload", "product", "bare baseline", "ratio", "budget", "met"):
        table.add_column(heading, no_wrap=heading in _UNBROKEN)
    for result in results:
        table.add_row(
            result.row,
            result.workload,
            _lines(result.product),
            _lines(result.baseline),
            "" if result.ratio is None else f"{result.ratio:.2f}",
            result.budget,
            {None: "", True: "[green]yes", False: "[red]no"}[result.met],
        )
    console.print(table)


def _lines(figures: Figures) -> str:
    return "\n".join(f"{name} {_short(value)}" for name, value in figures.items()) or "not measured"


def _short(value: float) -> str:
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"
