"""The record of which secret encryption key writes, while several processes read and write it."""

import asyncio
import os
import threading
from collections.abc import Iterator

import pytest

from fleet.secrets import Secret
from fleet_server.database.engine import Database
from fleet_server.database.statements import fetch
from fleet_server.database.writer import Transaction
from fleet_server.trust import master_key_store, master_keys
from fleet_server.trust.secrets import Secrets
from tests.fakes.databases import SharedDatabase


@pytest.fixture
def database_url(postgres_shared: SharedDatabase) -> Iterator[str]:
    """PostgreSQL: the other has one writer at a time, whatever the statement."""
    yield postgres_shared.url
    postgres_shared.empty()


async def test_who_waits_while_another_ends_the_change_finds_it_ended(database: Database, database_url: str) -> None:
    new = Secrets(Secret(os.urandom(32)))
    other = Database(database_url, readers=1)
    other.start()

    def change(tx: Transaction) -> None:
        master_key_store.put_sealed(tx.conn, master_keys.TOKEN_ROOT, b"sealed")
        master_keys._save(tx.conn, new, changed_at_ms=1, done_at_ms=0)

    await database.write(change)
    about_to_end = threading.Event()

    def end(tx: Transaction) -> None:
        master_keys.end_change(tx.conn, new, 2)
        about_to_end.set()
        while not fetch(tx.conn, "SELECT 1 FROM pg_locks WHERE NOT granted"):
            continue  # until the other one waits for this transaction

    ending = asyncio.create_task(database.write(end))
    await asyncio.to_thread(about_to_end.wait)
    looking = asyncio.create_task(other.write(lambda tx: master_keys.read_state(tx.conn, new, lock=True)))
    await ending
    assert await looking == master_keys.KeyState(new.key_ids[0], 1, 2)
    await other.close()
