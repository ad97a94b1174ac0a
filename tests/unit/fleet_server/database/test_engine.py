import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DBAPIError, IntegrityError

from fleet.errors import Reason, Refusal
from fleet_server.database import engine
from fleet_server.database.dialects import DatabaseUrlError, parse_url, show_url
from fleet_server.database.engine import Database, sql
from fleet_server.database.schema import audit_heads, metadata
from fleet_server.database.writer import Transaction
from tests.fakes.lane import Direction
from tests.fakes.postgres import PostgresServer
from tests.fakes.proxy import Side
from tests.fakes.proxy_thread import FaultProxyThread

HEAD = "INSERT INTO audit_heads (writer, number, hash, mac) VALUES (?, ?, ?, '')"


def insert(writer: str, number: int = 1) -> "Job":
    return Job(writer, number)


class Job:
    def __init__(self, writer: str, number: int) -> None:
        self._row = (writer, number, bytes(32))

    def __call__(self, tx: Transaction) -> str:
        tx.conn.exec_driver_sql(sql(tx.conn, HEAD), self._row)
        return self._row[0]


def heads(conn: Connection) -> list[str]:
    return [row[0] for row in conn.exec_driver_sql("SELECT writer FROM audit_heads ORDER BY writer")]


async def test_what_was_written_is_read(database: Database) -> None:
    assert await database.write(insert("a")) == "a"
    assert await database.read(heads) == ["a"]


async def test_many_callers_share_commits_and_each_gets_its_own_result(database: Database) -> None:
    names = [f"w{number:03}" for number in range(200)]
    assert await asyncio.gather(*(database.write(insert(name)) for name in names)) == names
    assert await database.read(heads) == names


async def test_a_writer_that_is_held_for_longer_than_any_stall_is_hung(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, released = threading.Event(), threading.Event()

    def held(tx: Transaction) -> None:
        begun.set()
        released.wait(10)

    assert not database.is_hung()
    writing = asyncio.ensure_future(database.write(held))
    assert await asyncio.to_thread(begun.wait, 10)
    assert not database.is_hung(), "a stalled database is given its time"
    monkeypatch.setattr(engine, "HUNG_AFTER_S", 0.0)
    assert database.is_hung()
    released.set()
    await writing
    assert not database.is_hung()


async def test_a_database_that_is_not_reached_for_long_hangs_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names that nobody resolves hold a connection up for longer than any limit: a restart would cut streams for it."""
    begun, released = threading.Event(), threading.Event()
    connect = database.writer._engine.connect

    def slowly() -> Connection:
        begun.set()
        released.wait(10)
        return connect()

    monkeypatch.setattr(database.writer._engine, "connect", slowly)
    monkeypatch.setattr(engine, "HUNG_AFTER_S", 0.0)
    writing = asyncio.ensure_future(database.write(insert("a")))
    assert await asyncio.to_thread(begun.wait, 10)
    assert not database.is_hung()
    released.set()
    assert await writing == "a"


async def test_a_job_that_fails_takes_no_neighbour_with_it(database: Database) -> None:
    def broken(tx: Transaction) -> None:
        insert("broken")(tx)
        raise LookupError("by design")

    jobs = [insert("a"), insert("b"), broken, insert("a"), insert("c")]
    results = await asyncio.gather(*(database.write(job) for job in jobs), return_exceptions=True)
    assert results[0] == "a"
    assert results[1] == "b"
    assert isinstance(results[2], LookupError)
    assert isinstance(results[3], IntegrityError)
    assert results[4] == "c"
    assert await database.read(heads) == ["a", "b", "c"]


async def test_effects_run_on_the_loop_after_the_commit_and_never_after_a_rollback(database: Database) -> None:
    ran: list[tuple[str, int]] = []

    def keep(tx: Transaction) -> None:
        insert("kept")(tx)
        tx.after_commit(lambda: ran.append(("kept", threading.get_ident())))

    def lose(tx: Transaction) -> None:
        tx.after_commit(lambda: ran.append(("lost", threading.get_ident())))
        raise LookupError

    results = await asyncio.gather(database.write(keep), database.write(lose), return_exceptions=True)
    await asyncio.sleep(0)
    assert isinstance(results[1], LookupError)
    assert ran == [("kept", threading.get_ident())]


async def test_an_effect_that_fails_hinders_no_other(database: Database) -> None:
    ran: list[str] = []

    def job(tx: Transaction) -> None:
        tx.after_commit(lambda: ran.append("x"[5]))
        tx.after_commit(lambda: ran.append("second"))

    await database.write(job)
    await asyncio.sleep(0)
    assert ran == ["second"]


async def test_what_somebody_far_away_waits_for_runs_first_and_the_rest_behind_the_tasks_that_it_wakes(
    database: Database,
) -> None:
    ran: list[str] = []

    def first() -> None:
        ran.append("first")
        asyncio.get_running_loop().call_soon(ran.append, "woken")

    def job(tx: Transaction) -> None:
        tx.after_commit(lambda: ran.append("rest"))
        tx.first_after_commit(first)

    await database.write(job)
    assert ran == ["first", "woken", "rest"]


async def test_what_a_commit_left_is_done_before_what_follows_from_the_next(database: Database) -> None:
    ran: list[str] = []

    def job(name: str) -> Callable[[Transaction], None]:
        def work(tx: Transaction) -> None:
            tx.first_after_commit(lambda: ran.append(f"{name} first"))
            tx.after_commit(lambda: ran.append(f"{name} rest"))

        return work

    begun, goes_on = threading.Event(), threading.Event()

    def hold(tx: Transaction) -> None:
        begun.set()
        goes_on.wait(10)
        job("a")(tx)

    one = asyncio.ensure_future(database.write(hold))
    await asyncio.to_thread(begun.wait, 10)
    other = asyncio.ensure_future(database.write(job("b")))
    await asyncio.sleep(0)
    both = asyncio.Event()
    asyncio.get_running_loop().call_soon(_keep_turn_until, database, goes_on, both)
    await asyncio.gather(one, other, both.wait())
    assert ran == ["a first", "a rest", "b first", "b rest"]


def _keep_turn_until(database: Database, goes_on: threading.Event, both: asyncio.Event) -> None:
    """Let both commits happen within one turn of the event loop."""
    asyncio.get_running_loop().call_soon(both.set)
    goes_on.set()
    for _ in range(2):  # the first may come along with the second commit, the other comes behind it
        begun = threading.Event()
        database.write_nowait(lambda _, begun=begun: begun.set())  # type: ignore[misc]
        assert begun.wait(10)


async def test_a_hook_runs_inside_the_transaction_and_can_undo_it(database_url: str) -> None:
    database = Database(database_url)

    def hook(tx: Transaction) -> None:
        if tx.audit:
            raise PermissionError("not sealed")
        insert("hook")(tx)

    def audited(tx: Transaction) -> None:
        insert("audited")(tx)
        tx.audit.append("row")

    database.writer.before_commit(hook)
    database.start()
    with pytest.raises(PermissionError):
        await database.write(audited)
    await database.write(insert("job"))
    assert await database.read(heads) == ["hook", "job"]
    await database.close()


async def test_readers_cannot_write(database: Database) -> None:
    with pytest.raises((DBAPIError, Refusal)):
        await database.read(lambda conn: conn.exec_driver_sql("DELETE FROM audit_heads"))


async def test_a_read_sees_one_snapshot(database: Database) -> None:
    loop = asyncio.get_running_loop()
    seen_once, written = asyncio.Event(), threading.Event()

    def twice(conn: Connection) -> tuple[list[str], list[str]]:
        before = heads(conn)
        loop.call_soon_threadsafe(seen_once.set)
        written.wait(10)
        return before, heads(conn)

    reading = asyncio.create_task(database.read(twice))
    await seen_once.wait()
    await database.write(insert("later"))
    written.set()
    assert await reading == ([], [])
    assert await database.read(heads) == ["later"]


async def test_a_server_that_became_a_standby_is_left_for_the_new_one(postgres_url: str) -> None:
    """After a failover the old connection still answers, and refuses every write."""
    with create_engine(postgres_url).begin() as connection:
        metadata.create_all(connection)
    database = Database(postgres_url, readers=1)
    database.start()
    standby = "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"
    await database.write(lambda tx: tx.conn.exec_driver_sql(standby) and None)
    assert await asyncio.gather(*(database.write(insert(name)) for name in "abc")) == ["a", "b", "c"]

    def on_a_standby(tx: Transaction) -> None:
        tx.conn.exec_driver_sql("SET TRANSACTION READ ONLY")
        insert("d")(tx)

    with pytest.raises(Refusal) as refused:
        await database.write(on_a_standby)
    assert refused.value.reason is Reason.UNAVAILABLE
    await database.close()


async def test_closing_commits_what_was_queued_and_refuses_what_comes_after(database_url: str) -> None:
    database = Database(database_url)
    database.start()
    queued = [asyncio.create_task(database.write(insert(f"w{number}"))) for number in range(20)]
    await asyncio.sleep(0)
    await database.close()
    assert await asyncio.gather(*queued) == [f"w{number}" for number in range(20)]
    for call in (database.write(insert("late")), database.read(heads)):
        with pytest.raises(Refusal) as refused:
            await call
        assert refused.value.reason is Reason.UNAVAILABLE
    again = Database(database_url)
    assert len(await again.read(heads)) == 20
    await again.close()


async def test_sqlite_files_are_private_and_durable(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    database = Database(f"sqlite:///{path}")
    database.start()

    def pragmas(tx: Transaction) -> list[object]:
        tx.conn.exec_driver_sql("CREATE TABLE made (id INTEGER)")
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [tx.conn.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]

    assert await database.write(pragmas) == ["wal", 2, 1]
    for file in tmp_path.glob("fleet.db*"):
        assert file.stat().st_mode & 0o077 == 0, file
    await database.close()


async def test_a_locked_or_missing_sqlite_folder_is_a_refusal(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'absent' / 'fleet.db'}")
    database.start()
    with pytest.raises(Refusal) as refused:
        await asyncio.gather(*(database.write(insert("a")) for _ in range(50)))
    assert refused.value.reason is Reason.UNAVAILABLE
    with pytest.raises(Refusal):
        await database.read(heads)
    await database.close()


@pytest.mark.parametrize(
    "url",
    ["", "nonsense", "sqlite://", "sqlite:///:memory:", "mysql://root:hunter2@host/x", "postgresql+asyncpg://u:hunter2@h/x",
     "://u:hunter2@h"],
)  # fmt: skip
def test_an_unusable_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(DatabaseUrlError) as refused:
        Database(url)
    assert str(refused.value).startswith("database_url: ")
    assert "hunter2" not in str(refused.value)


def test_no_form_of_a_url_that_people_see_holds_a_credential() -> None:
    url = parse_url("postgresql://fleet:hunter2@db.example/fleet?password=hunter2&sslmode=require")
    assert show_url(url) == "postgresql+psycopg://fleet:***@db.example/fleet"
    assert "hunter2" not in repr(Database("postgresql://fleet:hunter2@127.0.0.1:1/fleet?password=hunter2"))


class TestPostgresqlAway:
    """The database is cut off, and comes back."""

    @pytest.fixture
    def proxy(self, postgres: PostgresServer) -> Iterator[FaultProxyThread]:
        with FaultProxyThread(postgres.socket_path) as proxy:
            yield proxy

    @pytest.fixture
    async def remote(self, postgres: PostgresServer, proxy: FaultProxyThread) -> AsyncIterator[Database]:
        name = postgres.create_database()
        schema = create_engine(postgres.url(name))
        audit_heads.create(schema)
        schema.dispose()
        database = Database(postgres.url(name, address=("127.0.0.1", proxy.port)), readers=2)
        database.start()
        yield database
        await database.close()
        postgres.drop_database(name)

    async def test_a_connection_that_died_idle_costs_no_caller_anything(
        self, remote: Database, proxy: FaultProxyThread
    ) -> None:
        await remote.write(insert("before"))
        assert await remote.read(heads) == ["before"]
        proxy.cut()
        assert await remote.write(insert("after")) == "after"
        assert await remote.read(heads) == ["after", "before"]

    async def test_while_it_is_away_every_caller_is_told_at_once_and_afterwards_served(
        self, remote: Database, proxy: FaultProxyThread
    ) -> None:
        await remote.write(insert("before"))
        proxy.refuse()
        proxy.cut()
        calls = [remote.write(insert(f"w{number}")) for number in range(100)]
        for result in await asyncio.gather(*calls, remote.read(heads), return_exceptions=True):
            assert isinstance(result, Refusal)
            assert result.reason is Reason.UNAVAILABLE
            assert "nothing was changed" in result.detail
            assert result.retry_after_s
        proxy.heal()
        assert await remote.write(insert("after")) == "after"
        assert await remote.read(heads) == ["after", "before"]

    async def test_a_commit_whose_answer_is_lost_is_never_repeated(
        self, remote: Database, proxy: FaultProxyThread
    ) -> None:
        """Cut after COMMIT reached the database: to run the group again would record it twice."""
        runs: list[int] = []
        occupied, go_on = threading.Event(), threading.Event()

        def occupy(_tx: Transaction) -> None:
            occupied.set()
            go_on.wait(10)

        def last(tx: Transaction) -> None:
            insert("last")(tx)
            proxy.hold(Direction.DOWN)  # from here on only COMMIT goes up, and its answer stays with the proxy
            runs.append(proxy.forwarded_bytes(Direction.UP))

        first = asyncio.create_task(remote.write(occupy))
        await asyncio.to_thread(occupied.wait, 10)
        calls = [asyncio.create_task(remote.write(job)) for job in (insert("first"), last)]
        await asyncio.sleep(0)
        go_on.set()
        await first
        while not runs:
            await asyncio.sleep(0)
        await asyncio.to_thread(proxy.wait_bytes, Direction.UP, runs[0] + 1)
        proxy.cut(Side.CLIENT)
        for result in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(result, Refusal)
            assert "may or may not" in result.detail
        proxy.heal()
        while not await remote.read(heads):
            await asyncio.sleep(0)  # the database still works on its side of the cut connection
        assert len(runs) == 1
        assert await remote.read(heads) == ["first", "last"]
