"""What every verb of `fleet-server` shares: its settings, how it ends badly, its help, and its exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from fleet.prose import write_example
from fleet_server.cli.grammar import Listing

if TYPE_CHECKING:
    from fleet_server.config import LoadedSettings

Function = TypeVar("Function", bound=Callable[..., Any])

_EXIT_CODES = (
    ("0", "done"),
    ("1", "the server failed while it ran"),
    ("2", "wrong usage, settings or files"),
    ("3", "refused"),
    ("4", "the database does not answer"),
)


def settings_options(function: Function) -> Function:
    """The options that every verb has which needs settings; `load_settings` takes their values."""
    for option in (
        click.option(
            "--set", "pairs", multiple=True, metavar="NAME=VALUE", help="Any setting but a secret; repeatable."
        ),
        click.option("--data-dir", metavar="FOLDER", help="The server's own folder."),
        click.option(
            "--config", "file", type=click.Path(path_type=Path), help="TOML file; FLEET_CONFIG names one too."
        ),
    ):
        function = option(function)
    return function


def load_settings(file: Path | None, data_dir: str | None, pairs: tuple[str, ...]) -> LoadedSettings:
    """The settings that the options of `settings_options` ask for.

    Raises:
        click.UsageError: a flag is none of a setting's, or would hold a secret.
        ConfigError: see `config.load`.
    """
    from pydantic import SecretStr

    from fleet_server.config import Settings, load

    flags = {"data_dir": data_dir} if data_dir else {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise click.UsageError(f"--set takes NAME=VALUE, not {name!r}: `fleet-server config` lists the names")
        field = Settings.model_fields.get(name)
        if field is not None and field.annotation is SecretStr:
            raise click.UsageError(
                f"{name} may hold a secret, and every user of this machine can read flags: set FLEET_{name.upper()}"
            )
        flags[name] = value
    return load(file, flags=flags)


def repeated_options(file: Path | None, data_dir: str | None, pairs: tuple[str, ...]) -> Iterator[str]:
    """The options of `settings_options` that a call was given, for the next one on the same installation."""
    if file is not None:
        yield from ("--config", str(file))
    if data_dir:
        yield from ("--data-dir", data_dir)
    for pair in pairs:
        yield from ("--set", pair)


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


class NotShown(Ending):
    """It was done, and what it gave did not arrive where it should."""


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
    from fleet_server.replicas.fence import NameTakenError
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
        (NameTakenError, Refused),
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
