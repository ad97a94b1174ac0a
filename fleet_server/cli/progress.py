"""A progress bar on stderr while a verb waits; nothing when stderr is not a terminal."""

from __future__ import annotations

import shutil
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


_INTERRUPT_CELLS = 3


class Bar:
    """Counts up to a total and says how it goes. Used in a `with`.

    Args:
        title: what is waited for.
        total: how many; None while unknown.
        estimates: whether to show rich's own estimate of the time left.
    """

    def __init__(self, title: str, total: int | None, *, estimates: bool = False) -> None:
        self._title = title
        self._total = total
        self._estimates = estimates
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if not sys.stderr.isatty():
            return self
        from rich import progress
        from rich.console import Console

        columns: list[progress.ProgressColumn] = [
            progress.SpinnerColumn(),
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
        ]
        if self._estimates:
            columns.append(progress.TimeRemainingColumn())
        columns.append(progress.TextColumn("{task.fields[note]}", markup=False))
        # Room for the "^C" of the terminal: on the next line it would keep the bar from being taken away.
        width = max(shutil.get_terminal_size().columns - _INTERRUPT_CELLS, 1)
        self._progress = progress.Progress(*columns, console=Console(stderr=True, width=width), transient=True)
        self._task = self._progress.add_task(self._title, total=self._total, note="")
        self._progress.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, done: int, *, total: int | None = None, note: str = "") -> None:
        """Move to `done`; a new `total` may be given, and a word on how it goes."""
        if self._progress is None or self._task is None:
            return
        self._progress.update(self._task, completed=done, total=total or self._total, note=note)
