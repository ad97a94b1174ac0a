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
def postgres_shared(postgres: "PostgresServer") -> str:
    """URL of a PostgreSQL database with the schema, which tests of one worker share one after the other."""
    url = postgres.url(postgres.create_database())
    _create_schema(url)
    return url


@pytest.fixture(params=DIALECTS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database with the schema and no rows: once SQLite, once PostgreSQL."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'fleet.db'}"
        _create_schema(url)
        yield url
    else:
        url = request.getfixturevalue("postgres_shared")
        yield url
        _empty(url)


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


def _empty(url: str) -> None:
    """Emptying takes a tenth of the time of a copy. Whoever a failed test left connected would hold it up."""
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(others + " AND pid <> pg_backend_pid()")
        names = ", ".join(table.name for table in metadata.sorted_tables)
        connection.exec_driver_sql(f"TRUNCATE {names} RESTART IDENTITY")
    engine.dispose()
