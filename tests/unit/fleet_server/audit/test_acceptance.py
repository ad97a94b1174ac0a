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
    looked = 0

    def is_signed(raw: bytes) -> bool:
        nonlocal looked
        looked += 1
        with (
            psycopg.connect(postgres_url.replace("+psycopg", "")) as other,
            pytest.raises(psycopg.errors.LockNotAvailable),
        ):
            other.execute("SELECT number FROM audit_newest FOR UPDATE NOWAIT")
        return True

    await database.write(lambda tx: accept(tx.conn, replica.audit.heads, replica.audit.checkpoints, CLUSTER, is_signed))
    assert looked
    await replica.deed()
    assert await replica.sign()
    assert not await replica.alarms()
