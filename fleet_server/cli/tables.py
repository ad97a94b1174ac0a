"""Tables that fit the terminal: what matters least gives way, and a pipe gets everything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fleet.prose import cells
from fleet_server.cli.terminal import Styled, painted, printable

_GAP = "  "
_BARELY = 4
_NOTHING = ("", "-")

Cell = str | Styled


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Args:
        title: its head.
        right: whether to align it to the right, as figures are.
        flexible: whether it may be cut, from the end, when the terminal is narrow.
        least: columns of the terminal that a flexible one keeps.
        spare: whether it may be left out, and in which turn: 1 goes first; 0 always stays. One that says nothing goes
            before any that does.
        reserve: columns to give it from the start in a table that grows.
    """

    title: str
    right: bool = False
    flexible: bool = False
    least: int = 12
    spare: int = 0
    reserve: int = 0


def table(columns: Sequence[Column], rows: Iterable[Sequence[Cell]], *, colour: bool, width: int | None) -> str:
    """Lay out a table.

    Args:
        columns: titles and how they behave.
        rows: one cell a column; the text is made printable here.
        colour: whether to write escape sequences.
        width: columns of the terminal; None leaves nothing out and never cuts, for pipes.
    """
    return RunningTable(columns, colour=colour, width=width).add(rows)


class RunningTable:
    """A table whose rows come over time. Columns widen as they must; which of them are left out is decided once.

    Args:
        columns: titles and how they behave.
        colour: whether to write escape sequences.
        width: columns of the terminal; None for pipes.
    """

    def __init__(self, columns: Sequence[Column], *, colour: bool, width: int | None) -> None:
        self._columns = columns
        self._colour = colour
        self._width = width
        self._natural = [max(len(column.title), column.reserve) for column in columns]
        self._kept: list[int] | None = None

    def add(self, rows: Iterable[Sequence[Cell]]) -> str:
        """The lines of further rows; the first time under the titles."""
        told = [[cell if isinstance(cell, Styled) else Styled(cell) for cell in row] for row in rows]
        texts = [[printable(cell.text) for cell in row] for row in told]
        for row in texts:
            self._natural = [max(known, cells(text)) for known, text in zip(self._natural, row, strict=True)]
        lines: list[list[Styled]] = []
        if self._kept is None:
            silent = [bool(texts) and all(row[i] in _NOTHING for row in texts) for i in range(len(self._columns))]
            self._kept = self._choose(silent)
            lines.append([Styled(column.title, bold=True) for column in self._columns])
        widths = self._fit(self._kept)
        return "\n".join(self._line(row, self._kept, widths) for row in [*lines, *told])

    def _choose(self, silent: Sequence[bool]) -> list[int]:
        kept = list(range(len(self._columns)))
        while self._width is not None and self._needed(kept) > self._width:
            spare = [i for i in kept if self._columns[i].spare]
            if not spare:
                break
            kept.remove(min(spare, key=lambda i: (not silent[i], self._columns[i].spare)))
        return kept

    def _needed(self, kept: Sequence[int]) -> int:
        return sum(self._least(i) for i in kept) + len(_GAP) * (len(kept) - 1)

    def _least(self, i: int) -> int:
        column = self._columns[i]
        return min(self._natural[i], max(column.least, len(column.title))) if column.flexible else self._natural[i]

    def _fit(self, kept: Sequence[int]) -> dict[int, int]:
        widths = {i: self._natural[i] for i in kept}
        if self._width is None:
            return widths
        excess = sum(widths.values()) + len(_GAP) * (len(kept) - 1) - self._width
        for least in (self._least, self._last_resort):
            for i in reversed(kept):
                given = min(max(excess, 0), max(widths[i] - least(i), 0))
                widths[i] -= given
                excess -= given
        return widths

    def _last_resort(self, i: int) -> int:
        return _BARELY if self._columns[i].flexible else self._natural[i]

    def _line(self, row: Sequence[Styled], kept: Sequence[int], widths: dict[int, int]) -> str:
        parts: list[str] = []
        for i in kept:
            text = printable(row[i].text)
            size = cells(text)
            if size > widths[i]:
                text, size = _cut(text, widths[i])
            padding = " " * (widths[i] - size)
            shown = painted(row[i], text, colour=self._colour)
            if self._columns[i].right:
                parts.append(padding + shown)
            else:
                parts.append(shown if i == kept[-1] else shown + padding)
        return _GAP.join(parts).rstrip()


def _cut(text: str, width: int) -> tuple[str, int]:
    kept = text[: max(width - 1, 0)]
    while cells(kept) > width - 1:
        kept = kept[:-1]
    return kept + "…", cells(kept) + 1
