"""`fleet-server`: reads the settings, does what the verb says, exits with a code.

Exit codes: 0 done, 1 the server failed while it ran, 2 wrong usage, settings or files, 3 refused, 4 the database does
not answer.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fleet.heap import starting
from fleet_server.db_verb import db
from fleet_server.export_verb import export
from fleet_server.run_verb import run
from fleet_server.verbs import (
    BadSetup,
    NotShown,
    Program,
    Refused,
    Verb,
    load_settings,
    repeated_options,
    settings_options,
)

# Everything heavy is imported by the verb that needs it: help is there at once.
if TYPE_CHECKING:
    from fleet_server.bootstrap import Installation
    from fleet_server.config import Settings

_SHOWN_REFUSED = 3


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
@settings_options
@starting()
def init(
    owner: str, owner_token_file: Path | None, file: Path | None, data_dir: str | None, pairs: tuple[str, ...]
) -> None:
    """Make a new installation: keys, TLS, database, cluster, and the first owner, whose token is shown once.

    Running it again makes what is missing and changes nothing else. With another --owner it makes a further owner, for
    when every token is lost.
    """
    import asyncio

    from fleet.clock import SystemClock
    from fleet_server import bootstrap
    from fleet_server.observability import logging as server_logging

    settings = load_settings(file, data_dir, pairs).settings
    if owner_token_file is not None:
        _check_token_file(owner_token_file)
    server_logging.configure("warning")
    made = asyncio.run(bootstrap.init(settings, owner=owner, clock=SystemClock()))
    # Its file before anything is said: who reads what is said may be gone before the end of it.
    unwritten = _write_token(made, owner_token_file)
    try:
        _tell(made, None if unwritten else owner_token_file, strict=settings.is_strict)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in its buffer
        shown = made.owner_token is not None and (owner_token_file is None or unwritten)
        again = shlex.join(["fleet-server", "init", *repeated_options(file, data_dir, pairs)])
        lost = f" The owner's token may be lost with it: `{again} --owner NAME` makes a further owner" if shown else ""
        raise NotShown(f"made, but standard output took no more: {error.strerror}.{lost}") from error
    if unwritten:
        raise NotShown(f"{unwritten}: the token was shown instead")
    start = shlex.join(["fleet-server", "run", *repeated_options(file, data_dir, pairs)])
    token = ["--token-file", str(owner_token_file)] if made.owner_token is not None and owner_token_file else []
    if settings.is_strict:
        click.echo(f"next, here:                `{start}`\nthen, as docs/operations/activate.md says:", err=True)
        sign = shlex.join(["fleetctl", "root", "sign-activation", "--installation", made.installation_id])
        click.echo(f"where the root key is:     `{sign} ...`", err=True)
        return
    login = shlex.join(["fleetctl", "login", settings.admin_listen, "--ca-file", str(made.tls_ca_file), *token])
    click.echo(f"next, here:                `{start}`\nthen, from another shell:  `{login}`", err=True)


def _write_token(made: Installation, file: Path | None) -> str:
    """Why the owner's token could not be written where it belongs; empty when it was, or need not be."""
    from fleet.identity import write_private

    if file is None or made.owner_token is None:
        return ""
    try:
        write_private(file, made.owner_token.reveal().encode() + b"\n")
    except OSError as error:
        return f"cannot write {file}: {error.strerror}"
    return ""


def _tell(made: Installation, token_file: Path | None, *, strict: bool) -> None:
    if made.made_key_file is not None:
        click.echo(f"made a secret encryption key, for development: {made.made_key_file}", err=True)
    click.echo(f"cluster      {made.cluster_name} ({made.cluster_id})")
    click.echo(f"authority    {made.authority_key.hex()}")
    click.echo(f"  SHA-256    {hashlib.sha256(made.authority_key).digest().hex(':').upper()}")
    click.echo(f"TLS CA       {made.tls_ca_file}")
    click.echo(f"  SHA-256    {made.tls_ca_sha256.hex(':').upper()}")
    if strict:
        click.echo(f"installation {made.installation_id}, to be activated: the first owner comes with the manifest")
    elif made.owner_token is None:
        click.echo(f"owner        {made.owner} exists already; the token was shown when it was made")
        click.echo("if it is lost: `--owner NAME` makes a further owner, who can revoke this one", err=True)
    elif token_file is not None:
        click.echo(f"owner        {made.owner}, token in {token_file}")
    else:
        click.echo(f"owner        {made.owner}, token (shown this once):")
        click.echo(made.owner_token.reveal())


def _check_token_file(path: Path) -> None:
    """Before the token exists: afterwards it would be lost."""
    if path.exists():
        raise BadSetup(f"{path} exists already: name a file that does not")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise BadSetup(f"{path.absolute().parent} is no folder that can be written: name a file in one that can")


main.add_command(run)
main.add_command(export)


@main.command(cls=Verb, example="fleet-server config --set session_ttl_s=600\nfleet-server config --output json")
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--reference", is_flag=True, help="Print the page that describes every setting instead.")
@settings_options
def config(output: str, reference: bool, file: Path | None, data_dir: str | None, pairs: tuple[str, ...]) -> None:
    """Show the settings in effect and where each comes from; secrets are masked.

    `derived`: nothing was given, and this is what the server works with.
    """
    if reference:
        from fleet_server.config.reference import render

        click.echo(render(), nl=False)
        return
    loaded = load_settings(file, data_dir, pairs)
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


main.add_command(db)


@main.group()
def secrets() -> None:
    """The secret encryption key, under which private keys rest and rows are marked."""


@secrets.command(cls=Verb, example="fleet-server secrets rekey --new-key-file /etc/fleet/new.key")
@click.option(
    "--new-key-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="0600 file with the new key. Without it the settings hold the new key, and the previous one.",
)
@settings_options
def rekey(new_key_file: Path | None, file: Path | None, data_dir: str | None, pairs: tuple[str, ...]) -> None:
    """Put everything under a new secret encryption key, while servers run that hold both.

    It may be stopped and run again at any time. docs/operations/rekey.md has every step.
    """
    import asyncio

    from fleet.clock import SystemClock
    from fleet_server import bootstrap, rekeying
    from fleet_server.observability import logging as server_logging
    from fleet_server.trust.secrets import read_key_file

    settings = load_settings(file, data_dir, pairs).settings
    server_logging.configure("warning")
    bootstrap.require_schema(settings)
    new, old = bootstrap.master_key(settings), bootstrap.previous_master_key(settings)
    if new_key_file is not None:
        new, old = read_key_file(new_key_file), new
    if old is None:
        raise BadSetup(
            "there is one secret encryption key only: name the new one with --new-key-file, or set"
            " secret_encryption_key_previous_file to the one before"
        )
    change = rekeying.Change(settings.resolved_database_url(), old=old, new=new, clock=SystemClock(), say=_say)
    outcome = asyncio.run(change.run())
    click.echo(f"{outcome.done} rows are under the new key now; nothing needs the old one any more")
    if outcome.refused:
        shown = "\n".join(outcome.refused[:_SHOWN_REFUSED])
        raise Refused(
            f"{len(outcome.refused)} rows verify under neither key and were left: they were changed around the"
            f" server, which refuses them as well\n{shown}"
        )


@secrets.command("status", cls=Verb, example="fleet-server secrets status")
@settings_options
def secrets_status(file: Path | None, data_dir: str | None, pairs: tuple[str, ...]) -> None:
    """Show which key writes, by its id, whether a change is going on, and what each replica holds."""
    import asyncio
    from datetime import UTC, datetime

    from fleet_server import bootstrap, rekeying

    settings = load_settings(file, data_dir, pairs).settings
    bootstrap.require_schema(settings)
    found = asyncio.run(rekeying.standing(settings.resolved_database_url()))
    held = bootstrap.load_secrets(settings).box.key_ids
    click.echo(f"writes under  {found.key_id}")
    click.echo(f"settings hold {', '.join(key_id.hex() for key_id in held)}")
    if found.change is None:
        click.echo("never changed")
    else:
        begun, ended = (datetime.fromtimestamp(each / 1000, UTC).isoformat(timespec="seconds") for each in found.change)
        click.echo(f"changed       {begun}, {f'done {ended}' if found.change[1] else 'going on, or stopped halfway'}")
    for replica_id, keys in found.replicas:
        click.echo(f"replica       {replica_id} holds {keys or 'nothing that is known'}")


def _say(message: str) -> None:
    click.echo(message, err=True)


@main.command(cls=Verb, example="fleet-server version")
def version() -> None:
    """Print the version."""
    from fleet.version import software_version

    click.echo(software_version())


if __name__ == "__main__":
    main(prog_name="fleet-server")
