"""Store and service tests run on both databases: ask for `database`, and the test runs twice."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fleet_server.database.engine import Database
from tests.fakes.databases import SharedDatabase, sqlite_database

if TYPE_CHECKING:
    from tests.fakes.postgres import PostgresServer

DIALECTS = ("sqlite", "postgresql")


@pytest.fixture(scope="session")
def postgres_shared(postgres: "PostgresServer") -> Iterator[SharedDatabase]:
    """A PostgreSQL database with the schema, which tests of one worker share one after the other."""
    shared = SharedDatabase(postgres)
    yield shared
    shared.close()


@pytest.fixture(params=DIALECTS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database with the schema and no rows: once SQLite, once PostgreSQL."""
    if request.param == "sqlite":
        yield sqlite_database(tmp_path / "fleet.db")
    else:
        shared: SharedDatabase = request.getfixturevalue("postgres_shared")
        yield shared.url
        shared.empty()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """`database_url`, opened; its writer is started. A hook for `writer.before_commit` may still be added before the
    first write."""
    opened = Database(database_url, readers=2)
    opened.start()
    yield opened
    await opened.close()
