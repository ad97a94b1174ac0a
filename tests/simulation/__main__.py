"""`python -m tests.simulation`: compares policies, prints the table and writes it and the plots into docs/.

`--record` instead records tests/simulation/traces/golden.jsonl anew, for when rules changed on purpose.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pygal
from pygal.style import Style
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from tests.simulation.comparison import Figures, compare
from tests.simulation.policies import POLICIES
from tests.simulation.run import record
from tests.simulation.trace import write
from tests.simulation.weather import Climate, draw

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGE = DOCS / "routes.md"
GOLDEN = Path(__file__).parent / "traces" / "golden.jsonl"
WIDTH = 100
BEGIN, END = "<!-- comparison: begin -->", "<!-- comparison: end -->"
COLUMNS = (
    "weather",
    "policy",
    "switches",
    "worst",
    "p50 s",
    "p99 s",
    "dead %",
    "extra ms",
    "lost %",
)


def row(line: Figures) -> tuple[str, ...]:
    return (
        line.weather,
        line.policy,
        f"{line.switches_per_route_hour:.2f}",
        str(line.worst_route),
        f"{line.heal_s(50):.1f}",
        f"{line.heal_s(99):.1f}",
        f"{100 * line.bad_share:.3f}",
        f"{line.mean_extra_ms:.1f}",
        f"{line.lost_percent:.2f}",
    )


def show(lines: list[Figures]) -> None:
    table = Table(*(Column(name, no_wrap=True) for name in COLUMNS), box=SIMPLE)
    for line in lines:
        table.add_row(*row(line), end_section=line.policy == list(POLICIES)[-1])
    Console(width=max(Console().width, WIDTH)).print(table)


def write_page(lines: list[Figures]) -> None:
    """Replaces what stands between the two markers."""
    rows = [COLUMNS, ("---",) * 2 + ("---:",) * (len(COLUMNS) - 2), *map(row, lines)]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in rows)
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")


def write_plots(lines: list[Figures]) -> None:
    """A bar for each policy in each weather. No script, no random ids: the same figures give the same files."""
    plot(lines, "routes_switches.svg", "switches per route and hour", lambda line: line.switches_per_route_hour)
    plot(lines, "routes_dead_time.svg", "time on a dead path, % of the time", lambda line: 100 * line.bad_share)
    plot(lines, "routes_round_trips.svg", "round trip over the best possible, ms", lambda line: line.mean_extra_ms)


def plot(lines: list[Figures], name: str, title: str, value: Callable[[Figures], float]) -> None:
    """One figure of all lines."""
    chart = pygal.Bar(
        js=[],
        no_prefix=True,
        style=Style(background="white", plot_background="white", colors=("#1a7f37", "#cf222e", "#0969da")),
        width=640,
        height=280,
        print_values=True,
        value_formatter=lambda each: f"{each:.2f}",
        legend_at_bottom=True,
        show_y_labels=False,
        title=title,
    )
    chart.x_labels = list(dict.fromkeys(line.weather for line in lines))
    for policy in POLICIES:
        chart.add(policy, [value(line) for line in lines if line.policy == policy])
    (DOCS / name).write_bytes(plain(chart.render_tree()) + b"\n")


def plain(svg: ElementTree.Element) -> bytes:
    """Without the script and the date that the library leaves in it."""
    for parent in list(svg.iter()):
        for child in list(parent):
            if child.tag is ElementTree.Comment or str(child.tag).rpartition("}")[2] == "script":
                parent.remove(child)
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    return bytes(ElementTree.tostring(svg))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--record", action="store_true", help="record the golden trace anew")
    parser.add_argument("--minutes", type=int, default=30, help="simulated minutes of each run")
    args = parser.parse_args()
    if args.record:
        climate = Climate(link_failures=300, flapping_links=60, relay_failures=30, slow_links=200)
        write(GOLDEN, record(draw(42, nodes=24, sites=4, relays=4, routes=10, minutes=10, climate=climate)))
        return
    lines = compare(minutes=args.minutes)
    show(lines)
    write_page(lines)
    write_plots(lines)


if __name__ == "__main__":
    main()
