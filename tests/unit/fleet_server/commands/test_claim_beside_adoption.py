"""A replica claims commands for a node while another one gives the node to another machine: two real writers."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import psycopg
import pytest

from fleet.errors import Refusal
from fleet_server.commands import rules, store
from fleet_server.database.engine import Database
from fleet_server.database.writer import Transaction
from fleet_server.nodes import stream_store
from tests.fakes.clock import MockClock
from tests.fakes.databases import SharedDatabase
from tests.unit.fleet_server.commands.room import Room, open_room, order

WAITS = "SELECT 1 FROM pg_locks WHERE NOT granted"


@pytest.fixture
async def room(postgres_shared: SharedDatabase, clock: MockClock) -> AsyncIterator[Room]:
    database = Database(postgres_shared.url, readers=2)
    database.start()
    yield await open_room(database, clock)
    await database.close()
    postgres_shared.empty()


async def test_what_is_claimed_beside_an_adoption_lies_under_its_floor_or_is_not_claimed(
    room: Room, postgres_shared: SharedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await room.add_node("n1")
    epoch = await room.open_stream(node.node_id)
    await room.another_replica().issue("alice", order("n1"))  # not in hand here
    elsewhere = Database(postgres_shared.url, readers=1)
    elsewhere.start()
    looked, adopted = threading.Event(), threading.Event()
    pending = store.pending

    def slowly(*arguments: object) -> object:
        """The claim has looked at the epoch; the adoption is done, or waits, before it goes on."""
        looked.set()
        with psycopg.connect(postgres_shared.url.replace("+psycopg", ""), autocommit=True) as watcher:
            while not adopted.is_set() and watcher.execute(WAITS).fetchone() is None:
                pass
        return pending(*arguments)  # type: ignore[arg-type]

    def adopt(tx: Transaction) -> int:
        def hook(tx: Transaction, node_id: str, replaced: bool) -> None:
            floors.append(room.commands.abandon_signed(tx, node_id, replaced))

        floors: list[int] = []
        room.nodes.on_adopt(hook)
        room.nodes._adopted(tx, node.node_id, replaced=False)
        stream_store.end_streams(tx.conn, node.node_id)
        return floors[-1]

    monkeypatch.setattr(store, "pending", slowly)
    claiming = asyncio.create_task(room.commands.claim_pending(node.node_id, epoch, after_seq=0, limit=32))
    await asyncio.to_thread(looked.wait, 10)
    floor = await _write(elsewhere, adopt, adopted)
    try:
        claimed = [command.seq for command in await claiming]
    except Refusal:
        claimed = []
    await elsewhere.close()

    assert all(seq <= floor for seq in claimed)
    assert await room.state(node.node_id, 1) == (rules.INTERRUPTED if claimed else rules.QUEUED)


async def _write(database: Database, work: Callable[[Transaction], int], done: threading.Event) -> int:
    try:
        return await database.write(work)
    finally:
        done.set()
