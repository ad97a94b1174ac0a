"""Two replicas that write the same rows in another order: each waits for the other, and neither caller hears of it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine

from fleet_server.database import dialects
from fleet_server.database.bulk import insert_many
from fleet_server.database.engine import HUNG_AFTER_S, Database, sql
from fleet_server.database.held import unless_held
from fleet_server.database.jobs import PATIENCE_S
from fleet_server.database.schema import audit_heads, metadata
from fleet_server.database.statements import execute_many
from fleet_server.database.writer import STALL_S, Transaction

RAISE = "UPDATE audit_heads SET number = number + 1 WHERE writer = ?"


@pytest.fixture
async def replicas(postgres_url: str) -> AsyncIterator[tuple[Database, Database]]:
    engine = create_engine(postgres_url)
    metadata.create_all(engine, tables=[audit_heads])
    engine.dispose()
    both = Database(postgres_url), Database(postgres_url)
    for each in both:
        each.start()
    text = "INSERT INTO audit_heads (writer, number, hash, mac) VALUES (?, 0, ?, '')"
    for writer in ("a", "b"):
        await both[0].write(lambda tx, writer=writer: tx.conn.exec_driver_sql(sql(tx.conn, text), (writer, bytes(32))))  # type: ignore[misc]
    yield both
    for each in both:
        await each.close()


class Crossing:
    """Raises two rows; the first time it waits between them until another one has the row that it wants."""

    def __init__(self, order: str, met: threading.Barrier) -> None:
        self._order = order
        self._met: threading.Barrier | None = met
        self.runs = 0

    def __call__(self, tx: Transaction) -> None:
        self.runs += 1
        first, second = self._order
        tx.conn.exec_driver_sql(sql(tx.conn, RAISE), (first,))
        met, self._met = self._met, None
        if met is not None:
            met.wait(10)
        tx.conn.exec_driver_sql(sql(tx.conn, RAISE), (second,))


async def test_neither_of_two_that_wait_for_each_other_fails(replicas: tuple[Database, Database]) -> None:
    here, there = replicas
    met = threading.Barrier(2)
    crossing = [Crossing("ab", met), Crossing("ba", met)]
    await asyncio.gather(here.write(crossing[0]), there.write(crossing[1]))
    numbers = await here.read(lambda conn: list(conn.exec_driver_sql("SELECT number FROM audit_heads")))
    assert [tuple(row) for row in numbers] == [(2,), (2,)]
    assert max(each.runs for each in crossing) > 1


async def test_a_circle_is_left_before_the_database_looks_for_one(replicas: tuple[Database, Database]) -> None:
    """PostgreSQL looks for circles after a second: whatever else these replicas are to write waits as long."""

    def settings(tx: Transaction) -> list[str]:
        return [tx.conn.exec_driver_sql(f"SHOW {name}_timeout").scalar_one() for name in ("lock", "deadlock")]

    for each in replicas:
        assert await each.write(settings) == ["200ms", "1s"]


async def test_a_part_that_meets_a_held_row_is_undone_and_what_is_beside_it_stands(
    replicas: tuple[Database, Database],
) -> None:
    here, there = replicas
    told: list[str] = []

    def part(tx: Transaction) -> str:
        tx.after_commit(lambda: told.append("part"))
        tx.audit.append("part")
        for row in "ab":
            tx.conn.exec_driver_sql(sql(tx.conn, RAISE), (row,))
        return f"{tx.audit}"

    def whole(tx: Transaction) -> tuple[str | None, list[str]]:
        tx.after_commit(lambda: told.append("whole"))
        tx.audit.append("whole")
        return unless_held(tx, lambda: part(tx)), list(tx.audit)

    with there.writer._engine.connect() as frozen:
        frozen.exec_driver_sql(sql(frozen, RAISE), ("b",))
        assert await here.write(whole) == (None, ["whole"])
        assert told == ["whole"]
    assert await here.write(whole) == ("['whole', 'part']", ["whole", "part"])
    assert told == ["whole", "whole", "part"]
    numbers = await here.read(lambda conn: list(conn.exec_driver_sql("SELECT number FROM audit_heads")))
    assert [tuple(row) for row in numbers] == [(1,), (1,)]


async def test_a_replica_that_stands_still_in_a_transaction_holds_its_rows_for_a_while_only(
    replicas: tuple[Database, Database], postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen, or cut off: whoever else writes these rows waits for it no longer than a writer has patience."""
    assert dialects.WRITER_IDLE_TIMEOUT_MS < dialects.LOCK_TIMEOUT_MS
    monkeypatch.setattr(dialects, "WRITER_IDLE_TIMEOUT_MS", 100)
    frozen = Database(postgres_url)
    frozen.start()
    holds, goes_on = threading.Event(), threading.Event()
    runs: list[bool] = []

    def change(tx: Transaction) -> None:
        tx.conn.exec_driver_sql(sql(tx.conn, RAISE), ("a",))

    def stand_still(tx: Transaction) -> None:
        change(tx)
        runs.append(goes_on.is_set())
        holds.set()
        assert goes_on.wait(20)
        tx.conn.exec_driver_sql(sql(tx.conn, RAISE), ("b",))

    await frozen.write(lambda tx: None)
    standing = asyncio.create_task(frozen.write(stand_still))
    assert await asyncio.to_thread(holds.wait, 10)
    await replicas[0].write(change)
    assert not standing.done()
    goes_on.set()
    await standing  # it finds out when it goes on, and does it again
    assert runs == [False, True]
    await frozen.close()
    numbers = await replicas[0].read(
        lambda conn: list(conn.exec_driver_sql("SELECT writer, number FROM audit_heads ORDER BY writer"))
    )
    assert [tuple(row) for row in numbers] == [("a", 2), ("b", 1)]


async def test_the_database_lets_go_before_a_writer_is_cut_off_and_that_before_it_hangs(
    replicas: tuple[Database, Database],
) -> None:
    def limits(tx: Transaction) -> list[float]:
        names = ("lock_timeout", "idle_in_transaction_session_timeout", "statement_timeout")
        query = sql(tx.conn, "SELECT setting::int FROM pg_settings WHERE name = ?")
        return [tx.conn.exec_driver_sql(query, (name,)).scalar_one() / 1000 for name in names]

    lock_s, idle_s, statement_s = await replicas[0].write(limits)
    assert lock_s < idle_s < PATIENCE_S < statement_s < STALL_S < HUNG_AFTER_S


class Frozen(list[tuple[str, int, bytes, bytes]]):
    """Rows after the first of which whoever takes them stands still."""

    def __init__(self, count: int) -> None:
        super().__init__((f"c{number}", 0, b"", b"") for number in range(count))
        self.holds, self.goes_on = threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[tuple[str, int, bytes, bytes]]:
        for number in range(len(self)):
            if number:
                self._stand_still()
            yield super().__getitem__(number)

    def __getitem__(self, which: Any) -> Any:
        if which.start:
            self._stand_still()
        elif which.stop is None or which.stop >= len(self):
            return self
        return super().__getitem__(which)

    def _stand_still(self) -> None:
        self.holds.set()
        assert self.goes_on.wait(20)


COLUMNS = {"writer": "text", "number": "bigint", "hash": "bytea", "mac": "bytea"}


def together(conn: Connection, rows: Frozen) -> None:
    insert_many(conn, "audit_heads", COLUMNS, rows)


def one_by_one(conn: Connection, rows: Frozen) -> None:
    execute_many(conn, "INSERT INTO audit_heads (writer, number, hash, mac) VALUES (?, ?, ?, ?)", rows)


@pytest.mark.parametrize(("inserts", "count"), [(together, 3000), (together, 20), (one_by_one, 20)])
async def test_a_replica_that_stands_still_among_rows_that_it_inserts_holds_others_for_a_while_only(
    replicas: tuple[Database, Database],
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    inserts: Callable[[Connection, Frozen], None],
    count: int,
) -> None:
    """No statement waits for more of them, and no pipeline for more statements: no timeout would count."""
    monkeypatch.setattr(dialects, "WRITER_IDLE_TIMEOUT_MS", 100)
    frozen = Database(postgres_url)
    frozen.start()
    rows = Frozen(count)

    def change(tx: Transaction) -> None:
        tx.conn.exec_driver_sql(sql(tx.conn, RAISE), ("a",))

    def insert(tx: Transaction) -> None:
        change(tx)
        inserts(tx.conn, rows)

    standing = asyncio.create_task(frozen.write(insert))
    try:
        assert await asyncio.to_thread(rows.holds.wait, 10)
        await replicas[0].write(change)
        assert not standing.done()
    finally:
        rows.goes_on.set()
        await asyncio.gather(standing, return_exceptions=True)
        await frozen.close()
