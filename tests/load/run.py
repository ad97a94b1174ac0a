"""Running rows one after another; whatever fails in one costs the others nothing."""

import asyncio
import contextlib
import resource
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
from rich.console import Console

from tests.load.context import Context
from tests.load.results import Row, RowResult


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
    result, quiet = RowResult(row.name, row.workload, row.budget), _Quiet()
    try:
        async with asyncio.timeout(row.timeout_s):
            result = replace(result, baseline=await row.baseline(ctx))
            if row.product is not None and row.judge is not None:
                product = await row.product(ctx)
                verdict = row.judge(product, result.baseline)
                result = replace(result, product=product, ratio=verdict.ratio, met=verdict.met)
    except TimeoutError as failure:
        run.failures[row.name] = str(failure) or f"it took more than {row.timeout_s:g} s"
    except Exception as failure:
        run.failures[row.name] = f"{type(failure).__name__}: {failure}"
    run.results.append(replace(result, others_cores=quiet.others_cores()))


class _Quiet:
    """What others use of the machine's processors from here on; a row's children have all ended when it is asked."""

    def __init__(self) -> None:
        self._started_at_s, self._busy_s, self._own_s = time.monotonic(), _busy_s(), _own_s()

    def others_cores(self) -> float:
        """Cores, on average; CPU time of this process and of the children it waited for does not count."""
        others_s = (_busy_s() - self._busy_s) - (_own_s() - self._own_s)
        return round(max(0.0, others_s) / (time.monotonic() - self._started_at_s), 2)


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice)


def _own_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


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
