"""A row that somebody at PostgreSQL holds keeps up who needs it, and nobody else."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import zip_longest

import pytest
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import OperationalError

from fleet.errors import Reason, Refusal
from fleet_server.database import jobs
from fleet_server.database.engine import Database, sql
from fleet_server.database.jobs import Aside, Job
from fleet_server.database.schema import audit_heads, metadata
from fleet_server.database.writer import Transaction

Work = Callable[[Transaction], str]


def raised(writer: str) -> Work:
    def work(tx: Transaction) -> str:
        tx.conn.exec_driver_sql(sql(tx.conn, "UPDATE audit_heads SET number = number + 1 WHERE writer = ?"), (writer,))
        return writer

    return work


def numbers(conn: Connection) -> dict[str, int]:
    return {row[0]: row[1] for row in conn.exec_driver_sql("SELECT writer, number FROM audit_heads")}


@pytest.fixture
def holder(postgres_url: str) -> Iterator[Connection]:
    """Another connection, in a transaction."""
    engine = create_engine(postgres_url)
    metadata.create_all(engine, tables=[audit_heads])
    text = "INSERT INTO audit_heads (writer, number, hash, mac) VALUES (?, 0, ?, '')"
    with engine.connect() as conn:
        for writer in "abcd":
            conn.exec_driver_sql(sql(conn, text), (writer, bytes(32)))
        conn.commit()
        yield conn
        conn.rollback()
    engine.dispose()


@pytest.fixture
async def database(postgres_url: str, holder: Connection) -> AsyncIterator[Database]:
    database = Database(postgres_url)
    database.start()
    yield database
    holder.rollback()
    await database.close()


def hold(holder: Connection, *writers: str) -> None:
    for writer in writers:
        holder.exec_driver_sql(sql(holder, "SELECT 1 FROM audit_heads WHERE writer = ? FOR UPDATE"), (writer,))


async def handed_in_together(
    database: Database, works: list[Work], ranks: Sequence[str | None] = ()
) -> list[asyncio.Future[str]]:
    """One group of the writer."""
    begun, goes_on = threading.Event(), threading.Event()

    def occupy(_tx: Transaction) -> None:
        begun.set()
        assert goes_on.wait(10)

    occupied = database.write_nowait(occupy)
    assert await asyncio.to_thread(begun.wait, 10)
    futures = [
        database.writer.submit_nowait(work, rank=rank)
        for work, rank in zip_longest(works, ranks, fillvalue=None)
        if work
    ]
    goes_on.set()
    await occupied
    return futures


async def test_what_is_written_elsewhere_goes_on_before_and_behind_who_waits_for_a_row(
    database: Database, holder: Connection
) -> None:
    hold(holder, "a")
    before, held, behind = await handed_in_together(database, [raised("b"), raised("a"), raised("c")])
    await asyncio.gather(before, behind)
    for _ in range(5):
        await database.write(raised("d"))
    assert not held.done()
    assert await database.read(numbers) == {"a": 0, "b": 1, "c": 1, "d": 5}
    holder.rollback()
    assert await held == "a"
    assert await database.read(numbers) == {"a": 1, "b": 1, "c": 1, "d": 5}


async def test_many_that_wait_for_rows_of_one_holder_all_follow_once_it_lets_go(
    database: Database, holder: Connection
) -> None:
    hold(holder, "a", "b")
    waiting = await handed_in_together(database, [raised("ab"[number % 2]) for number in range(20)])
    assert await database.write(raised("c")) == "c"
    assert not any(each.done() for each in waiting)
    assert database.writer.depth() in (19, 20), "one of them may be looking at this moment"
    holder.rollback()
    await asyncio.gather(*waiting)
    assert await database.read(numbers) == {"a": 10, "b": 10, "c": 1, "d": 0}
    assert database.writer.depth() == 0


async def test_of_two_rows_with_different_holders_the_one_that_is_free_again_is_not_kept_up_by_the_other(
    database: Database, holder: Connection
) -> None:
    with holder.engine.connect() as other:
        hold(holder, "a")
        hold(other, "b")
        first, second = await handed_in_together(database, [raised("a"), raised("b")])
        await database.write(raised("c"))
        other.rollback()
        assert await second == "b"
        assert not first.done()
    holder.rollback()
    await first


async def test_patience_ends_for_all_whose_time_is_over_and_nothing_of_them_is_written(
    database: Database, holder: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "PATIENCE_S", 0.3)
    hold(holder, "a")
    waiting = await handed_in_together(database, [raised("a") for _ in range(5)])
    for refused in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(refused, Refusal)
        assert refused.reason is Reason.UNAVAILABLE
    assert database.writer.depth() == 0
    holder.rollback()
    assert await database.write(raised("a")) == "a"
    assert (await database.read(numbers))["a"] == 1


async def test_closing_waits_for_who_stands_aside(database: Database, holder: Connection) -> None:
    hold(holder, "a")
    (held,) = await handed_in_together(database, [raised("a")])
    await database.write(raised("b"))
    closing = asyncio.create_task(database.close())
    while not database._closed:
        await asyncio.sleep(0)
    assert not held.done()
    holder.rollback()
    await closing
    assert await held == "a"
    assert numbers(holder)["a"] == 1


async def test_who_stands_aside_is_told_at_once_when_the_database_goes_away(
    database: Database, holder: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(holder, "a")
    waiting = await handed_in_together(database, [raised("a"), raised("a")])
    await database.write(raised("b"))

    def away() -> Connection:
        raise OperationalError("", None, ConnectionError("by design"))

    monkeypatch.setattr(database.writer._engine, "connect", away)
    holder.exec_driver_sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    for refused in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(refused, Refusal)
        assert refused.reason is Reason.UNAVAILABLE
    monkeypatch.undo()
    assert await database.write(raised("b")) == "b"
    assert await database.read(numbers) == {"a": 0, "b": 2, "c": 0, "d": 0}


async def test_a_job_that_fails_for_another_reason_takes_no_one_aside_with_it(
    database: Database, holder: Connection
) -> None:
    def broken(tx: Transaction) -> str:
        raised("b")(tx)
        raise LookupError("by design")

    hold(holder, "a")
    held, failed, behind = await handed_in_together(database, [raised("a"), broken, raised("c")])
    assert await behind == "c"
    with pytest.raises(LookupError):
        await failed
    assert not held.done()
    holder.rollback()
    await held
    assert await database.read(numbers) == {"a": 1, "b": 0, "c": 1, "d": 0}


async def test_a_row_that_every_commit_writes_is_waited_for(postgres_url: str, holder: Connection) -> None:
    database = Database(postgres_url)

    def hook(tx: Transaction) -> None:
        raised("a")(tx)

    database.writer.before_commit(hook)
    database.start()
    tried_again = threading.Event()
    runs: list[str] = []

    def counted(tx: Transaction) -> str:
        runs.append("b")
        if len(runs) > 1:
            tried_again.set()
        return raised("b")(tx)

    try:
        hold(holder, "a")
        waiting = [database.write_nowait(work) for work in (counted, raised("c"), raised("d"))]
        assert await asyncio.to_thread(tried_again.wait, 10)
        assert not any(each.done() for each in waiting)
        holder.rollback()
        await asyncio.gather(*waiting)
        found = await database.read(numbers)
        assert found == {"a": found["a"], "b": 1, "c": 1, "d": 1}
    finally:
        holder.rollback()
        await database.close()


async def test_those_that_have_a_rank_run_by_it_in_places_of_their_own(database: Database) -> None:
    ran: list[str] = []

    def noted(name: str) -> Work:
        def work(tx: Transaction) -> str:
            ran.append(name)
            return name

        return work

    names = ["c1", "x", "b", "c2", "y", "a"]
    done = await handed_in_together(database, [noted(name) for name in names], ["c", None, "b", "c", None, ""])
    assert await asyncio.gather(*done) == names, "each caller gets its own result"
    assert ran == ["a", "x", "b", "c1", "y", "c2"]


def test_each_that_stands_aside_looks_in_its_turn() -> None:
    now = [0.0]
    aside = Aside(lambda: now[0])
    loop = asyncio.new_event_loop()
    first, second = (Job(lambda tx: None, loop.create_future(), loop) for _ in range(2))
    assert aside.pause_s() is None
    assert aside.put(first) == aside.put(second) == []
    looked = aside.next()
    assert looked is first
    assert aside.put(first) == []
    assert aside.next() is second
    now[0] = jobs.PATIENCE_S
    assert aside.put(second) == [first, second], "neither has its turn in time"
    assert len(aside) == 0
    loop.close()
