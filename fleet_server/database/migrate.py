"""Schema revisions: where a database stands, and how it is brought up to date.

A server runs on the revision that it was built with, and on a newer one that says that it may: migrations only add,
and each names the oldest servers that may run beside it (`migrations/versions/v0002_many_replicas.py` has the rules).
So the schema is upgraded first, while servers of the revision before go on serving, and they are replaced after that.
On an older one queries would fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from sqlalchemy import URL, Connection, Engine, inspect, select
from sqlalchemy.exc import DBAPIError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from fleet_server.database import comparison, dialects, replica_schema, retired

MIGRATIONS = Path(__file__).with_name("migrations")
"""Folder of Alembic's."""


class DatabaseUnreachableError(Exception):
    """The database does not answer. The message names it without its credentials."""


class SchemaError(Exception):
    """The schema cannot be brought up to date. The message says what to do."""


class SchemaState(StrEnum):
    """Where a database stands against this server."""

    CURRENT = "current"
    COMPATIBLE = "compatible"
    """Newer, and this server may run on it."""
    EMPTY = "empty"
    OLDER = "older"
    NEWER = "newer"
    """This server may not run on it."""


RUNNABLE = frozenset({SchemaState.CURRENT, SchemaState.COMPATIBLE})
UPGRADE_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class SchemaReport:
    """State and revisions; `found` is empty for an empty database. `dropped` are indexes that `upgrade` took away, for
    no server needs them."""

    state: SchemaState
    found: str
    wanted: str
    dropped: tuple[str, ...] = ()


def check(url: str) -> SchemaReport:
    """Compare a database with this server. Changes nothing, and makes no SQLite file.

    Raises:
        DatabaseUrlError: the URL is of no use.
        DatabaseUnreachableError: it does not answer.
    """
    parsed = dialects.parse_url(url)
    if dialects.dialect_of(parsed) == "sqlite" and not Path(str(parsed.database)).exists():
        return _report(None)
    with _connection(url) as connection:
        return _report(connection)


def differences(url: str, state: SchemaState = SchemaState.CURRENT) -> list[str]:
    """Compare the tables of a database with this server's; see `comparison`.

    Args:
        url: of the database.
        state: what `check` found; in a compatible one, what is unknown here is no difference.

    Raises:
        DatabaseUrlError: the URL is of no use.
        DatabaseUnreachableError: it does not answer.
    """
    with _connection(url) as connection:
        return comparison.differences(connection, unknown_too=state is not SchemaState.COMPATIBLE)


def upgrade(url: str) -> SchemaReport:
    """Bring a database to this server's revision, one server at a time; what it was before. On PostgreSQL servers of
    the revision before go on meanwhile: a table that somebody holds is left alone and tried again.

    Raises:
        DatabaseUrlError: the URL is of no use.
        DatabaseUnreachableError: it does not answer.
        SchemaError: it is newer than this server can work with, or a table was held for `UPGRADE_PATIENCE_S`.
    """
    parsed = dialects.parse_url(url)
    with _engine(parsed) as engine, dialects.schema_change(engine) as connection:
        before = _report(connection)
        if before.state is SchemaState.NEWER:
            raise SchemaError(
                f"the database has schema revision {before.found}, and this server, of {before.wanted}, cannot work"
                " with that: install the newer fleet-server"
            )
        with _patience(connection) as attempts:
            if before.state not in RUNNABLE:
                _migrate(connection, parsed, attempts)
            if before.state is SchemaState.COMPATIBLE:
                return before
            return replace(before, dropped=attempts(_retire, connection))


def left_for_older(url: str) -> dict[str, list[str]]:
    """Indexes of a current database that only older servers need, each with the ids of those that it waits for; none
    where the next `upgrade` drops it.

    Args:
        url: of the database.

    Raises:
        DatabaseUrlError: the URL is of no use.
        DatabaseUnreachableError: it does not answer.
    """
    with _connection(url) as connection:
        return {name: retired.users(connection, name) for name in retired.still_there(connection)}


def _retire(connection: Connection) -> tuple[str, ...]:
    dropped = tuple(retired.drop(connection))
    if connection.dialect.name == "postgresql":
        connection.commit()
    return dropped


def _migrate(connection: Connection, url: URL, attempts: Retrying) -> None:
    if dialects.dialect_of(url) == "postgresql":
        connection.rollback()  # Alembic opens a transaction for each migration
    config = _config()
    config.attributes["connection"] = connection
    attempts(command.upgrade, config, "head")


@contextmanager
def _patience(connection: Connection) -> Iterator[Retrying]:
    """Tries what a held table is in the way of again, for a while."""
    attempts = Retrying(
        retry=retry_if_exception(dialects.is_contended),
        wait=wait_random(0.1, 1.0),
        stop=stop_after_delay(UPGRADE_PATIENCE_S),
        before_sleep=lambda _: connection.rollback(),
        reraise=True,
    )
    try:
        yield attempts
    except DBAPIError as error:
        if not dialects.is_contended(error):
            raise
        connection.rollback()
        raise SchemaError(
            "the schema was not changed: for a minute somebody held a table that has to be changed, oldest first:"
            f" {dialects.long_transactions(connection)}. End that, then run `fleet-server db upgrade` again"
        ) from None


def migrations() -> list[Script]:
    """All migrations of this server, the first one first."""
    return list(reversed(list(_scripts().walk_revisions())))


@contextmanager
def sole_init(url: str) -> Iterator[None]:
    """Wait until no other machine makes an installation in this database, and keep others waiting meanwhile. A SQLite
    file is in one machine's data folder, and locked with that.

    Raises:
        DatabaseUrlError: the URL is of no use.
        DatabaseUnreachableError: it does not answer.
    """
    with ExitStack() as held:
        if dialects.dialect_of(dialects.parse_url(url)) == "postgresql":
            dialects.lock_installation(held.enter_context(_connection(url)))
        yield


def _config() -> Config:
    config = Config()
    # Alembic reads settings with % interpolation.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _report(connection: Connection | None) -> SchemaReport:
    scripts = _scripts()
    wanted = scripts.get_current_head() or ""
    found = None if connection is None else MigrationContext.configure(connection).get_current_revision()
    if connection is None or found is None:
        return SchemaReport(SchemaState.EMPTY, "", wanted)
    if found == wanted:
        return SchemaReport(SchemaState.CURRENT, found, wanted)
    if found in {script.revision for script in scripts.walk_revisions()}:
        return SchemaReport(SchemaState.OLDER, found, wanted)
    may_run = _may_run(connection, found, wanted)
    return SchemaReport(SchemaState.COMPATIBLE if may_run else SchemaState.NEWER, found, wanted)


def _may_run(connection: Connection, found: str, wanted: str) -> bool:
    """Whether a revision that this server does not know, and each that came before it, says so."""
    table = replica_schema.schema_revisions
    if not inspect(connection).has_table(table.name):
        return False
    oldest = {row.revision: row.oldest_server for row in connection.execute(select(table))}
    return found in oldest and wanted >= max(oldest.values())


@contextmanager
def _connection(url: str) -> Iterator[Connection]:
    with _engine(dialects.parse_url(url)) as engine, engine.begin() as connection:
        yield connection


@contextmanager
def _engine(parsed: URL) -> Iterator[Engine]:
    engine = dialects.make_write_engine(parsed)
    try:
        yield engine
    except DBAPIError as error:
        cause = next(iter(str(error.orig).strip().splitlines()), type(error.orig).__name__)
        is_file = dialects.dialect_of(parsed) == "sqlite"
        look = "its folder is there and can be written" if is_file else "it runs"
        raise DatabaseUnreachableError(
            f"the database {dialects.show_url(parsed)} cannot be used ({cause}): check that {look}, and database_url"
        ) from None
    finally:
        engine.dispose()
