"""SQLite keeps any type in any column: whatever somebody writes there is exported, so that who verifies can name it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from fleet.audit_chain import ChainSummary, ChainVerifier
from fleet.audit_findings import AuditFinding, RowReordered
from fleet.v1 import admin_pb2
from fleet_server.admin.access import Caller
from fleet_server.admin.rules import Role
from fleet_server.admin.trail import TrailApi
from fleet_server.audit.acceptance import accept
from fleet_server.database.engine import Database
from fleet_server.database.schema import metadata
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.audit.test_audit import CLUSTER, authority, begin
from tests.unit.fleet_server.audit.test_tampering import Replica

ODD: list[Any] = ["text", b"\xff\x00", 1.5, -7, 2**62]


@pytest.fixture
async def replica(tmp_path: Path, clock: MockClock) -> AsyncIterator[Replica]:
    url = f"sqlite:///{tmp_path / 'fleet.db'}"
    engine = create_engine(url)
    metadata.create_all(engine)
    engine.dispose()
    database = Database(url, readers=1)
    database.start()
    made = Replica(database, clock)
    await begin(database, made.audit)
    for number in range(3):
        await made.deed(f"n-{number}")
    assert await made.sign()
    yield made
    await database.close()


async def exported(replica: Replica) -> ChainSummary:
    """What `fleetctl audit verify` makes of it."""
    verifier = ChainVerifier(cluster_id=CLUSTER, authority_keys={authority.key_id: authority.public_key})
    caller = Caller("ada", Role.OWNER, "o-1")
    async for page in TrailApi(replica.audit).export(caller, admin_pb2.ExportAuditRequest()):
        for entry in page.entries:
            verifier.add_row(entry)
        for checkpoint in page.checkpoints:
            verifier.add_checkpoint(checkpoint)
    return verifier.finish()


async def test_a_row_of_odd_values_is_a_finding(replica: Replica) -> None:
    before = await replica.copy("audit_rows")
    for column in ("writer", "number", "at_ms", "kind", "actor", "subject", "detail", "previous_hash", "hash"):
        for odd in ODD:
            await replica.edit(f"UPDATE audit_rows SET {column} = ? WHERE number = 2", odd)
            with pytest.raises(AuditFinding):
                await exported(replica)
            await replica.put_back("audit_rows", before)
        await replica.edit(f"UPDATE audit_rows SET {column} = CAST(? AS TEXT) WHERE number = 2", b"\xff")  # is no text
        with pytest.raises(AuditFinding):
            await exported(replica)
        await replica.put_back("audit_rows", before)
    assert (await exported(replica)).rows == 3


async def test_a_position_of_odd_values_hides_no_row(replica: Replica) -> None:
    await replica.edit("UPDATE audit_rows SET position = ? WHERE number = 3", 2**62)
    assert (await exported(replica)).rows == 3
    await replica.edit("UPDATE audit_rows SET position = -7 WHERE number = 3")
    with pytest.raises(RowReordered):
        await exported(replica)


@pytest.mark.parametrize("odd", [b"\xff", b"\xffr-1"])
async def test_a_head_of_no_text_is_told_and_stops_no_checkpoint(replica: Replica, odd: bytes) -> None:
    await replica.edit("INSERT INTO audit_heads SELECT CAST(? AS TEXT), number, hash, mac FROM audit_heads", odd)
    await replica.deed()
    assert await replica.sign()
    assert replica.metrics.tampered.labels("head").value == 1


async def test_a_checkpoint_of_odd_values_is_a_finding(replica: Replica) -> None:
    before = await replica.copy("audit_checkpoints")
    for odd in ODD:
        await replica.edit("UPDATE audit_checkpoints SET signed = ?", odd)
        with pytest.raises(AuditFinding):
            await exported(replica)
        await replica.put_back("audit_checkpoints", before)
    assert (await exported(replica)).uncovered_rows == 0


@pytest.mark.parametrize("odd", ["text", b"\xff\x00", 2**62])
async def test_a_checkpoint_whose_number_is_none_stops_no_server(replica: Replica, odd: Any) -> None:
    await replica.edit("INSERT INTO audit_checkpoints SELECT ?, position, at_ms, signed FROM audit_checkpoints", odd)
    await replica.deed()
    assert not await replica.sign()
    assert await replica.alarms() == ["a later checkpoint"]
    taken = await replica.database.write(
        lambda tx: accept(tx.conn, replica.audit.heads, replica.audit.checkpoints, CLUSTER, lambda raw: True)
    )
    assert taken.removed == 1
    assert await replica.sign()
    assert (await exported(replica)).uncovered_rows == 0


@pytest.mark.parametrize("odd", ODD[:3])
async def test_a_person_takes_an_audit_of_odd_values_as_it_stands(replica: Replica, odd: Any) -> None:
    for text in (
        "UPDATE audit_rows SET number = ? WHERE number = 3",
        "UPDATE audit_heads SET number = ?",
        "UPDATE audit_checkpoints SET number = ?",
        "INSERT INTO audit_heads SELECT 'n-' || writer, ?, hash, mac FROM audit_heads",
    ):
        await replica.edit(text, odd)
    taken = await replica.database.write(
        lambda tx: accept(tx.conn, replica.audit.heads, replica.audit.checkpoints, CLUSTER, lambda raw: True)
    )
    assert taken.chains["r-1"] == 2
