"""Schema revisions: where a database stands, and how it is brought up to date.

A server runs on exactly the revision that it was built with. On an older one queries would fail; on a newer one an
older server would write rows that the newer one no longer expects.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from fleet_server.database import comparison, dialects

_MIGRATIONS = Path(__file__).with_name("migrations")


class DatabaseUnreachableError(Exception):
    """The database does not answer. The message names it without its credentials."""


class SchemaError(Exception):
    """The schema cannot be brought up to date. The message says what to do."""


class SchemaState(StrEnum):
    """Where a database stands against this server."""

    CURRENT = "current"
    EMPTY = "empty"
    OLDER = "older"
    NEWER = "newer"


@dataclass(frozen=True, slots=True)
class SchemaReport:
    """State and revisions; `found` is empty for an empty database."""

    state: SchemaState
    found: str
    wanted: str


def check(url: str) -> SchemaReport:
    """Compare a database with this server. Changes nothing, and makes no SQLite file.

    Raises:
        DatabaseUrlError: the URL is of no use.
        DatabaseUnreachableError: it does not answer.
    """
    parsed = dialects.parse_url(url)
    if dialects.dialect_of(parsed) == "sqlite" and not Path(str(parsed.database)).exists():
        return _report(_scripts(), None)
    with _connection(url) as connection:
        return _report(_scripts(), MigrationContext.configure(connection).get_current_revision())


def differences(url: str) -> list[str]:
    """Compare the tables of a database that has this server's revision with this server; see `comparison`.

    Raises:
        DatabaseUrlError: the URL is of no use.
        DatabaseUnreachableError: it does not answer.
    """
    with _connection(url) as connection:
        return comparison.differences(connection)


def upgrade(url: str) -> SchemaReport:
    """Bring a database to this server's revision, in one transaction, one server at a time; what it was before.

    Raises:
        DatabaseUrlError: the URL is of no use.
        DatabaseUnreachableError: it does not answer.
        SchemaError: it is newer than this server.
    """
    with _connection(url) as connection:
        dialects.lock_schema(connection)
        before = _report(_scripts(), MigrationContext.configure(connection).get_current_revision())
        if before.state is SchemaState.NEWER:
            raise SchemaError(
                f"the database has schema revision {before.found}; this server knows none above {before.wanted}:"
                " install the newer fleet-server"
            )
        if before.state is not SchemaState.CURRENT:
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
        return before


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
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _report(scripts: ScriptDirectory, found: str | None) -> SchemaReport:
    wanted = scripts.get_current_head() or ""
    if found is None:
        state = SchemaState.EMPTY
    elif found == wanted:
        state = SchemaState.CURRENT
    else:
        known = {script.revision for script in scripts.walk_revisions()}
        state = SchemaState.OLDER if found in known else SchemaState.NEWER
    return SchemaReport(state, found or "", wanted)


@contextmanager
def _connection(url: str) -> Iterator[Connection]:
    parsed = dialects.parse_url(url)
    engine = dialects.make_write_engine(parsed)
    try:
        with engine.begin() as connection:
            yield connection
    except DBAPIError as error:
        cause = next(iter(str(error.orig).strip().splitlines()), type(error.orig).__name__)
        is_file = dialects.dialect_of(parsed) == "sqlite"
        look = "its folder is there and can be written" if is_file else "it runs"
        raise DatabaseUnreachableError(
            f"the database {dialects.show_url(parsed)} cannot be used ({cause}): check that {look}, and database_url"
        ) from None
    finally:
        engine.dispose()
