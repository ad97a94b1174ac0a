"""`python -m tests.load [rows...] [--quick] [--json FILE] [--markdown FILE]`: print figures as a table and as JSON."""

import argparse
import asyncio
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console

from tests.load.results import print_table, to_json, to_markdown
from tests.load.rows import DEFAULT_ROWS, ROWS, named
from tests.load.run import measure

_TABLE_COLUMNS = 160
_BEGIN, _END = "<!-- figures: begin -->\n", "<!-- figures: end -->\n"


def put_between_marks(page: str, table: str) -> str:
    """The page with the table between the marks; the table alone, marked, when the page has no marks."""
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        return f"{_BEGIN}{table}{_END}"
    return f"{before}{_BEGIN}{table}{_END}{after}"


def main() -> int:
    """Parse, measure, print; 1 when a row could not be measured, 130 when the run was stopped."""
    options = _parse()
    names = named(options.rows)
    console = Console(stderr=True, width=None if sys.stderr.isatty() else _TABLE_COLUMNS)
    started_at_s, load_before = time.monotonic(), os.getloadavg()[0]
    try:
        run = asyncio.run(measure([ROWS[name] for name in names], console, quick=options.quick))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("stopped: no figures, nothing left running")
        return 130
    conditions = _conditions(options.quick, load_before, time.monotonic() - started_at_s)
    print_table(run.results, console)
    document = to_json(run.results, conditions)
    if options.json:
        options.json.write_text(document + "\n", encoding="utf-8")
    else:
        print(document)
    if options.markdown:
        page = options.markdown.read_text(encoding="utf-8") if options.markdown.exists() else ""
        table = to_markdown(run.results, conditions)
        options.markdown.write_text(put_between_marks(page, table), encoding="utf-8")
    for name, failure in run.failures.items():
        console.print(f"[red]{name} was not measured:[/red]", failure, highlight=False)
    return 1 if run.failures else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument(
        "rows",
        nargs="*",
        metavar="row",
        help=f"of {', '.join(ROWS)}, or a group by its letter; without: {', '.join(DEFAULT_ROWS)}",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, short times: to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON here instead of to the output")
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="write a Markdown table here, between the file's marks if it has any",
    )
    options = parser.parse_args()
    try:
        named(options.rows)
    except KeyError as unknown:
        parser.error(f"no such row: {unknown.args[0]}; there are {', '.join(ROWS)}")
    return options


def _conditions(quick: bool, load_before: float, took_s: float) -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "grpc": grpc.__version__,
        "quick": quick,
        "seconds": round(took_s),
        "load_average_before": round(load_before, 2),
        "load_average_after": round(os.getloadavg()[0], 2),
    }


if __name__ == "__main__":
    sys.exit(main())
