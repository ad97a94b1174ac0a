"""Pages of the audit: their cost, and their order when replicas commit side by side."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection

from fleet.audit_chain import ChainVerifier
from fleet_server.audit import rules, store
from fleet_server.audit.heads import Heads
from fleet_server.audit.reading import AuditCursor, cursor_at, read_page
from fleet_server.audit.service import AuditService
from fleet_server.database.engine import Database
from fleet_server.database.wakeup import Wakeup
from fleet_server.database.writer import Transaction
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.audit.test_audit import CLUSTER, SECRETS, authority, begin, record, sign


async def chains(database_url: str, clock: MockClock, names: Sequence[str]) -> list[tuple[Database, AuditService]]:
    opened = []
    for name in names:
        database = Database(database_url, readers=1)
        service = AuditService(database=database, clock=clock, wakeup=Wakeup(), writer=name, row_mac=SECRETS.row_mac)
        opened.append((database, service))
        database.start()
    await begin(*opened[0])
    return opened


async def test_a_page_takes_the_same_number_of_queries_however_many_chains_there_are(
    database: Database, clock: MockClock
) -> None:
    if database.dialect != "sqlite":
        pytest.skip("one driver that counts is enough")
    head, heads = rules.Head.start("x"), Heads(SECRETS.row_mac("audit_heads"))
    entry = rules.Entry(clock.now_ms(), "node.labelled", "ada", "n-1", b"{}")
    for number in range(50):
        rows, after = rules.chain(replace(head, writer=f"node:{number}"), [entry])
        await database.write(lambda tx, rows=rows, after=after: heads.put(tx.conn, rows, after))  # type: ignore[misc]

    def count(conn: Connection) -> tuple[int, int]:
        statements: list[str] = []
        driver: Any = conn.connection.driver_connection
        driver.set_trace_callback(statements.append)
        cursor = cursor_at(conn, 10)
        rows = len(read_page(conn, cursor, 100).rows)
        driver.set_trace_callback(None)
        return rows, len(statements)

    assert await database.read(count) == (40, 5)


async def test_a_late_row_comes_before_the_checkpoint_that_names_it(database_url: str, clock: MockClock) -> None:
    """What two replicas that commit side by side do to a reader who is far behind."""
    (one, late), (other, busy) = await chains(database_url, clock, ["r-late", "r-busy"])
    await record(one, late)
    for _ in range(3):
        await record(other, busy)
    await busy.checkpoint(sign, CLUSTER)
    for _ in range(20):
        await record(other, busy)
    kept: list[Any] = []

    def hide(tx: Transaction) -> None:
        kept.append(store.rows_between(tx.conn, "r-late", 0, 1, 1))
        kept.append(tuple(tx.conn.exec_driver_sql("SELECT * FROM audit_checkpoints").one()))
        tx.conn.exec_driver_sql("DELETE FROM audit_rows WHERE writer = 'r-late'")
        tx.conn.exec_driver_sql("DELETE FROM audit_checkpoints")

    def show(tx: Transaction) -> None:
        store.insert_rows(tx.conn, kept[0])
        tx.conn.exec_driver_sql("UPDATE audit_rows SET position = 1 WHERE writer = 'r-late'")
        store.insert_checkpoint(tx.conn, *kept[1])

    await other.write(hide)
    verifier = ChainVerifier(cluster_id=CLUSTER, authority_keys={authority.key_id: authority.public_key})
    page = await busy.page(AuditCursor(), limit=4)
    pages = [page]
    await other.write(show)
    while page.more:
        page = await busy.page(page.cursor, limit=4)
        pages.append(page)
    for page in pages:
        for row in page.rows:
            verifier.add_row(row)
        for checkpoint in page.checkpoints:
            verifier.add_checkpoint(checkpoint)
    summary = verifier.finish()
    assert (summary.rows, summary.checkpoints) == (24, 1)
    for database in (one, other):
        await database.close()


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 500])
async def test_whatever_the_size_of_pages_each_row_comes_once_and_in_order(
    database_url: str, clock: MockClock, limit: int
) -> None:
    opened = await chains(database_url, clock, ["a", "b", "c"])
    for turn in range(12):
        database, audit = opened[turn * 7 % 3]
        await record(database, audit, str(turn))
        if turn % 5 == 4:
            await audit.checkpoint(sign, CLUSTER)
    # A chain that lost rows shows what is left of it, whatever the pages.
    await opened[0][0].write(lambda tx: tx.conn.exec_driver_sql("DELETE FROM audit_rows WHERE subject = '3'"))
    cursor, subjects, checkpoints, more = AuditCursor(), [], 0, True
    while more:
        page = await opened[0][1].page(cursor, limit=limit)
        subjects += [row.subject for row in page.rows]
        checkpoints += len(page.checkpoints)
        cursor, more = page.cursor, page.more
    assert subjects == [str(turn) for turn in range(12) if turn != 3]
    assert checkpoints == 2
    for database, _ in opened:
        await database.close()
