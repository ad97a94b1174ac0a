"""One run of fleetctl: what every verb was told, how it connects, and how it shows data and messages."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import termios
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import click

from fleet.prose import wrapped
from fleet_server.cli.failures import BadProfile, Failure
from fleet_server.cli.tables import Cell, Column, RunningTable
from fleet_server.cli.terminal import fields as lay_out_fields
from fleet_server.cli.terminal import printable, terminal_width, wants_colour

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from fleet_server.cli.connection import Admin
    from fleet_server.cli.profile import Context, ProfileFile

Row = TypeVar("Row", bound="Message")

_HANGING = 2


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Invocation:
    """What one run of fleetctl knows.

    Data goes to stdout, everything else to stderr, so that a pipe carries data alone.
    """

    output: str = "table"
    context_name: str | None = None
    now_ms: Callable[[], int] = field(default=_now_ms)
    sleep: Callable[[float], None] = field(default=time.sleep)

    @property
    def wants_json(self) -> bool:
        """Whether data is for a program."""
        return self.output == "json"

    @property
    def is_interactive(self) -> bool:
        """Whether a person can answer a question."""
        return sys.stdin.isatty() and sys.stderr.isatty()

    def profile_file(self) -> ProfileFile:
        """The profile file of this person (FLEETCTL_PROFILE, or ~/.config/fleetctl/profile.toml)."""
        from fleet_server.cli.profile import ProfileFile

        return ProfileFile.of_environment(os.environ)

    def context(self) -> Context:
        """The context to work with.

        Raises:
            BadProfile: not logged in, or the profile cannot be used.
        """
        from fleet_server.cli.profile import context_in_force

        return context_in_force(self.profile_file(), self.context_name, os.environ)

    def connect(self) -> Admin:
        """A connection to the context's server; use it in a `with`."""
        from fleet_server.cli.connection import Admin

        def follow(context: Context) -> Context | None:
            from fleet_server.cli.tls_following import followed

            return followed(self, context)

        return Admin(self.context(), say=self.say, sleep=self.sleep, follow=follow)

    def say(self, message: str) -> None:
        """A message for the person; not data. It may quote the server, so it is made printable.

        It is one line, but for what does not fit the terminal.
        """
        stderr = sys.stderr
        clean = printable(message)
        begins = len(clean) - len(clean.lstrip())
        indent = begins + _HANGING if begins else 0
        text = wrapped(clean.lstrip(), terminal_width(stderr), indent=indent)
        click.echo(" " * begins + text, err=True, color=wants_colour(stderr))

    def advise(self, message: str) -> None:
        """As `say`, but only to a person who reads tables: a program needs no next step."""
        if not self.wants_json:
            self.say(message)

    def say_fields(self, shown: Iterable[tuple[str, Cell]]) -> None:
        """Messages for the person as `label  value` lines."""
        stderr = sys.stderr
        colour = wants_colour(stderr)
        text = lay_out_fields(shown, colour=colour, width=terminal_width(stderr))
        click.echo(text, err=True, color=colour)

    def emit_text(self, text: str) -> None:
        """Data that is text already."""
        click.echo(text, color=wants_colour(sys.stdout))

    def emit_json(self, value: object) -> None:
        """One indented JSON document."""
        click.echo(json.dumps(value, indent=2))

    def emit_json_line(self, value: object) -> None:
        """One line of JSON Lines, out at once."""
        click.echo(json.dumps(value, separators=(",", ":")))

    def emit_message(self, message: Message, shown: Iterable[tuple[str, Cell]]) -> None:
        """One thing: the whole message as JSON, or the given fields for people."""
        if self.wants_json:
            from fleet_server.cli.views import to_json

            self.emit_json(to_json(message))
        else:
            self.emit_fields(shown)

    def emit_fields(self, shown: Iterable[tuple[str, Cell]]) -> None:
        """One thing as `label  value` lines."""
        stdout = sys.stdout
        self.emit_text(lay_out_fields(shown, colour=wants_colour(stdout), width=terminal_width(stdout)))

    def emit_list(
        self, messages: Sequence[Row], columns: Sequence[Column], row: Callable[[Row], Sequence[Cell]]
    ) -> None:
        """Many things: an array of whole messages as JSON, or a table for people."""
        if self.wants_json:
            from fleet_server.cli.views import to_json

            self.emit_json([to_json(message) for message in messages])
        else:
            self.emit_table(columns, [row(message) for message in messages])

    def emit_table(self, columns: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> None:
        """A table for people."""
        self.emit_text(self.running_table(columns).add(rows))

    def running_table(self, columns: Sequence[Column]) -> RunningTable:
        """A table for people whose rows come over time; show what it gives with `emit_text`."""
        stdout = sys.stdout
        return RunningTable(columns, colour=wants_colour(stdout), width=terminal_width(stdout))

    def confirm(self, question: str, *, assumed: bool, option: str = "--yes") -> None:
        """Ask before something that cannot be taken back.

        Args:
            question: what is about to happen.
            assumed: the person already said yes, with `option`.
            option: option that says yes, named where nobody can be asked.

        Raises:
            BadProfile: nobody is there to ask.
            Failure: the person said no.
        """
        if assumed:
            return
        if not self.is_interactive:
            raise BadProfile(f"nobody is here to answer: {question}", hint=f"say it with {option}")
        _drop_typed_ahead()
        if not click.confirm(printable(question), default=False, err=True):
            raise Failure("nothing was done")


def _drop_typed_ahead() -> None:
    """What was typed before the question was shown is no answer to it."""
    with contextlib.suppress(termios.error, OSError, ValueError):  # not a terminal
        termios.tcflush(sys.stdin, termios.TCIFLUSH)
