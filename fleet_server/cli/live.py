"""A table that stays in its place on the terminal and follows what happens, until Ctrl-C."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fleet_server.cli.tables import Cell, Column, table
from fleet_server.cli.terminal import Styled, counted, excerpt, styled, wants_colour

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

_REDRAWS_PER_S = 2  # ages grow while nothing else happens
_ROWS_BESIDE = 3  # title, footer, and the line that the shell will need


def is_possible() -> bool:
    """Whether standard output is a terminal that can redraw."""
    return sys.stdout.isatty() and os.environ.get("TERM") not in (None, "", "dumb")


class LiveTable:
    """Redraws a table in place. Used in a `with`.

    Args:
        columns: of the table.
        rows: gives the rows as they are now; called from another thread, too.
        noun: what a row is, for the footer.
    """

    def __init__(self, columns: Sequence[Column], rows: Callable[[], Sequence[Sequence[Cell]]], noun: str) -> None:
        self._columns = columns
        self._rows = rows
        self._noun = noun
        self._note = ""
        self._live: Live | None = None

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(
            get_renderable=self._draw,
            console=Console(file=sys.stdout, highlight=False),
            refresh_per_second=_REDRAWS_PER_S,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, text: str) -> None:
        """Draw it now, with `text` beside the count."""
        self._note = text
        if self._live is not None:
            self._live.refresh()

    def _draw(self) -> Text:
        from rich.text import Text

        colour = wants_colour(sys.stdout)
        size = shutil.get_terminal_size()
        rows = self._rows()
        fitting = rows[: max(size.lines - _ROWS_BESIDE, 1)]
        left = len(rows) - len(fitting)
        count = f"{counted(len(rows), self._noun)}" + (f", {left} not shown: name fewer" if left else "")
        footer = Styled(
            excerpt(f"{count}. {self._note or 'Ctrl-C ends.'}", size.columns),
            "yellow" if self._note else None,
            dim=not self._note,
        )
        text = table(self._columns, fitting, colour=colour, width=size.columns)
        text += "\n" + styled(footer, colour=colour)
        return Text.from_ansi(text, no_wrap=True, overflow="crop")
