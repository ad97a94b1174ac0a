"""Statements on the driver's own cursor mean and fail as those that go through SQLAlchemy."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError

from fleet.errors import Reason, Refusal
from fleet_server.database.engine import Database
from fleet_server.database.statements import execute, execute_many, fetch
from fleet_server.database.writer import Transaction
from tests.fakes.databases import SharedDatabase

INSERT = "INSERT INTO audit_heads (writer, number, hash, mac) VALUES (?, ?, ?, '')"
ROWS = [("a", 1, bytes(32)), ("b", 2, bytes(32))]
SECRET = "an operator's argument"


def heads(conn: Connection) -> list[tuple[object, ...]]:
    return fetch(conn, "SELECT writer, number, hash FROM audit_heads ORDER BY writer")


async def test_rows_are_written_counted_and_read(database: Database) -> None:
    def work(tx: Transaction) -> tuple[int, int]:
        many = execute_many(tx.conn, INSERT, ROWS)
        return many, execute(tx.conn, "UPDATE audit_heads SET number = ? WHERE number > ?", (9, 1))

    assert await database.write(work) == (2, 1)
    assert await database.read(heads) == [ROWS[0], ("b", 9, bytes(32))]


async def test_a_taken_key_is_an_integrity_error_and_nothing_of_its_job_stays(database: Database) -> None:
    def work(tx: Transaction) -> None:
        execute(tx.conn, INSERT, ROWS[0])
        execute_many(tx.conn, INSERT, ROWS)

    with pytest.raises(IntegrityError):
        await database.write(work)
    assert await database.read(heads) == []


async def test_an_error_tells_no_parameter_of_its_statement(database: Database) -> None:
    def query(conn: Connection) -> DBAPIError:
        with pytest.raises(DBAPIError) as caught:
            fetch(conn, "SELECT * FROM no_such_table WHERE x = ?", (SECRET,))
        return caught.value

    error = await database.read(query)
    assert SECRET not in f"{error} {error!r} {error.params}"
    assert not error.connection_invalidated


class TestABackendThatIsEnded:
    """Fault: the database's administrator ends a connection in the middle of a statement."""

    @pytest.fixture
    def database_url(self, postgres_shared: SharedDatabase) -> str:
        return postgres_shared.url

    @staticmethod
    def end_own_backend(conn: Connection) -> None:
        fetch(conn, "SELECT pg_terminate_backend(pg_backend_pid())")

    async def test_while_writing_the_caller_is_told_and_the_next_write_passes(self, database: Database) -> None:
        with pytest.raises(Refusal) as caught:
            await database.write(lambda tx: self.end_own_backend(tx.conn))
        assert caught.value.reason is Reason.UNAVAILABLE
        assert await database.write(lambda tx: fetch(tx.conn, "SELECT 1")) == [(1,)]

    async def test_while_reading_the_caller_is_told_and_the_next_read_passes(self, database: Database) -> None:
        with pytest.raises(Refusal) as caught:
            await database.read(self.end_own_backend)
        assert caught.value.reason is Reason.UNAVAILABLE
        assert await database.read(lambda conn: fetch(conn, "SELECT 1")) == [(1,)]
