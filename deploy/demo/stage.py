"""What the person at the terminal sees: numbered steps, command lines, tables, and a mark for everything that held.

Without a terminal it is the same as plain text. Nothing here decides anything but whether a check held.
"""

import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.status import Status
from rich.table import Table
from rich.text import Text

from fleet.prose import wrapped

_PLAIN_WIDTH = 120
_GAP_CELLS = 2
_TWO_FINGERPRINTS_WIDTH = 100
_STATE_COLOURS = {
    "SUCCEEDED": "green",
    "ACTIVE": "green",
    "online": "green",
    "QUEUED": "yellow",
    "ACCEPTED": "yellow",
    "INTERRUPTED": "magenta",
    "QUARANTINED": "red",
    "REJECTED": "red",
    "FAILED": "red",
}


class Broken(Exception):
    """A step did not hold; the text says what was expected."""


@dataclass(slots=True)
class Step:
    """One step that was walked."""

    number: int
    title: str
    held: int = 0
    took_s: float = 0.0


class Stage:
    """Writes the walk to standard output."""

    def __init__(self) -> None:
        probe = Console()
        self._console = probe if probe.is_terminal else Console(width=_PLAIN_WIDTH, no_color=True, highlight=False)
        unicode = (self._console.encoding or "").lower().startswith("utf")
        self._held_mark, self._broken_mark = ("✓", "✗") if unicode else ("ok", "NOT")
        self.steps: list[Step] = []
        self._status: Status | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether a person may be looking."""
        return self._console.is_terminal

    def banner(self, title: str, text: str) -> None:
        """The opening."""
        self._console.print(Panel(Text(text), title=f"[bold]{title}[/]", border_style="blue", padding=(1, 2)))

    @contextmanager
    def step(self, title: str, purpose: str) -> Iterator[Step]:
        """One step: a heading, what it is for, and how long it took."""
        step = Step(len(self.steps) + 1, title)
        self.steps.append(step)
        self._console.print()
        self._console.rule(f"[bold blue]{step.number}. {title}[/]", align="left", style="blue")
        self._console.print(Text(wrapped(purpose, self._console.width), style="dim"))
        started_s = time.monotonic()
        try:
            with self._console.status("") if self.is_terminal else nullcontext() as self._status:
                yield step
        finally:
            self._status = None
            step.took_s = time.monotonic() - started_s

    def waiting(self, what: str) -> None:
        """Show at a terminal what the step waits for."""
        if self._status is not None:
            self._status.update(Text(f"waiting for {what}" if what else "", style="dim"))

    def command(self, *argv: str) -> None:
        """A command line as the person would type it, and may copy it."""
        self._console.print(Text("$ ", style="bold cyan").append(shlex.join(argv), style="cyan"), soft_wrap=True)

    def interrupted(self, text: str) -> None:
        """A sentence after Ctrl-C, which the terminal shows where the cursor stands."""
        self._console.print()
        self.say(text)

    def say(self, text: str, *, label: str = "") -> None:
        """A sentence, after a label; what does not fit its line goes on under its beginning."""
        self._line(f"  {label}", Text(f"  {label}"), text)

    def check(self, condition: object, text: str) -> None:
        """Mark `text` as held, or end the step.

        Raises:
            Broken: it does not hold.
        """
        if not condition:
            self._line(f"  {self._broken_mark} ", Text(f"  {self._broken_mark} "), text, style="bold red")
            raise Broken(text)
        self.steps[-1].held += 1
        self._line(f"  {self._held_mark} ", Text(f"  {self._held_mark} ", style="bold green"), text)

    def fingerprint(self, text: str) -> str:
        """A fingerprint for a table that has two: in two halves when the terminal is narrow."""
        if self._console.width >= _TWO_FINGERPRINTS_WIDTH:
            return text
        groups = text.split("-")
        half = len(groups) // 2
        return "-".join(groups[:half]) + "-\n" + "-".join(groups[half:])

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[object]],
        *,
        right: Sequence[str] = (),
        whole: Sequence[str] = (),
        cut: Sequence[str] = (),
    ) -> None:
        """Rows under headings; words that name a state are coloured.

        Args:
            columns: headings.
            rows: as many cells each.
            right: headings of the columns that are numbers.
            whole: headings of the columns that are never folded.
            cut: headings of the columns that are cut, not folded, when there is no room.
        """
        table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False, collapse_padding=True)
        for column in columns:
            table.add_column(
                column,
                justify="right" if column in right else "left",
                overflow="fold",
                no_wrap=column in cut or column in whole or column in right,
            )
        texts = [[str(value) for value in row] for row in rows]
        widths = [max(len(text) for text in column) for column in zip(columns, *texts, strict=True)]
        room = self._console.width - _GAP_CELLS * (len(columns) - 1)
        for text in texts:
            for i, column in enumerate(columns):
                if column in cut:
                    text[i] = _excerpt(text[i], room - (sum(widths) - widths[i]))
            table.add_row(*(_cell(each) for each in text))
        self._console.print()
        self._console.print(table)
        self._console.print()

    def summary(self) -> None:
        """The steps that were walked, with what held in each."""
        self._console.print()
        self._console.rule("[bold green]Every step held[/]", align="left", style="green")
        rows = [(step.number, step.title, step.held, f"{step.took_s:.1f} s") for step in self.steps]
        self.table(("", "step", "checks", "took"), rows, right=("", "checks", "took"))

    def failure(self, problem: str, tails: Sequence[str], logs: str) -> None:
        """Which step broke, and what the processes said last."""
        step = self.steps[-1] if self.steps else Step(0, "before the first step")
        self._console.print()
        self._console.rule(f"[bold red]Step {step.number} did not hold: {step.title}[/]", align="left", style="red")
        self._console.print(Text(wrapped(problem, self._console.width), style="red"))
        for line in tails:
            self._console.print(Text(line, style="dim"))
        self._console.print(Text(f"The whole logs are in {logs}"))

    def _line(self, begins: str, shown: Text, text: str, *, style: str = "default") -> None:
        folded = wrapped(text, self._console.width, indent=len(begins))
        self._console.print(shown.append(folded, style=style), soft_wrap=True)

    def next_lines(self, intro: str, lines: Sequence[str], outro: str) -> None:
        """What to try next; printed so that each line can be copied whole."""
        self._console.print(wrapped(intro, self._console.width))
        self._console.print()
        for line in lines:
            self._console.print(Text(f"    {line}", style="cyan"), soft_wrap=True)
        self._console.print()
        self._console.print(outro)


def _excerpt(text: str, width: int) -> str:
    width = max(width, 1)
    return text if len(text) <= width else text[: width - 1] + "…"


def _cell(text: str) -> Text:
    return Text(text, style=_STATE_COLOURS.get(text, ""))
