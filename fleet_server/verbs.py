"""What every verb of `fleet-server` shares: how it ends badly, its help, and its exit codes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from fleet.prose import write_example
from fleet_server.cli.grammar import Listing

_EXIT_CODES = (
    ("0", "done"),
    ("1", "the server failed while it ran"),
    ("2", "wrong usage, settings or files"),
    ("3", "refused"),
    ("4", "the database does not answer"),
)


class Ending(click.ClickException):
    """A verb ends badly; the message says why and what to do."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Write it to standard error, further lines under the first."""
        first, *further = self.message.splitlines() or [""]
        click.echo(f"error: {first}", file=file or sys.stderr)
        for line in further:
            click.echo(f"       {line}", file=file or sys.stderr)


class BadSetup(Ending):
    """Wrong usage, settings or files."""

    exit_code = 2


class Refused(Ending):
    """What was asked for is not done."""

    exit_code = 3


class Unreachable(Ending):
    """The database does not answer."""

    exit_code = 4


def _ending_of(error: Exception) -> Ending | None:
    """What a known error ends with; None for a fault of this program."""
    from fleet.errors import Reason, Refusal
    from fleet.identity import PrivateFileError
    from fleet_server import bootstrap
    from fleet_server.certificates import CertificateError
    from fleet_server.config import ConfigError
    from fleet_server.database.dialects import DatabaseUrlError
    from fleet_server.database.migrate import DatabaseUnreachableError, SchemaError
    from fleet_server.trust.secrets import SecretKeyError
    from fleet_server.trust.service import TrustSetupError

    if isinstance(error, Refusal):
        return (Unreachable if error.reason is Reason.UNAVAILABLE else Refused)(error.detail)
    endings: tuple[tuple[type[Exception], type[Ending]], ...] = (
        (ConfigError, BadSetup),
        (DatabaseUrlError, BadSetup),
        (SecretKeyError, BadSetup),
        (PrivateFileError, BadSetup),
        (CertificateError, BadSetup),
        (DatabaseUnreachableError, Unreachable),
        (bootstrap.NotInitialisedError, Refused),
        (bootstrap.AlreadyRunningError, Refused),
        (SchemaError, Refused),
        (TrustSetupError, Refused),
    )
    return next((ending(str(error)) for kind, ending in endings if isinstance(error, kind)), None)


@contextmanager
def _explained() -> Iterator[None]:
    """Known errors become one sentence and a code; all others are faults of this program and show where."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except Exception as error:
        ending = _ending_of(error)
        if ending is None:
            raise
        raise ending from error


class Verb(click.Command):
    """A command whose help ends with an example and the exit codes, and whose errors are explained."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._example = example

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        with _explained():
            return super().invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example and the exit codes."""
        write_example(formatter, self._example)
        _write_exit_codes(formatter)


class Program(Listing):
    """`fleet-server` itself: its output may go to a pipe that closes or a disk that is full."""

    group_class = Listing

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run and end the process."""
        from fleet.standard_streams import carry_output

        with carry_output():
            return super().main(*args, **extra)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the first steps and the exit codes."""
        write_example(formatter, "fleet-server init --owner ada --owner-token-file owner.token\nfleet-server run")
        _write_exit_codes(formatter)


def _write_exit_codes(formatter: click.HelpFormatter) -> None:
    with formatter.section("Exit codes"):
        formatter.write_dl(list(_EXIT_CODES))
