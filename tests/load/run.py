"""Running rows one after another; whatever fails in one costs the others nothing."""

import asyncio
import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from tests.load.context import Context
from tests.load.results import Row, RowResult

ROW_TIMEOUT_S = 180.0


@dataclass
class Run:
    """What came of a run."""

    results: list[RowResult] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    """Row -> what stopped it; its half that was measured is among the results."""


async def measure(rows: Sequence[Row], console: Console, *, quick: bool) -> Run:
    """Run the rows, one after another: two at once would measure each other.

    SIGTERM ends the run in order, as Ctrl-C does: no child is left.
    """
    run = Run()
    with tempfile.TemporaryDirectory(prefix="fleet-load-", ignore_cleanup_errors=True) as folder, _ended_by_sigterm():
        ctx = Context(Path(folder), quick)
        for row in rows:
            started_at_s = time.monotonic()
            console.print(f"{row.name}: {row.workload} ...", end=" ")
            await _measure_row(row, ctx, run)
            console.print(f"{time.monotonic() - started_at_s:.0f} s", highlight=False)
    return run


async def _measure_row(row: Row, ctx: Context, run: Run) -> None:
    result = RowResult(row.name, row.workload, row.budget, load_average=round(os.getloadavg()[0], 2))
    try:
        async with asyncio.timeout(ROW_TIMEOUT_S):
            result = replace(result, baseline=await row.baseline(ctx))
            if row.product is not None and row.judge is not None:
                product = await row.product(ctx)
                verdict = row.judge(product, result.baseline)
                result = replace(result, product=product, ratio=verdict.ratio, met=verdict.met)
    except TimeoutError as failure:
        run.failures[row.name] = str(failure) or f"it took more than {ROW_TIMEOUT_S:g} s"
    except Exception as failure:
        run.failures[row.name] = f"{type(failure).__name__}: {failure}"
    run.results.append(result)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
