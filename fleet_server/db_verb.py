"""`fleet-server db`: the database's schema, and that it was restored."""

from __future__ import annotations

from pathlib import Path

import click

from fleet.redaction import printable
from fleet_server.cli.grammar import Listing
from fleet_server.verbs import Refused, Verb, load_settings, settings_options

# Everything heavy is imported by the verb that needs it: help is there at once.
_SHOWN_DIFFERENCES = 3


@click.group(cls=Listing)
def db() -> None:
    """The database's schema."""


@db.command(cls=Verb, example="fleet-server db upgrade")
@settings_options
def upgrade(file: Path | None, data_dir: str | None, pairs: tuple[str, ...]) -> None:
    """Bring the schema to this server's revision, before the first server of this version starts. On PostgreSQL older
    servers go on serving meanwhile and afterwards; SQLite's server has to be stopped first."""
    from fleet_server import bootstrap
    from fleet_server.database.migrate import RUNNABLE, SchemaState

    settings = load_settings(file, data_dir, pairs).settings
    report = bootstrap.upgrade_schema(settings)
    if report.state in RUNNABLE:
        done = f"index {', '.join(report.dropped)} dropped, no server needs it" if report.dropped else "nothing to do"
        click.echo(f"schema revision {report.found}: {done}")
    else:
        click.echo(f"schema revision {report.wanted}, before: {report.found or 'empty'}")
    if report.state is not SchemaState.COMPATIBLE:
        _tell_what_is_left(settings.resolved_database_url())


@db.command(cls=Verb, example="fleet-server db check")
@settings_options
def check(file: Path | None, data_dir: str | None, pairs: tuple[str, ...]) -> None:
    """Compare the schema with this server: its revision, and every table; exit code 3 when it cannot run on it."""
    from fleet_server.database import migrate
    from fleet_server.database.migrate import RUNNABLE, SchemaState

    url = load_settings(file, data_dir, pairs).settings.resolved_database_url()
    report = migrate.check(url)
    steps = {
        SchemaState.EMPTY: "run `fleet-server init`",
        SchemaState.OLDER: "run `fleet-server db upgrade`",
        SchemaState.NEWER: "install the newer fleet-server",
    }
    if report.state not in RUNNABLE:
        found = report.found or "none"
        raise Refused(f"the schema is {report.state} (revision {found}, needed {report.wanted}): {steps[report.state]}")
    if found_otherwise := migrate.differences(url, report.state):
        first, left = "; ".join(found_otherwise[:_SHOWN_DIFFERENCES]), len(found_otherwise) - _SHOWN_DIFFERENCES
        raise Refused(
            f"the schema says revision {report.found} but is not that: {first}"
            f"{f'; and {left} more' if left > 0 else ''}\n"
            "restore the database from a backup, or undo what was changed in it by hand"
        )
    if report.state is SchemaState.CURRENT:
        click.echo(f"schema revision {report.wanted}: current, and every table as it should be")
        _tell_what_is_left(url)
    else:
        click.echo(
            f"schema revision {report.found}: compatible with this server's {report.wanted}, and nothing is missing"
        )


def _tell_what_is_left(url: str) -> None:
    from fleet_server.database import migrate

    for index, replicas in migrate.left_for_older(url).items():
        users = f" for {', '.join(map(printable, replicas))}" if replicas else ""
        click.echo(
            f"index {index}, which only servers of an older release need, is still there{users}: once all are of this"
            " release, run `fleet-server db upgrade` again"
        )


@db.command(cls=Verb, example="fleet-server db restored --reason 'disk of the primary failed'")
@click.option("--reason", required=True, help="Reason for the audit.")
@settings_options
def restored(reason: str, file: Path | None, data_dir: str | None, pairs: tuple[str, ...]) -> None:
    """Say that the database was restored from a backup, or that a standby took over which lacked commits: nodes, which
    are ahead of it, are not taken for clones, and the audit goes on from what is there of it.

    Run it once: after a restore before servers start, after a standby took over while they run. Nodes that a server
    set aside meanwhile need `fleetctl nodes adopt`.
    """
    import asyncio

    from fleet.clock import SystemClock
    from fleet_server import bootstrap
    from fleet_server.restored import note_restored

    settings = load_settings(file, data_dir, pairs).settings
    bootstrap.require_schema(settings)
    secrets = bootstrap.load_secrets(settings)
    noted = asyncio.run(
        note_restored(
            settings.resolved_database_url(), secrets, SystemClock(), reason, cluster_name=settings.cluster_name
        )
    )
    click.echo(f"{noted.nodes} nodes may come as they are, once")
    for name in map(printable, noted.left):
        click.echo(
            f"node {name} may not, for the record of its ratchet was changed outside the server: it will be set aside"
        )
        click.echo(f"  `fleetctl nodes adopt {name}` lets it in then")
    for writer, number in noted.audit.chains.items():
        click.echo(f"audit chain {writer} was not as a server wrote it: taken as it is, up to row {number}")
    for writer, (first, last) in noted.audit.unvouched.items():
        click.echo(f"nobody vouches for rows {first} to {last} of {writer}: read them before you believe them")
    if noted.spent_written_again:
        click.echo(
            "the record of what was revoked did not stand: look through `fleetctl operators list`, and revoke again"
        )
    if noted.audit.checkpoint is not None:
        click.echo(f"the newest audit checkpoint was not known: taken to be {noted.audit.checkpoint}")
