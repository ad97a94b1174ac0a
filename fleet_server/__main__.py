"""`fleet-server`: reads the settings, does what the verb says, exits with a code.

Exit codes: 0 done, 1 the server failed while it ran, 2 wrong usage, settings or files, 3 refused, 4 the database does
not answer.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from fleet.prose import write_example
from fleet_server.cli.grammar import Listing

# Everything heavy is imported by the verb that needs it: help is there at once.
if TYPE_CHECKING:
    from fleet_server.config import LoadedSettings, Settings

_SHOWN_DIFFERENCES = 3

Function = TypeVar("Function", bound=Callable[..., Any])

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


def _settings_options(function: Function) -> Function:
    """The options that every verb has which needs settings; `_load` takes their values."""
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


def _load(file: Path | None, data_dir: str | None, pairs: tuple[str, ...]) -> LoadedSettings:
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


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The cloud side of the fleet gateway: nodes connect to it, operators steer them through it."""
    # The C core's own lines would break up the log's JSON. It reads this when grpc is imported: after this line.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


@main.command(
    cls=Verb, example="fleet-server init --data-dir /var/lib/fleet --owner ada --owner-token-file owner.token"
)
@click.option("--owner", default="owner", show_default=True, metavar="NAME", help="Name of the first owner.")
@click.option(
    "--owner-token-file", type=click.Path(path_type=Path), metavar="FILE", help="Write the token there, 0600."
)
@_settings_options
def init(
    owner: str, owner_token_file: Path | None, file: Path | None, data_dir: str | None, pairs: tuple[str, ...]
) -> None:
    """Make a new installation: keys, TLS, database, cluster, and the first owner, whose token is shown once.

    Running it again makes what is missing and changes nothing else. With another --owner it makes a further owner, for
    when every token is lost.
    """
    import asyncio

    from fleet.clock import SystemClock
    from fleet.identity import write_private
    from fleet_server import bootstrap
    from fleet_server.observability import logging as server_logging

    settings = _load(file, data_dir, pairs).settings
    if owner_token_file is not None:
        _check_token_file(owner_token_file)
    server_logging.configure("warning")
    made = asyncio.run(bootstrap.init(settings, owner=owner, clock=SystemClock()))
    if made.made_key_file is not None:
        click.echo(f"made a secret encryption key, for development: {made.made_key_file}", err=True)
    click.echo(f"cluster      {made.cluster_name} ({made.cluster_id})")
    click.echo(f"authority    {made.authority_key.hex()}")
    click.echo(f"  SHA-256    {hashlib.sha256(made.authority_key).digest().hex(':').upper()}")
    click.echo(f"TLS CA       {made.tls_ca_file}")
    click.echo(f"  SHA-256    {made.tls_ca_sha256.hex(':').upper()}")
    if settings.is_strict:
        click.echo(f"installation {made.installation_id}, to be activated: the first owner comes with the manifest")
    elif made.owner_token is None:
        click.echo(f"owner        {made.owner} exists already; the token was shown when it was made")
    elif owner_token_file is not None:
        write_private(owner_token_file, made.owner_token.reveal().encode() + b"\n")
        click.echo(f"owner        {made.owner}, token in {owner_token_file}")
    else:
        click.echo(f"owner        {made.owner}, token (shown this once):")
        click.echo(made.owner_token.reveal())
    start = shlex.join(["fleet-server", "run", *_repeated(file, data_dir, pairs)])
    token = ["--token-file", str(owner_token_file)] if made.owner_token is not None and owner_token_file else []
    if settings.is_strict:
        click.echo(f"next, here:                `{start}`\nthen, as docs/operations/activate.md says:", err=True)
        sign = shlex.join(["fleetctl", "root", "sign-activation", "--installation", made.installation_id])
        click.echo(f"where the root key is:     `{sign} ...`", err=True)
        return
    login = shlex.join(["fleetctl", "login", settings.admin_listen, "--ca-file", str(made.tls_ca_file), *token])
    click.echo(f"next, here:                `{start}`\nthen, from another shell:  `{login}`", err=True)


def _repeated(file: Path | None, data_dir: str | None, pairs: tuple[str, ...]) -> Iterator[str]:
    """The flags of this call, for the next one on the same installation."""
    if file is not None:
        yield from ("--config", str(file))
    if data_dir:
        yield from ("--data-dir", data_dir)
    for pair in pairs:
        yield from ("--set", pair)


def _check_token_file(path: Path) -> None:
    """Before the token exists: afterwards it would be lost."""
    if path.exists():
        raise BadSetup(f"{path} exists already: name a file that does not")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise BadSetup(f"{path.absolute().parent} is no folder that can be written: name a file in one that can")


@main.command(cls=Verb, example="fleet-server run --config /etc/fleet/fleet-server.toml")
@click.option("--strict", is_flag=True, help="Serve only once it is activated; production does anyway.")
@_settings_options
def run(strict: bool, file: Path | None, data_dir: str | None, pairs: tuple[str, ...]) -> None:
    """Serve nodes and operators until SIGTERM or SIGINT; a second signal shortens the drain.

    45 s after the drain's deadline the process is gone, whatever hangs; something did if its exit code is 1.
    """
    from fleet.clock import SystemClock
    from fleet_server import bootstrap
    from fleet_server.observability import logging as server_logging

    settings = _load(file, data_dir, (*pairs, "strict=true") if strict else pairs).settings
    server_logging.configure(settings.log_level, log_format=settings.log_format)
    bootstrap.require_schema(settings)
    with bootstrap.sole_server(settings):
        secrets = bootstrap.load_secrets(settings)
        certificates = bootstrap.open_tls(settings, SystemClock())
        from fleet.process_end import end_without_teardown
        from fleet_server.daemon import serve
        from fleet_server.listeners import ListenError

        try:
            code = serve(settings, secrets, certificates)
        except ListenError as error:
            raise BadSetup(str(error)) from error
    end_without_teardown(code)
    raise SystemExit(code)


@main.command(cls=Verb, example="fleet-server config --set session_ttl_s=600\nfleet-server config --output json")
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--reference", is_flag=True, help="Print the page that describes every setting instead.")
@_settings_options
def config(output: str, reference: bool, file: Path | None, data_dir: str | None, pairs: tuple[str, ...]) -> None:
    """Show the settings in effect and where each comes from; secrets are masked.

    `derived`: nothing was given, and this is what the server works with.
    """
    if reference:
        from fleet_server.config.reference import render

        click.echo(render(), nl=False)
        return
    loaded = _load(file, data_dir, pairs)
    shown = loaded.shown(_effective(loaded.settings))
    if output == "json":
        click.echo(json.dumps({name: {"value": value, "source": source} for name, value, source in shown}, indent=2))
        return
    widths = [max(len(row[column]) for row in shown) for column in range(2)]
    for name, value, source in shown:
        click.echo(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {source}")


def _effective(settings: Settings) -> dict[str, str]:
    """What the server makes of settings that may be left empty."""
    from fleet_server.database.dialects import DatabaseUrlError, parse_url, show_url
    from fleet_server.replicas.identity import known_replica_id
    from fleet_server.trust.secrets import KEY_FILE_NAME

    effective = {
        "replica_id": settings.replica_id or known_replica_id(settings.data_dir),
        "gateway_endpoints": ", ".join(settings.advertised_endpoints()),
        "tls_hosts": ", ".join(settings.certificate_hosts()),
    }
    if not settings.database_url:
        effective["database_url"] = settings.resolved_database_url()
    else:
        with suppress(DatabaseUrlError):  # then it stays masked
            effective["database_url"] = show_url(parse_url(settings.resolved_database_url()))
    if not settings.secret_encryption_key and settings.secret_encryption_key_file is None:
        effective["secret_encryption_key_file"] = str(settings.data_dir.absolute() / KEY_FILE_NAME)
    return effective


@main.group()
def db() -> None:
    """The database's schema."""


@db.command(cls=Verb, example="fleet-server db upgrade")
@_settings_options
def upgrade(file: Path | None, data_dir: str | None, pairs: tuple[str, ...]) -> None:
    """Bring the schema to this server's revision. Servers of the older revision have to be stopped first."""
    from fleet_server import bootstrap
    from fleet_server.database.migrate import SchemaState

    report = bootstrap.upgrade_schema(_load(file, data_dir, pairs).settings)
    if report.state is SchemaState.CURRENT:
        click.echo(f"schema revision {report.wanted}: nothing to do")
    else:
        click.echo(f"schema revision {report.wanted}, before: {report.found or 'empty'}")


@db.command(cls=Verb, example="fleet-server db check")
@_settings_options
def check(file: Path | None, data_dir: str | None, pairs: tuple[str, ...]) -> None:
    """Compare the schema with this server: its revision, and every table; exit code 3 when they differ."""
    from fleet_server.database import migrate
    from fleet_server.database.migrate import SchemaState

    url = _load(file, data_dir, pairs).settings.resolved_database_url()
    report = migrate.check(url)
    steps = {
        SchemaState.EMPTY: "run `fleet-server init`",
        SchemaState.OLDER: "run `fleet-server db upgrade`",
        SchemaState.NEWER: "install the newer fleet-server",
    }
    if report.state is not SchemaState.CURRENT:
        found = report.found or "none"
        raise Refused(f"the schema is {report.state} (revision {found}, needed {report.wanted}): {steps[report.state]}")
    if found_otherwise := migrate.differences(url):
        first, left = "; ".join(found_otherwise[:_SHOWN_DIFFERENCES]), len(found_otherwise) - _SHOWN_DIFFERENCES
        raise Refused(
            f"the schema says revision {report.wanted} but is not that: {first}"
            f"{f'; and {left} more' if left > 0 else ''}\n"
            "restore the database from a backup, or undo what was changed in it by hand"
        )
    click.echo(f"schema revision {report.wanted}: current, and every table as it should be")


@main.command(cls=Verb, example="fleet-server version")
def version() -> None:
    """Print the version."""
    from fleet.version import software_version

    click.echo(software_version())


if __name__ == "__main__":
    main(prog_name="fleet-server")
