"""What was spent stays spent, whatever somebody puts back into the database, on both of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fleet.errors import Reason, Refusal
from fleet.secrets import Secret
from fleet_server.admin.access import Caller, OperatorService
from fleet_server.audit.service import AuditCursor, AuditService
from fleet_server.audit.spent import SpentRecord, What
from fleet_server.database.engine import Database, sql
from fleet_server.database.wakeup import Wakeup
from fleet_server.database.writer import Transaction
from fleet_server.trust.secrets import Secrets
from fleet_server.trust.service import TrustService
from tests.fakes.clock import MockClock

SECRETS = Secrets(Secret(bytes(32)))


class Replica:
    """A server process on the database."""

    def __init__(self, database: Database, clock: MockClock, name: str) -> None:
        self.database = database
        self.audit = AuditService(database=database, clock=clock, wakeup=Wakeup(), writer=name, row_mac=SECRETS.row_mac)
        self.operators = OperatorService(database=database, clock=clock, audit=self.audit, secrets=SECRETS)
        self.trust = TrustService(
            database=database, secrets=SECRETS, clock=clock, audit=self.audit, wakeup=Wakeup(), cluster_name="main"
        )

    @property
    def spent(self) -> SpentRecord:
        return self.audit.spent

    async def start(self) -> Replica:
        await self.trust.create_cluster()
        await self.trust.load()
        return self

    async def spend(self, name: str, times: int = 1) -> None:
        for _ in range(times):
            await self.database.write(lambda tx: self.spent.add(tx.conn, What.JOIN_TOKEN_USE, name))

    async def times(self, name: str) -> int:
        known = await self.database.read(lambda conn: self.spent.known(conn, keep=True))
        return known.times(What.JOIN_TOKEN_USE, name)

    async def refused(self, token: str) -> Refusal:
        self.operators._cache.clear()
        with pytest.raises(Refusal) as caught:
            await self.operators.authorise(token, "RotateAuthority")
        return caught.value

    async def kinds(self) -> list[str]:
        return [row.kind for row in (await self.audit.page(AuditCursor())).rows]


class Copy:
    """Rows as they stood once, to be put back around the server."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rows: dict[str, list[tuple[Any, ...]]] = {}

    async def take(self, *tables: str) -> Copy:
        def rows(table: str) -> Callable[[Any], list[tuple[Any, ...]]]:
            return lambda conn: [tuple(row) for row in conn.exec_driver_sql(f"SELECT * FROM {table}")]

        for table in tables:
            self._rows[table] = await self._database.read(rows(table))
        return self

    async def put_back(self) -> None:
        def work(tx: Transaction) -> None:
            for table, rows in self._rows.items():
                tx.conn.exec_driver_sql(f"DELETE FROM {table}")
                for row in rows:
                    marks = ", ".join("?" * len(row))
                    tx.conn.exec_driver_sql(sql(tx.conn, f"INSERT INTO {table} VALUES ({marks})"), row)

        await self._database.write(work)


@pytest.fixture
async def replica(database: Database, clock: MockClock) -> Replica:
    return await Replica(database, clock, "r-1").start()


@pytest.fixture
def another(database: Database, clock: MockClock) -> Callable[[str], Replica]:
    return lambda name: Replica(database, clock, name)


async def test_what_one_replica_spends_another_knows_and_so_does_the_next_start(
    replica: Replica, another: Callable[[str], Replica]
) -> None:
    other = await another("r-2").start()
    assert await other.times("t") == 0
    await replica.spend("t", 2)
    await other.spend("t")
    assert [await each.times("t") for each in (replica, other, await another("r-1b").start())] == [3, 3, 3]
    assert await replica.times("u") == 0


async def test_a_transaction_that_is_undone_spends_nothing(replica: Replica) -> None:
    def undone(tx: Transaction) -> None:
        replica.spent.add(tx.conn, What.JOIN_TOKEN_USE, "t")
        assert replica.spent.known(tx.conn).times(What.JOIN_TOKEN_USE, "t") == 1
        raise Refusal(Reason.CONFLICT, "no")

    assert await replica.times("t") == 0
    with pytest.raises(Refusal):
        await replica.database.write(undone)
    assert await replica.times("t") == 0
    await replica.spend("t")
    assert await replica.times("t") == 1
    assert not replica.spent.tampered


_ROW = "WHERE writer = 'server:spent' AND number ="
TAMPERINGS = {
    "a record is removed": f"DELETE FROM audit_rows {_ROW} 2",
    "a record is changed": f"UPDATE audit_rows SET subject = 'join-token-use:x' {_ROW} 2",
    "a record is of no type that a server writes": f"UPDATE audit_rows SET detail = 'text' {_ROW} 2",
    "the newest record is removed": f"DELETE FROM audit_rows {_ROW} 3",
    "all are removed": "DELETE FROM audit_rows WHERE writer = 'server:spent'",
    "the head is removed": "DELETE FROM audit_heads WHERE writer = 'server:spent'",
    "the head is changed": "UPDATE audit_heads SET number = 2 WHERE writer = 'server:spent'",
    "the beginning is removed": f"DELETE FROM audit_rows {_ROW} 1",
}


@pytest.mark.parametrize("text", TAMPERINGS.values(), ids=TAMPERINGS.keys())
async def test_a_start_that_does_not_find_the_record_whole_believes_nothing_until_a_person_has_looked(
    replica: Replica, another: Callable[[str], Replica], text: str
) -> None:
    await replica.spend("t", 2)
    await replica.database.write(lambda tx: tx.conn.exec_driver_sql(text))
    other = await another("r-2").start()
    with pytest.raises(Refusal, match="db restored") as caught:
        await other.times("t")
    assert caught.value.reason is Reason.UNAVAILABLE
    person = await another("restored").start()
    assert await replica.database.write(lambda tx: person.spent.accept(tx.conn))
    assert await other.times("t") <= 2
    await other.spend("t")
    assert not await replica.database.write(lambda tx: person.spent.accept(tx.conn))


async def test_what_was_written_again_twice_is_not_counted_twice(
    replica: Replica, another: Callable[[str], Replica]
) -> None:
    await replica.spend("t", 2)
    for name in ("restored-1", "restored-2"):
        await replica.database.write(lambda tx: tx.conn.exec_driver_sql(TAMPERINGS["the head is removed"]))
        person = await another(name).start()
        assert await replica.database.write(lambda tx, person=person: person.spent.accept(tx.conn))  # type: ignore[misc]
        assert await person.times("t") == 2


@pytest.mark.parametrize("text", TAMPERINGS.values(), ids=TAMPERINGS.keys())
async def test_a_replica_that_remembers_loses_nothing(
    replica: Replica, another: Callable[[str], Replica], text: str
) -> None:
    await replica.spend("t", 2)
    assert await replica.times("t") == 2
    await replica.database.write(lambda tx: tx.conn.exec_driver_sql(text))
    assert await replica.times("t") == 2
    await replica.spend("t")
    assert await replica.times("t") == 3
    if "head" in text:  # which it sees before it writes behind it, and so begins anew
        assert await (await another("r-2").start()).times("t") == 3


async def test_a_record_that_goes_back_under_a_running_replica_is_noticed_and_written_again(
    replica: Replica, another: Callable[[str], Replica], database: Database
) -> None:
    await replica.spend("t")
    copy = await Copy(database).take("audit_rows", "audit_heads")
    await replica.spend("t")
    assert await replica.times("t") == 2
    await copy.put_back()
    await replica.audit._has_news()
    assert "went back" in replica.spent.tampered
    assert await replica.times("t") == 2
    await replica.spend("t")
    assert await replica.times("t") == 3
    assert await (await another("r-2").start()).times("t") == 3
    await replica.audit._has_news()
    assert not replica.spent.tampered


async def test_an_operator_whose_row_is_put_back_stays_revoked(
    replica: Replica, another: Callable[[str], Replica], database: Database
) -> None:
    await replica.operators.create("x", "ada", "owner")
    _, token = await replica.operators.create("x", "fired", "owner")
    copy = await Copy(database).take("operators")
    await replica.operators.revoke("ada", "fired")
    await copy.put_back()
    for each in (replica, await another("r-2").start()):
        assert (await each.refused(token.reveal())).reason is Reason.UNAUTHENTICATED
        assert not next(one for one in await each.operators.all() if one.name == "fired").intact
        assert not await database.read(lambda conn, each=each: each.operators.may_order(conn, "fired"))  # type: ignore[misc]
    assert "operator.quarantined" in await replica.kinds()


async def test_a_rotated_token_does_not_come_back_with_the_old_row(replica: Replica, database: Database) -> None:
    made, leaked = await replica.operators.create("x", "ada", "owner")
    copy = await Copy(database).take("operators")
    await replica.operators.rotate_token(Caller("ada", made.role, made.operator_id), "ada")
    await copy.put_back()
    assert (await replica.refused(leaked.reveal())).reason is Reason.UNAUTHENTICATED


async def test_an_operator_whose_row_and_record_are_put_back_stays_revoked_on_a_replica_that_runs(
    replica: Replica, database: Database
) -> None:
    await replica.operators.create("x", "ada", "owner")
    _, token = await replica.operators.create("x", "fired", "owner")
    copy = await Copy(database).take("operators", "audit_rows", "audit_heads")
    await replica.operators.revoke("ada", "fired")
    await replica.audit._has_news()
    await copy.put_back()
    assert (await replica.refused(token.reveal())).reason is Reason.UNAUTHENTICATED
