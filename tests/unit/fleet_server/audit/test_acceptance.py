"""A person says that the audit counts as it stands, while servers run."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest
from sqlalchemy import create_engine

from fleet_server.audit.acceptance import accept
from fleet_server.database.engine import Database
from fleet_server.database.schema import metadata
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.audit.test_audit import CLUSTER, begin
from tests.unit.fleet_server.audit.test_tampering import Replica


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    engine = create_engine(postgres_url)
    metadata.create_all(engine)
    engine.dispose()
    database = Database(postgres_url, readers=1)
    database.start()
    yield database
    await database.close()


async def test_no_checkpoint_is_signed_between_the_look_and_the_word(
    database: Database, postgres_url: str, clock: MockClock
) -> None:
    """One that was would be deleted, and the server that signed it would take that for an attack."""
    replica = Replica(database, clock)
    await begin(database, replica.audit)
    await replica.deed()
    assert await replica.sign()
    free: list[bool] = []

    def is_signed(raw: bytes) -> bool:
        with psycopg.connect(postgres_url.replace("+psycopg", "")) as other:
            rows = other.execute("SELECT number FROM audit_newest FOR UPDATE SKIP LOCKED").fetchall()
        free.append(bool(rows))
        return True

    await database.write(lambda tx: accept(tx.conn, replica.audit.heads, replica.audit.checkpoints, CLUSTER, is_signed))
    assert free == [False]
    await replica.deed()
    assert await replica.sign()
    assert not await replica.alarms()
