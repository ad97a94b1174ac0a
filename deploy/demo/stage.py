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

_PLAIN_WIDTH = 120
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
        self._console.print(Text(purpose, style="dim"))
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
        """A command line as the person would type it."""
        self._console.print(Text("$ ", style="bold cyan").append(shlex.join(argv), style="cyan"))

    def say(self, text: str) -> None:
        """A sentence."""
        self._console.print(Text(f"  {text}"))

    def check(self, condition: object, text: str) -> None:
        """Mark `text` as held, or end the step.

        Raises:
            Broken: it does not hold.
        """
        if not condition:
            self._console.print(Text(f"  {self._broken_mark} {text}", style="bold red"))
            raise Broken(text)
        self.steps[-1].held += 1
        self._console.print(Text(f"  {self._held_mark} ", style="bold green").append(text, style="default"))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> None:
        """Rows under headings; words that name a state are coloured.

        Args:
            columns: headings.
            rows: as many cells each.
            right: headings of the columns that are numbers.
        """
        table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)
        for column in columns:
            table.add_column(column, justify="right" if column in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*(_cell(str(value)) for value in row))
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
        self._console.print(Text(problem, style="red"))
        for line in tails:
            self._console.print(Text(line, style="dim"))
        self._console.print(Text(f"The whole logs are in {logs}"))

    def next_lines(self, intro: str, lines: Sequence[str], outro: str) -> None:
        """What to try next; printed so that each line can be copied whole."""
        self._console.print(intro)
        self._console.print()
        for line in lines:
            self._console.print(Text(f"    {line}", style="cyan"), soft_wrap=True)
        self._console.print()
        self._console.print(outro)


def _cell(text: str) -> Text:
    return Text(text, style=_STATE_COLOURS.get(text, ""))
