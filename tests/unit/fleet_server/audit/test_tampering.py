"""Somebody writes the database while the server runs and signs: nothing of it passes for history."""

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from fleet.audit_chain import FIRST_PREVIOUS_HASH, row_hash
from fleet.audit_findings import AuditFinding, ChainTruncated, RowChanged, RowRemoved
from fleet.metrics import Registry
from fleet_server.audit import rules
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import AuditRow
from fleet_server.audit.service import AuditCursor, AuditService
from fleet_server.database.engine import Database, sql
from fleet_server.database.wakeup import Wakeup
from fleet_server.database.writer import Transaction
from fleet_server.observability.metrics import ServerMetrics
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.audit.test_audit import CLUSTER, SECRETS, begin, record, sign, verify


class Replica:
    """A replica, and who writes its database."""

    def __init__(self, database: Database, clock: MockClock, writer: str = "r-1") -> None:
        self.database = database
        self.metrics = ServerMetrics(Registry()).audit
        self.audit = AuditService(
            database=database,
            clock=clock,
            wakeup=Wakeup(),
            writer=writer,
            row_mac=SECRETS.row_mac,
            metrics=self.metrics,
        )

    async def deed(self, subject: str = "n-1") -> None:
        await record(self.database, self.audit, subject)

    async def sign(self) -> bool:
        return await self.audit.checkpoint(sign, CLUSTER)

    async def rows(self) -> list[AuditRow]:
        return (await self.audit.page(AuditCursor())).rows

    async def alarms(self) -> list[str]:
        return [row.subject for row in await self.rows() if row.kind == AuditKind.AUDIT_TAMPERED]

    async def edit(self, text: str, *values: Any) -> None:
        await self.database.write(lambda tx: tx.conn.exec_driver_sql(sql(tx.conn, text), values).rowcount)

    async def copy(self, table: str) -> list[tuple[Any, ...]]:
        return await self.database.read(
            lambda conn: [tuple(row) for row in conn.exec_driver_sql(f"SELECT * FROM {table}")]
        )

    async def put_back(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        def work(tx: Transaction) -> None:
            tx.conn.exec_driver_sql(f"DELETE FROM {table}")
            for row in rows:
                text = f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})"
                tx.conn.exec_driver_sql(sql(tx.conn, text), row)

        await self.database.write(work)

    async def rewrite(self, row: AuditRow, previous: bytes, **changed: Any) -> bytes:
        """Another content under a row's number, hashed as the server hashes; the new hash."""
        fields = ("writer", "number", "at_ms", "kind", "actor", "subject", "detail")
        content = {name: getattr(row, name) for name in fields} | changed
        digest = row_hash(previous_hash=previous, **content)
        await self.edit(
            "UPDATE audit_rows SET subject = ?, previous_hash = ?, hash = ? WHERE writer = ? AND number = ?",
            content["subject"],
            previous,
            digest,
            row.writer,
            row.number,
        )
        return digest


@pytest.fixture
async def replica(database: Database, clock: MockClock) -> Replica:
    made = Replica(database, clock)
    await begin(database, made.audit)
    for number in range(3):
        await made.deed(f"n-{number}")
    assert await made.sign()
    return made


async def restarted(replica: Replica, database_url: str, clock: MockClock) -> Replica:
    """The same replica in a new process, which remembers nothing."""
    await replica.database.close()
    again = Replica(Database(database_url), clock)
    again.database.start()
    return again


async def go_on(replica: Replica) -> None:
    """What a server does afterwards, whatever happened."""
    for _ in range(3):
        await replica.sign()
        await replica.deed("later")
    await replica.sign()


async def test_rows_since_the_last_checkpoint_are_rewritten(replica: Replica) -> None:
    await replica.deed("an evil deed")
    last = (await replica.rows())[-1]
    digest = await replica.rewrite(last, last.previous_hash, subject="harmless")
    await replica.edit("UPDATE audit_heads SET hash = ? WHERE writer = 'r-1'", digest)
    await go_on(replica)
    assert await replica.alarms() == ["r-1"]
    assert replica.metrics.tampered.labels("head").value == 1
    with pytest.raises(RowChanged):
        await verify(replica.audit)


@pytest.mark.parametrize("signs_first", [True, False])
async def test_rows_since_the_last_checkpoint_are_removed_and_the_old_head_put_back(
    replica: Replica, signs_first: bool
) -> None:
    """The old head has a good MAC, but this replica knows how far it wrote."""
    before = await replica.copy("audit_heads")
    await replica.deed("an evil deed")
    await replica.edit("DELETE FROM audit_rows WHERE number = 4")
    await replica.put_back("audit_heads", before)
    if not signs_first:
        await replica.deed()
    await go_on(replica)
    assert await replica.alarms() == ["r-1"]
    with pytest.raises(AuditFinding) as found:
        await verify(replica.audit)
    assert isinstance(found.value, RowRemoved | ChainTruncated)


async def test_a_chain_of_an_invented_writer_is_never_signed(replica: Replica) -> None:
    ghost = {"writer": "r-ghost", "number": 1, "at_ms": 5, "kind": "node.adopted", "actor": "ada", "subject": "n-1"}
    digest = row_hash(previous_hash=FIRST_PREVIOUS_HASH, detail=b"{}", **ghost)  # type: ignore[arg-type]
    await replica.edit(
        "INSERT INTO audit_rows (writer, number, at_ms, kind, actor, subject, detail, previous_hash, hash)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        *ghost.values(),
        b"{}",
        FIRST_PREVIOUS_HASH,
        digest,
    )
    await replica.edit(
        "INSERT INTO audit_heads (writer, number, hash, mac) VALUES ('r-ghost', 1, ?, ?)", digest, digest
    )
    await go_on(replica)
    assert await replica.alarms() == ["r-ghost"]
    summary = await verify(replica.audit)
    assert summary.uncovered_rows == 1
    assert summary.checkpoints > 1  # the others are signed


async def test_all_of_history_is_rebuilt_and_the_running_server_does_not_sign_it(replica: Replica) -> None:
    previous = FIRST_PREVIOUS_HASH
    for row in await replica.rows():
        previous = await replica.rewrite(row, previous, subject="rewritten")
    await replica.edit("UPDATE audit_heads SET hash = ?", previous)
    for table in ("audit_checkpoints", "audit_signed", "audit_newest"):
        await replica.edit(f"DELETE FROM {table}")
    await go_on(replica)
    assert (await replica.copy("audit_checkpoints")) == []
    assert len(await replica.alarms()) == 2
    with pytest.raises(RowChanged):
        await verify(replica.audit)


async def test_all_of_history_is_rebuilt_and_the_server_started_anew(
    replica: Replica, database_url: str, clock: MockClock
) -> None:
    previous = FIRST_PREVIOUS_HASH
    for row in await replica.rows():
        previous = await replica.rewrite(row, previous, subject="rewritten")
    await replica.edit("UPDATE audit_heads SET hash = ?", previous)
    for table in ("audit_checkpoints", "audit_signed", "audit_newest"):
        await replica.edit(f"DELETE FROM {table}")
    again = await restarted(replica, database_url, clock)
    await again.deed()
    await go_on(again)
    assert (await again.copy("audit_checkpoints")) == []
    assert (await verify(again.audit)).uncovered_rows == len(await again.rows())
    assert len(await again.alarms()) == 2
    await again.database.close()


async def test_the_database_goes_back_under_a_running_server(replica: Replica) -> None:
    """Every MAC of the copy is good."""
    tables = ("audit_rows", "audit_heads", "audit_signed", "audit_checkpoints", "audit_newest")
    copy = {table: await replica.copy(table) for table in tables}
    await replica.deed("an evil deed")
    assert await replica.sign()
    for table, rows in copy.items():
        await replica.put_back(table, rows)
    await go_on(replica)
    assert len(await replica.copy("audit_checkpoints")) == 1
    assert f"audit of {CLUSTER}" in await replica.alarms()
    with pytest.raises(RowRemoved):
        await verify(replica.audit)


async def test_another_replica_does_not_sign_what_it_saw_going_further(
    replica: Replica, database_url: str, clock: MockClock
) -> None:
    other = Replica(Database(database_url), clock, "r-2")
    other.database.start()
    before, signed = await replica.copy("audit_heads"), await replica.copy("audit_signed")
    await replica.deed("an evil deed")
    assert await other.sign()
    await replica.edit("DELETE FROM audit_rows WHERE number = 4")
    await replica.put_back("audit_heads", before)
    await replica.put_back("audit_signed", [(writer, number - 1) for writer, number in signed])
    await other.deed()
    assert await other.sign()
    assert "r-1" in await other.alarms()
    with pytest.raises(ChainTruncated):
        await verify(replica.audit)
    await other.database.close()


@pytest.mark.parametrize("edit", ["UPDATE audit_heads SET number = 2", "DELETE FROM audit_heads"])
async def test_a_server_that_finds_its_chain_changed_when_it_starts_goes_on_in_another(
    replica: Replica, database_url: str, clock: MockClock, edit: str
) -> None:
    await replica.edit(edit)
    again = await restarted(replica, database_url, clock)
    await go_on(again)
    assert (await again.alarms())[0] == "r-1"
    rows = await again.rows()
    assert {row.writer for row in rows[3:]} == {rows[3].writer} != {"r-1"}
    assert (await verify(again.audit)).uncovered_rows == 0
    await again.database.close()


async def test_a_commit_that_failed_is_no_finding(replica: Replica) -> None:
    """The replica had sealed its rows, and goes on behind what stands."""

    def lost(tx: Transaction) -> None:
        replica.audit.append(tx, AuditKind.NODE_LABELLED, actor="ada", subject="lost", detail={})
        number = rules.Head("r-1", 4, bytes(32)).number
        row = (*("x",) * 4, b"{}", bytes(32), bytes(32))
        tx.conn.exec_driver_sql(
            sql(
                tx.conn,
                "INSERT INTO audit_rows (writer, number, at_ms, kind, actor, subject, detail, previous_hash, hash)"
                " VALUES ('r-1', ?, 1, ?, ?, ?, ?, ?, ?)",
            ),
            (number, *row[1:]),
        )

    with pytest.raises(IntegrityError):
        await replica.database.write(lost)
    await go_on(replica)
    assert await replica.alarms() == []
    assert (await verify(replica.audit)).uncovered_rows == 0


async def test_a_garbled_checkpoint_is_told_and_the_next_one_follows_what_it_was(replica: Replica) -> None:
    await replica.edit("UPDATE audit_checkpoints SET signed = ?", b"\xff")
    await replica.deed()
    assert await replica.sign()
    assert "checkpoint 1" in await replica.alarms()
    with pytest.raises(AuditFinding):
        await verify(replica.audit)


async def test_a_checkpoint_written_ahead_stops_signing_and_is_told_once(replica: Replica) -> None:
    await replica.edit("INSERT INTO audit_checkpoints (number, position, at_ms, signed) VALUES (2, 1, 1, ?)", b"\xff")
    await go_on(replica)
    assert await replica.alarms() == ["a later checkpoint"]
    await replica.edit("DELETE FROM audit_checkpoints WHERE number = 2")
    assert await replica.sign()
    assert (await verify(replica.audit)).uncovered_rows == 0


async def test_a_row_written_where_the_next_one_belongs_stops_one_commit_and_no_more(replica: Replica) -> None:
    """The chain is left as it is, and the next deed begins another."""
    last = (await replica.rows())[-1]
    ghost = {"writer": "r-1", "number": 4, "at_ms": 5, "kind": "node.adopted", "actor": "ada", "subject": "n-1"}
    digest = row_hash(previous_hash=last.hash, detail=b"{}", **ghost)  # type: ignore[arg-type]
    await replica.edit(
        "INSERT INTO audit_rows (writer, number, at_ms, kind, actor, subject, detail, previous_hash, hash)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        *ghost.values(),
        b"{}",
        last.hash,
        digest,
    )
    with pytest.raises(IntegrityError):
        await replica.deed()
    await go_on(replica)
    assert await replica.alarms() == ["r-1"]
    summary = await verify(replica.audit)
    assert (summary.writers, summary.uncovered_rows) == (2, 1)
