"""Somebody writes the database around the server: each is told, and there is a way forward."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fleet import audit_chain
from fleet.audit_chain import row_hash
from fleet.audit_findings import ChainTruncated
from fleet_server.audit import rules
from fleet_server.audit.acceptance import Accepted, accept
from fleet_server.database.engine import Database, sql
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.audit.test_audit import CLUSTER, begin
from tests.unit.fleet_server.audit.test_node_audit import Chain, Desk

NODE = "node:n-1"

Edit = Callable[..., Awaitable[None]]


@pytest.fixture
async def desk(database: Database, clock: MockClock) -> Desk:
    made = Desk(database, clock)
    await begin(database, made.audit)
    return made


@pytest.fixture
def edit(database: Database) -> Edit:
    async def run(text: str, *values: Any) -> None:
        await database.write(lambda tx: tx.conn.exec_driver_sql(sql(tx.conn, text), values).rowcount)

    return run


async def plant(edit: Edit, number: int, previous: bytes, writer: str = NODE) -> bytes:
    """A row hashed as the server hashes, and no head; its hash."""
    said: dict[str, Any] = {
        "writer": writer,
        "number": number,
        "at_ms": 5,
        "kind": "drain.ended",
        "actor": NODE,
        "subject": "n-1",
        "detail": b"{}",
        "previous_hash": previous,
    }
    digest = row_hash(**said)
    await edit(
        "INSERT INTO audit_rows (writer, number, at_ms, kind, actor, subject, detail, previous_hash, hash)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        *said.values(),
        digest,
    )
    return digest


async def restored(desk: Desk, database: Database) -> Accepted:
    """What `fleet-server db restored` does to the audit."""
    return await database.write(
        lambda tx: accept(tx.conn, desk.audit.heads, desk.audit.checkpoints, CLUSTER, lambda raw: True)
    )


async def test_a_row_planted_where_a_nodes_next_one_belongs_is_told_and_the_node_keeps_its_rows(
    desk: Desk, edit: Edit
) -> None:
    chain = Chain().grow(3)
    await desk.take(chain.rows)
    await plant(edit, 4, chain.rows[2].hash)
    for _ in range(2):
        assert await desk.take(chain.grow().rows[3:]) == (3, "CHAIN_BROKEN")
    told = await desk.told("audit.tampered")
    assert [each["what"] for each in told] == ["head"]
    await edit("DELETE FROM audit_rows WHERE writer = ? AND number = 4", NODE)
    assert await desk.take(chain.rows[3:]) == (5, "")
    assert await desk.verified_rows() > 5


async def test_a_row_planted_before_a_node_that_a_person_took_as_it_is_lets_the_node_be_adopted(
    desk: Desk, edit: Edit, database: Database
) -> None:
    chain = Chain().grow(4)
    await desk.take(chain.rows[:3])
    await plant(edit, 4, chain.rows[2].hash)
    await restored(desk, database)
    assert await desk.take(chain.rows[3:]) == (3, "CHAIN_BROKEN")
    assert await database.read(lambda conn: desk.audit.is_broken(conn, "n-1"))
    ack = await desk.give(chain.rows[3:], opened=1)
    assert (ack.number, ack.paused) == (3, "CHAIN_ENDED")
    assert (await desk.give(Chain(number=1).begin(chain, 3).rows, chain=1, opened=1)).number == 1


async def test_a_nodes_head_that_is_put_back_is_told_when_its_rows_come_again(desk: Desk, edit: Edit) -> None:
    chain = Chain().grow(5)
    await desk.take(chain.rows[:3])
    head = (await desk.rows("SELECT number, hash, mac FROM audit_heads WHERE writer = 'node:n-1'"))[0]
    await desk.take(chain.rows[3:])
    await edit("UPDATE audit_heads SET number = ?, hash = ?, mac = ? WHERE writer = 'node:n-1'", *head)
    assert await desk.take(chain.grow().rows[5:]) == (3, "")
    assert await desk.take(chain.rows[3:], sent_back=True) == (3, "CHAIN_BROKEN")
    assert [each["what"] for each in await desk.told("audit.tampered")] == ["head"]


@pytest.mark.parametrize("signed", [99, 5])
async def test_what_was_noted_of_signed_chains_hinders_nobody_once_a_person_has_looked(
    desk: Desk, edit: Edit, database: Database, signed: int
) -> None:
    """Raised, it vouches for rows that never were; set to the end of a chain, it hides that the chain grew."""
    chain = Chain().grow(5)
    await desk.take(chain.rows[:3])
    assert await desk.verified_rows() >= 3
    await desk.take(chain.rows[3:])
    await edit("UPDATE audit_signed SET number = ? WHERE writer = ?", signed, NODE)
    with pytest.raises(AssertionError):
        await desk.verified_rows()
    await restored(desk, database)
    assert await desk.verified_rows() >= 5


async def test_what_is_noted_of_a_nodes_chain_may_be_anything(desk: Desk, edit: Edit, database: Database) -> None:
    chain = Chain().grow(2)
    await desk.take(chain.rows[:1])
    if database.dialect == "sqlite":
        await edit("UPDATE node_audits SET chain = 'text', day = 1.5, day_rows = ?, finding = ?", b"\xff", b"\xff")
    assert await desk.take(chain.rows[1:]) == (2, "")


async def test_a_chain_whose_head_did_not_stand_when_all_were_named_verifies_once_a_person_has_looked(
    desk: Desk, edit: Edit, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, whole in (
        (rules, "is_whole", lambda number: number == 2),
        (audit_chain, "WHOLE_CHECKPOINT_EVERY", 2),
    ):
        monkeypatch.setattr(module, name, whole)
    chain = Chain().grow(3)
    await desk.take(chain.rows)
    assert await desk.verified_rows() == 3
    await edit("UPDATE audit_heads SET mac = hash WHERE writer = ?", NODE)
    await desk.take(chain.grow().rows)
    with pytest.raises(ChainTruncated, match="no longer names"):
        await desk.verified_rows()
    await restored(desk, database)
    assert await desk.verified_rows() > 3


@pytest.mark.parametrize("removed", [[], ["audit_heads"], ["audit_newest", "audit_heads"]])
async def test_rows_that_a_person_took_and_no_server_wrote_are_told_apart_from_those_that_were_signed(
    desk: Desk, edit: Edit, database: Database, removed: list[str]
) -> None:
    """Else the way out of a forgery makes history of it."""
    chain = Chain().grow(3)
    await desk.take(chain.rows)
    assert await desk.verified_rows() >= 3
    await plant(edit, 4, chain.rows[2].hash)
    await plant(edit, 1, bytes(32), writer="r-ghost")
    for table in removed:
        await edit(f"DELETE FROM {table}")
    taken = await restored(desk, database)
    assert taken.unvouched == {NODE: (4, 4), "r-ghost": (1, 1)}


async def test_a_node_that_waits_for_what_is_noted_of_its_day_is_told_of(desk: Desk, edit: Edit) -> None:
    """Whoever writes the database sets each number there, and once also that it had been told."""
    chain = Chain().grow(2)
    await desk.take(chain.rows[:1])
    await edit("UPDATE node_audits SET day_rows = 1000000")
    for _ in range(2):
        assert await desk.take(chain.rows[1:]) == (1, "OVER_QUOTA")
    assert await desk.told("node.audit_paused") == [{"bytes": 130, "rows": 1000000}]
