"""Who writes the database and knows how it is looked after: what a start believes, and what an export shows."""

from collections.abc import Callable

import pytest

from fleet.v1 import trust_pb2
from fleet_server.audit import rules
from fleet_server.audit.acceptance import accept
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.reading import AuditCursor
from fleet_server.database.engine import Database, sql
from fleet_server.database.writer import Transaction
from tests.unit.fleet_server.audit.test_spent import Copy, another
from tests.unit.fleet_server.audit.test_spent import Replica as Server
from tests.unit.fleet_server.audit.test_tampering import Replica, replica
from tests.unit.fleet_server.audit.test_vouched import put_back, signed

__all__ = ["another", "replica"]

Another = Callable[[str], Server]


async def test_a_record_whose_head_was_away_at_the_last_whole_checkpoint_is_not_believed(
    another: Another, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "is_whole", lambda number: number % 3 == 0)
    server = await another("r-1").start()
    await server.operators.create("x", "ada", "owner")
    _, token = await server.operators.create("x", "fired", "owner")
    await signed(server)
    copy = await Copy(database).take("operators", "audit_heads")
    await server.operators.revoke("ada", "fired")
    await signed(server)
    where = "WHERE writer = 'server:spent'"
    mac = await database.read(lambda conn: conn.exec_driver_sql(f"SELECT mac FROM audit_heads {where}").scalar_one())

    async def write(text: str, *values: object) -> None:
        await database.write(lambda tx: tx.conn.exec_driver_sql(sql(tx.conn, text), values).rowcount)

    await write(f"UPDATE audit_heads SET mac = ? {where}", b"x")
    await database.write(
        lambda tx: server.audit.append(tx, AuditKind.DATABASE_RESTORED, actor="x", subject="y", detail={})
    )
    await signed(server)
    await write(f"UPDATE audit_heads SET mac = ? {where}", mac)
    await write(f"DELETE FROM audit_rows {where} AND number > 1")
    await put_back(database, "server:spent", 1, copy)
    assert await (await another("r-2").start()).refused(token.reveal())


async def test_a_planted_row_of_another_cluster_is_gone_once_a_person_has_looked(
    another: Another, database: Database
) -> None:
    server = await another("r-1").start()
    await server.operators.create("x", "ada", "owner")
    await signed(server)
    text = "INSERT INTO audit_newest (cluster_id, number, sha256, since, mac) VALUES ('aaa', 1, ?, 1, ?)"
    await database.write(lambda tx: tx.conn.exec_driver_sql(sql(tx.conn, text), (bytes(32), b"")).rowcount)
    person = another("restored")
    await person.start()
    await database.write(lambda tx: person.spent.accept(tx.conn))
    await database.write(
        lambda tx: accept(
            tx.conn, person.audit.heads, person.audit.checkpoints, person.trust.cluster_id, lambda raw: True
        )
    )
    found = await database.read(lambda conn: conn.exec_driver_sql("SELECT cluster_id FROM audit_newest").fetchall())
    assert [tuple(row) for row in found] == [(person.trust.cluster_id,)]


async def test_rows_with_numbers_of_another_type_do_not_stop_an_export(replica: Replica, database_url: str) -> None:
    _needs_sqlite(database_url)
    for _ in range(3):
        await replica.deed()
    assert await replica.sign()
    last = (await replica.rows())[-1]
    columns = "at_ms, kind, actor, subject, detail, previous_hash, hash"

    def plant(tx: Transaction) -> None:
        for number in range(600):
            tx.conn.exec_driver_sql(
                f"INSERT INTO audit_rows (writer, number, {columns}) SELECT writer, ?, {columns}"
                " FROM audit_rows WHERE writer = ? AND number = ?",
                (last.number - 1 + (number + 1) / 1000, last.writer, last.number),
            )
        tx.conn.exec_driver_sql("DELETE FROM audit_rows WHERE writer = ? AND number = ?", (last.writer, last.number))

    await replica.database.write(plant)
    cursor = AuditCursor()
    for _ in range(12):
        page = await replica.audit.page(cursor)
        cursor = page.cursor
        if not page.more:
            return
    pytest.fail("the export goes on for ever")


async def test_checkpoints_with_numbers_of_another_type_hide_none(replica: Replica, database_url: str) -> None:
    _needs_sqlite(database_url)
    for _ in range(4):
        await replica.deed()
        assert await replica.sign()

    def plant(tx: Transaction) -> None:
        for number in range(500):
            tx.conn.exec_driver_sql(
                "INSERT INTO audit_checkpoints SELECT ?, position, at_ms, signed"
                " FROM audit_checkpoints WHERE number = 2",
                (1 + (number + 1) / 1000,),
            )

    await replica.database.write(plant)
    told = [checkpoint async for page in replica.audit.export() for checkpoint in page.checkpoints]
    numbers = [trust_pb2.AuditCheckpointStatement.FromString(signed.statement).number for signed in told]
    assert numbers[:4] == [1, 2, 3, 4]


def _needs_sqlite(database_url: str) -> None:
    if not database_url.startswith("sqlite"):
        pytest.skip("PostgreSQL takes no such number")
