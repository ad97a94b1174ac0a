"""Marks of a replica's commits, on the database that can go back."""

import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest

from fleet.errors import Reason, Refusal
from fleet.secrets import Secret
from fleet_server.audit.rewinds import is_unsettled, newest_rewind, note_rewind, settle
from fleet_server.database.engine import Connection, Database
from fleet_server.database.writer import Transaction
from fleet_server.replicas import mark_store
from fleet_server.replicas.fence import Fence
from fleet_server.replicas.marks import LOOK_INTERVAL_S, MARK_INTERVAL_S, CommitMarks
from fleet_server.trust.secrets import Secrets
from tests.fakes.clock import MockClock
from tests.fakes.databases import SharedDatabase

ME = "replica-a"


class Marked:
    """One process's database with its marks."""

    def __init__(self, url: str, clock: MockClock) -> None:
        self.noted: list[tuple[Mapping[str, int], int | None]] = []
        self.database = Database(url, readers=1)
        self.marks = CommitMarks(self.database, clock, ME, self._note)
        self.database.start()

    async def _note(self, found: Mapping[str, int], since: int | None) -> None:
        self.noted.append((found, since))

    async def write(self) -> None:
        await self.database.write(lambda tx: None)

    async def register(self) -> None:
        def work(tx: Transaction) -> None:
            tx.conn.exec_driver_sql(
                "INSERT INTO replicas (replica_id, version, state, started_at_ms, heartbeat_at_ms)"
                f" VALUES ('{ME}', '1', 'READY', 0, 0) ON CONFLICT (replica_id) DO UPDATE SET state = 'READY'"
            )

        await self.database.write(work)

    async def mark(self) -> int | None:
        return await self.database.read(lambda conn: mark_store.stored(conn, ME))

    async def set_mark(self, number: int) -> None:
        """As a standby that lacked commits has it: the connection is another one, too."""
        await self.elsewhere(f"UPDATE replicas SET commit_mark = {number}")

    async def elsewhere(self, statement: str) -> None:
        other = Database(self.url, readers=1)
        other.start()
        await other.write(lambda tx: tx.conn.exec_driver_sql(statement))
        await other.close()

    def fence(self, clock: MockClock, place: str = "here") -> Fence:
        return Fence(
            database=self.database,
            clock=clock,
            replica_id=ME,
            place=place,
            version="1",
            see_not_rewound=self.marks.look,
        )

    @property
    def url(self) -> str:
        return self.database._write_engine.url.render_as_string(hide_password=False)


@pytest.fixture
async def marked(postgres_shared: SharedDatabase, clock: MockClock) -> AsyncIterator[Marked]:
    made = Marked(postgres_shared.url, clock)
    yield made
    await made.database.close()
    postgres_shared.empty()


async def test_a_commit_now_and_then_is_marked(marked: Marked, clock: MockClock) -> None:
    await marked.register()
    assert await marked.mark() == 1
    await marked.write()
    assert await marked.mark() == 1, "it was marked a moment ago"
    await clock.advance(2 * MARK_INTERVAL_S)
    await marked.write()
    assert await marked.mark() == 2


async def test_nothing_is_written_on_top_of_a_database_that_went_back(marked: Marked, clock: MockClock) -> None:
    await marked.register()
    for _ in range(3):
        await clock.advance(2 * MARK_INTERVAL_S)
        await marked.write()
    running = asyncio.create_task(marked.marks.run())
    await clock.wait_sleepers(1)
    await clock.advance(2 * MARK_INTERVAL_S)
    await marked.set_mark(2)
    for _ in range(2):
        with pytest.raises(Refusal, match="went back in time") as refused:
            await marked.write()
        assert refused.value.reason is Reason.UNAVAILABLE
    assert await marked.mark() == 2
    await asyncio.wait_for(running, 10)
    assert marked.marks.went_back
    assert marked.noted == [({"marks_known": 4, "marks_found": 2}, 0)]


async def test_the_first_commit_on_a_connection_finds_out_at_once(marked: Marked, clock: MockClock) -> None:
    await marked.register()
    await clock.advance(2 * MARK_INTERVAL_S)
    await marked.write()
    await marked.set_mark(1)
    await marked.write()  # nothing can go back under an open connection
    await marked.database.read(lambda conn: None)
    marked.database.writer._drop_connection()
    with pytest.raises(Refusal, match="went back in time"):
        await marked.write()


async def test_a_replica_that_was_forgotten_registers_again(marked: Marked, clock: MockClock) -> None:
    await marked.register()
    await marked.database.write(lambda tx: tx.conn.exec_driver_sql("DELETE FROM replicas"))
    await clock.advance(2 * MARK_INTERVAL_S)
    await marked.write()
    await marked.register()
    await clock.advance(2 * MARK_INTERVAL_S)
    await marked.write()
    assert not marked.marks.went_back


async def test_a_database_that_went_back_to_a_process_of_before_is_taken_for_no_successor(
    marked: Marked, clock: MockClock
) -> None:
    """It would end for good, and tell people to look for another process of its name."""
    fence = marked.fence(clock)
    await fence.take()
    before = await marked.mark()
    assert before is not None
    await clock.advance(2 * MARK_INTERVAL_S)
    await marked.write()
    await marked.elsewhere(f"UPDATE replicas SET boot_id = 'here.before', commit_mark = {before - 1}")
    marked.database.writer._drop_connection()
    with pytest.raises(Refusal, match="went back in time"):
        await marked.database.write(lambda tx: fence.check(tx.conn))
    assert marked.marks.went_back
    assert not fence.replaced.is_set()


async def test_a_successor_whose_row_is_new_is_taken_for_no_database_that_went_back(
    marked: Marked, postgres_shared: SharedDatabase, clock: MockClock
) -> None:
    """This process stood still for so long that its row was forgotten, and another one has its name."""
    fence = marked.fence(clock)
    await fence.take()
    for _ in range(3):
        await clock.advance(2 * MARK_INTERVAL_S)
        await marked.write()
    await marked.elsewhere("DELETE FROM replicas")
    await clock.advance(25 * 3600)
    later = Marked(postgres_shared.url, clock)
    await later.fence(clock, "there").take()
    await marked.write()
    with pytest.raises(Refusal, match="this one stops"):
        await marked.database.write(lambda tx: fence.check(tx.conn))
    await asyncio.wait_for(fence.replaced.wait(), 10)
    assert not marked.marks.went_back
    await later.database.close()


async def test_a_process_of_the_same_id_that_came_later_is_not_taken_for_it(
    marked: Marked, postgres_shared: SharedDatabase, clock: MockClock
) -> None:
    await marked.register()
    later = Marked(postgres_shared.url, clock)
    await later.register()
    for _ in range(3):
        await clock.advance(2 * MARK_INTERVAL_S)
        await later.write()
        await marked.write()
    assert not marked.marks.went_back
    assert not later.marks.went_back
    await later.database.close()


async def test_what_one_replica_found_ends_the_others(marked: Marked, clock: MockClock) -> None:
    await marked.register()
    running = asyncio.create_task(marked.marks.run())
    await clock.wait_sleepers(1)
    for _ in range(2):  # two that find one and the same
        await note_rewind(marked.url, Secrets(Secret(b"\x07" * 32)).row_mac, clock, found_by="replica-b", detail={})
    await clock.advance(LOOK_INTERVAL_S)
    await asyncio.wait_for(running, 10)
    assert marked.marks.went_back
    assert marked.noted == [], "it is noted already"
    assert await marked.database.read(is_unsettled)
    await marked.database.write(lambda tx: settle(tx.conn, 1))
    assert not await marked.database.read(is_unsettled)


async def test_who_finds_it_late_ends_nobody_who_began_again_since(marked: Marked, clock: MockClock) -> None:
    async def found(since: int | None) -> int:
        row_mac = Secrets(Secret(b"\x07" * 32)).row_mac
        await note_rewind(marked.url, row_mac, clock, found_by="replica-b", detail={}, since=since)
        return await marked.database.read(newest_rewind)

    assert await found(0) == 1
    await marked.database.write(lambda tx: settle(tx.conn, 1))
    await clock.advance(600)
    assert await found(0) == 1, "it was frozen all the while"
    assert not await marked.database.read(is_unsettled), "and nobody has to say it again"
    assert await found(1) == 2, "it began after the first: this is another one, however soon"
    assert await found(None) == 2
    await marked.database.write(lambda tx: settle(tx.conn, 1))
    assert await found(None) == 3


async def test_replicas_that_find_it_in_the_same_moment_note_it_once(marked: Marked, clock: MockClock) -> None:
    row_mac = Secrets(Secret(b"\x07" * 32)).row_mac
    found = [note_rewind(marked.url, row_mac, clock, found_by=f"replica-{name}", detail={}) for name in "bcdef"]
    await asyncio.gather(*found)

    def noted(conn: Connection) -> list[int]:
        queries = ("SELECT count(*) FROM rewinds", "SELECT count(*) FROM audit_rows WHERE kind = 'database.went_back'")
        return [conn.exec_driver_sql(query).scalar_one() for query in queries]

    assert await marked.database.read(noted) == [1, 5]
