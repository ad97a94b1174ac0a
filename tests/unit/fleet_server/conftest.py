"""Store and service tests run on both databases: ask for `database`, and the test runs twice."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine

from fleet_server.database.engine import Database
from fleet_server.database.schema import metadata

if TYPE_CHECKING:
    from tests.fakes.postgres import PostgresServer

DIALECTS = ("sqlite", "postgresql")


@pytest.fixture(scope="session")
def postgres_template(postgres: "PostgresServer") -> str:
    """Name of a PostgreSQL database that has the schema and no rows, to copy from."""
    name = postgres.create_database()
    _create_schema(postgres.url(name))
    return name


@pytest.fixture(params=DIALECTS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database of this test's own, with the schema and no rows: once SQLite, once PostgreSQL."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'fleet.db'}"
        _create_schema(url)
        yield url
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    name = server.create_database(request.getfixturevalue("postgres_template"))
    yield server.url(name)
    server.drop_database(name)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """`database_url`, opened; its writer is started. A hook for `writer.before_commit` may still be added before the
    first write."""
    opened = Database(database_url, readers=2)
    opened.start()
    yield opened
    await opened.close()


def _create_schema(url: str) -> None:
    engine = create_engine(url)
    metadata.create_all(engine)
    engine.dispose()
