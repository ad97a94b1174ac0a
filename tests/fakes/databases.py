"""Databases with the schema and no rows, many times over: made once a process, and copied or emptied after that."""

import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from sqlalchemy import create_engine

from fleet_server.database.schema import metadata

if TYPE_CHECKING:
    from tests.fakes.postgres import PostgresServer

_SWEPT_BYTES = 1024 * 1024


def sqlite_database(path: Path) -> str:
    """URL of a new SQLite file at `path`."""
    _, template = _sqlite_template()
    shutil.copyfile(template, path)
    return f"sqlite:///{path}"


class SharedDatabase:
    """A PostgreSQL database that tests of one worker use one after the other."""

    def __init__(self, server: "PostgresServer") -> None:
        import psycopg

        name = server.create_database()
        self.url = server.url(name)
        _create_schema(self.url)
        self._connection = psycopg.connect(server.plain_url(name), autocommit=True)
        tables = [table.name for table in metadata.sorted_tables]
        sequences = self._connection.execute("SELECT sequencename FROM pg_sequences").fetchall()
        # Deleting few rows takes a hundredth of the time of truncating; what is deleted still takes room.
        self._delete = "; ".join(
            [f"DELETE FROM {table}" for table in reversed(tables)]
            + [f"SELECT setval('{sequence}', 1, false)" for (sequence,) in sequences]
        )
        self._truncate = f"TRUNCATE {', '.join(tables)} RESTART IDENTITY"

    def empty(self) -> None:
        """Remove every row. Whoever a failed test left connected would hold it up."""
        self._connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        largest = "SELECT max(pg_total_relation_size(relid)) FROM pg_stat_user_tables"
        (size,) = self._connection.execute(largest).fetchone() or (0,)
        self._connection.execute(self._delete if size < _SWEPT_BYTES else self._truncate)

    def close(self) -> None:
        """Let go of it."""
        self._connection.close()


@cache
def _sqlite_template() -> tuple[TemporaryDirectory[str], Path]:
    folder = TemporaryDirectory(prefix="fleet-schema-")
    path = Path(folder.name) / "fleet.db"
    _create_schema(f"sqlite:///{path}")
    return folder, path


def _create_schema(url: str) -> None:
    engine = create_engine(url)
    metadata.create_all(engine)
    engine.dispose()
