"""`python -m tests.load [rows...] [--quick] [--json FILE]`: print the figures as a table and as JSON."""

import argparse
import asyncio
import os
import platform
import sys
import tempfile
from pathlib import Path

import grpc
from rich.console import Console

from tests.load.context import Context
from tests.load.results import RowResult, print_table, to_json
from tests.load.rows import ROWS

_TABLE_COLUMNS = 160


async def measure(names: list[str], *, quick: bool, console: Console) -> tuple[list[RowResult], dict[str, str]]:
    """Run the named rows, one after another: two at once would measure each other.

    Returns:
        The results, and what stopped each row that has none; a row that fails costs the others nothing.
    """
    results, failures = [], {}
    with tempfile.TemporaryDirectory(prefix="fleet-load-") as folder:
        ctx = Context(Path(folder), quick)
        for name in names:
            console.print(f"{name}: {ROWS[name].WORKLOAD} ...")
            try:
                results.append(await ROWS[name].run(ctx))
            except (ChildProcessError, TimeoutError) as failure:
                failures[name] = str(failure)
    return results, failures


def main() -> int:
    """Parse, measure, print; 1 when a row could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="row", help=f"of {', '.join(ROWS)}; all when none is named")
    parser.add_argument("--quick", action="store_true", help="small sizes, short times: to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON here instead of to the output")
    options = parser.parse_args()
    names = [name.upper() for name in options.rows] or list(ROWS)
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    console = Console(stderr=True, width=None if sys.stderr.isatty() else _TABLE_COLUMNS)
    results, failures = asyncio.run(measure(names, quick=options.quick, console=console))
    conditions = {
        "quick": options.quick,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "grpc": grpc.__version__,
    }
    print_table(results, console)
    document = to_json(results, conditions)
    if options.json:
        options.json.write_text(document + "\n", encoding="utf-8")
    else:
        print(document)
    for name, failure in failures.items():
        console.print(f"[red]{name} was not measured:[/red]", failure, highlight=False)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
