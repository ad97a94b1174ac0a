"""Ends of chains are put back while no server runs: one that starts knows from what was signed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fleet.audit_findings import AuditFinding
from fleet.errors import Reason, Refusal
from fleet_server.audit import rules, store
from fleet_server.audit.acceptance import accept
from fleet_server.database.engine import Database, sql
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.audit.test_audit import CLUSTER, verify
from tests.unit.fleet_server.audit.test_spent import Copy, another
from tests.unit.fleet_server.audit.test_spent import Replica as Server
from tests.unit.fleet_server.audit.test_tampering import Replica, replica, restarted

__all__ = ["another", "replica"]


async def signed(server: Server) -> None:
    assert await server.audit.checkpoint(server.trust.sign_checkpoint, server.trust.cluster_id)


async def put_back(database: Database, writer: str, number: int, copy: Copy) -> None:
    """The chain of a writer ends at row `number` again, as the copy of its head says."""
    await copy.put_back()
    for text in (
        "DELETE FROM audit_rows WHERE writer = ? AND number > ?",
        "UPDATE audit_signed SET number = ? WHERE writer = ?",
    ):
        values = (writer, number) if "DELETE" in text else (number, writer)
        await database.write(lambda tx, text=text, values=values: tx.conn.exec_driver_sql(sql(tx.conn, text), values))  # type: ignore[misc]


HIDING = ["", "DELETE FROM audit_newest", "DELETE FROM audit_checkpoints WHERE number = 2"]


@pytest.mark.parametrize("hiding", HIDING)
async def test_an_operator_does_not_come_back_with_the_record_of_what_was_spent(
    another: Callable[[str], Server], database: Database, hiding: str
) -> None:
    server = await another("r-1").start()
    await server.operators.create("x", "ada", "owner")
    _, token = await server.operators.create("x", "fired", "owner")
    await signed(server)
    copy = await Copy(database).take("operators", "audit_heads")
    await server.operators.revoke("ada", "fired")
    await signed(server)
    await put_back(database, "server:spent", 1, copy)
    if hiding:
        await database.write(lambda tx: tx.conn.exec_driver_sql(hiding).rowcount)
    started = await another("r-2").start()
    refused = await started.refused(token.reveal())
    assert refused.reason is Reason.UNAVAILABLE
    assert "checkpoint" in refused.detail
    person = await another("restored").start()
    assert await database.write(lambda tx: person.spent.accept(tx.conn))
    await database.write(
        lambda tx: accept(
            tx.conn, person.audit.heads, person.audit.checkpoints, person.trust.cluster_id, lambda raw: True
        )
    )
    await started.operators.revoke("ada", "fired")
    assert (await started.refused(token.reveal())).reason is Reason.UNAUTHENTICATED
    await started.audit.checkpoint(started.trust.sign_checkpoint, started.trust.cluster_id)
    assert (await (await another("r-3").start()).refused(token.reveal())).reason is Reason.UNAUTHENTICATED


async def test_while_nobody_has_looked_checkpoints_are_read_once_and_not_by_each_caller(
    another: Callable[[str], Server], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await another("r-1").start()
    await server.spend("t")
    await signed(server)
    copy = await Copy(database).take("audit_heads")
    await server.spend("t")
    await signed(server)
    await put_back(database, "server:spent", 2, copy)
    started = await another("r-2").start()
    reads: list[str] = []
    for name in ("checkpoints_down", "rows_between"):
        read = getattr(store, name)
        monkeypatch.setattr(store, name, lambda *of, name=name, read=read: (reads.append(name), read(*of))[1])
    for _ in range(3):
        with pytest.raises(Refusal, match="a checkpoint vouches for row 3"):
            await started.times("t")
    assert reads == []
    await started.audit._has_news()
    assert reads.count("checkpoints_down") == 1, "who looks each second finds what was put right"


@pytest.mark.parametrize("kept", [3, 0])
async def test_a_server_whose_chain_was_cut_behind_what_was_signed_goes_on_in_another(
    replica: Replica, database_url: str, clock: MockClock, kept: int
) -> None:
    copy = await Copy(replica.database).take("audit_heads")
    await replica.deed("an evil deed")
    assert await replica.sign()
    await put_back(replica.database, "r-1", kept, copy)
    if not kept:
        await replica.edit("DELETE FROM audit_heads")
    again = await restarted(replica, database_url, clock)
    await again.deed()
    assert await again.alarms() == ["r-1"]
    assert {row.writer for row in (await again.rows())[kept:]} != {"r-1"}
    assert await again.sign()
    with pytest.raises(AuditFinding):
        await verify(again.audit)
    await again.database.close()


async def test_a_server_that_starts_signs_no_other_chain_that_was_cut_behind_what_was_signed(
    replica: Replica, database_url: str, clock: MockClock
) -> None:
    copy = await Copy(replica.database).take("audit_heads")
    await replica.deed("an evil deed")
    assert await replica.sign()
    await put_back(replica.database, "r-1", 3, copy)
    await replica.edit("DELETE FROM audit_signed")
    await replica.database.close()
    other = Replica(Database(database_url), clock, "r-2")
    other.database.start()
    await other.deed()
    assert await other.sign()
    assert await other.alarms() == ["r-1"]
    await other.database.write(
        lambda tx: accept(tx.conn, other.audit.heads, other.audit.checkpoints, CLUSTER, lambda raw: True)
    )
    later = await restarted(other, database_url, clock)
    await later.deed()
    assert await later.sign()
    assert await later.alarms() == ["r-1"], "a person has looked"
    assert not await later.sign()
    await later.database.close()


async def test_no_more_checkpoints_are_read_than_it_takes_until_one_names_every_chain(
    replica: Replica, database_url: str, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "is_whole", lambda number: number % 3 == 0)
    for _ in range(3):
        await replica.deed()
        assert await replica.sign()
    await replica.edit("DELETE FROM audit_checkpoints WHERE number < 3")
    again = await restarted(replica, database_url, clock)
    await again.deed()
    assert await again.alarms() == []
    assert await again.sign()
    await again.edit("DELETE FROM audit_checkpoints WHERE number = 4")
    await again.database.close()
    later = Replica(Database(database_url), clock, "r-never-signed")
    later.database.start()
    await later.deed()
    assert await later.alarms() == ["r-never-signed"]
    await later.database.close()
