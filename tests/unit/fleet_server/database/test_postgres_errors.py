"""What PostgreSQL says when it cannot: tried again where that helps, refused with when to come again where not."""

import select
from collections.abc import AsyncIterator, Callable

import pytest
from sqlalchemy.exc import DBAPIError

from fleet.errors import Reason, Refusal
from fleet_server.database import jobs
from fleet_server.database.engine import Connection, Database
from fleet_server.database.writer import Transaction

IN_THE_WAY = {"40001": "serialization_failure", "40P01": "deadlock_detected", "55P03": "lock_not_available"}
AWAY = {
    "53100": "disk_full",
    "53200": "out_of_memory",
    "53300": "too_many_connections",
    "57014": "query_canceled",
    "57P01": "admin_shutdown",
    "57P03": "cannot_connect_now",
    "58030": "io_error",
    "25006": "read_only_sql_transaction",
    "XX000": "internal_error",
}


@pytest.fixture
async def postgres_database(postgres_url: str) -> AsyncIterator[Database]:
    opened = Database(postgres_url, readers=1)
    opened.start()
    await opened.write(lambda tx: tx.conn.exec_driver_sql("CREATE TABLE t (a integer)"))
    yield opened
    await opened.close()


def fail(conn: Connection, sqlstate: str) -> None:
    conn.exec_driver_sql(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{sqlstate}'; END $$")


class Failing:
    """A job that fails with `sqlstate` as often as `times` says."""

    def __init__(self, sqlstate: str, times: int) -> None:
        self._sqlstate = sqlstate
        self._left = times

    def write(self, tx: Transaction) -> str:
        tx.conn.exec_driver_sql("INSERT INTO t VALUES (1)")
        return self.read(tx.conn)

    def read(self, conn: Connection) -> str:
        if self._left:
            self._left -= 1
            fail(conn, self._sqlstate)
        return "done"


async def count(database: Database) -> int:
    return await database.read(lambda conn: int(conn.exec_driver_sql("SELECT count(*) FROM t").scalar_one()))


@pytest.mark.parametrize("sqlstate", IN_THE_WAY, ids=IN_THE_WAY.values())
async def test_what_another_transaction_was_in_the_way_of_runs_again(
    postgres_database: Database, sqlstate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await postgres_database.write(Failing(sqlstate, 3).write) == "done"
    assert await count(postgres_database) == 1
    assert await postgres_database.read(Failing(sqlstate, 1).read) == "done"
    monkeypatch.setattr(jobs, "PATIENCE_S", 0.1)
    with pytest.raises(Refusal) as refused:
        await postgres_database.write(Failing(sqlstate, 10_000).write)
    assert refused.value.reason is Reason.UNAVAILABLE
    assert await count(postgres_database) == 1


@pytest.mark.parametrize("sqlstate", AWAY, ids=AWAY.values())
async def test_a_database_that_cannot_is_refused_with_when_to_come_again(
    postgres_database: Database, sqlstate: str
) -> None:
    for work in (
        postgres_database.write(Failing(sqlstate, 9).write),
        postgres_database.read(Failing(sqlstate, 9).read),
    ):
        with pytest.raises(Refusal) as refused:
            await work
        assert refused.value.reason is Reason.UNAVAILABLE
        assert refused.value.retry_after_s
        assert "nothing was changed" in refused.value.detail
    assert await count(postgres_database) == 0
    assert await postgres_database.write(Failing(sqlstate, 0).write) == "done"


async def test_a_fault_of_ours_stays_one(postgres_database: Database) -> None:
    with pytest.raises(DBAPIError):
        await postgres_database.write(Failing("42703", 1).write)  # undefined_column


def sleeping(tx: Transaction) -> None:
    tx.conn.exec_driver_sql("SET LOCAL statement_timeout = 50")
    tx.conn.exec_driver_sql("SELECT pg_sleep(20)")


def dawdling(tx: Transaction) -> None:
    tx.conn.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 50")
    wire = tx.conn.connection.driver_connection
    assert wire is not None
    assert select.select([wire.pgconn.socket], [], [], 20)[0], "the server ends the connection"


@pytest.mark.parametrize("slow", [sleeping, dawdling])
async def test_a_transaction_that_takes_too_long_is_cut_off_and_the_next_one_goes_on(
    postgres_database: Database, slow: Callable[[Transaction], None]
) -> None:
    def work(tx: Transaction) -> None:
        tx.conn.exec_driver_sql("INSERT INTO t VALUES (1)")
        slow(tx)

    with pytest.raises(Refusal) as refused:
        await postgres_database.write(work)
    assert refused.value.reason is Reason.UNAVAILABLE
    assert await count(postgres_database) == 0
    assert await postgres_database.write(Failing("", 0).write) == "done"


async def test_a_default_of_the_database_does_not_change_how_transactions_are_kept_apart(postgres_url: str) -> None:
    first = Database(postgres_url, readers=1)
    first.start()
    name = postgres_url.rpartition("/")[2].partition("?")[0]
    await first.write(
        lambda tx: tx.conn.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    )
    await first.close()
    database = Database(postgres_url, readers=1)
    database.start()
    show = "SHOW transaction_isolation"
    assert await database.write(lambda tx: tx.conn.exec_driver_sql(show).scalar_one()) == "read committed"
    assert await database.read(lambda conn: conn.exec_driver_sql(show).scalar_one()) == "repeatable read"
    await database.close()
