"""Whether the database still holds what this process has committed.

Mental model
    PostgreSQL's primary dies, and a standby that lacked its last commits takes its place; or somebody restores a backup
    under running servers. What they hold in memory then never happened. So a replica's row counts some of its commits:
    the first on each connection, and then one in `MARK_INTERVAL_S`. Where the row says less than this process knows to
    be committed, the database went back: nothing is written any more, the process ends, and the next one begins with
    what is there. Since a database cannot go back under an open connection, nothing is written on top of it before.
    What was committed within the last interval, with no mark behind it, may get lost unnoticed.
    Other replicas may have lost nothing of their own and still remember what others committed: they end, too, once they
    see that somebody noted it.
    A row that was forgotten and is written anew begins to count at a later Unix millisecond: no process of before has
    counted so far, and takes that of its successor for a database that went back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet_server.audit.rewinds import is_unsettled, newest_rewind
from fleet_server.database.engine import Connection, Database
from fleet_server.database.writer import Transaction
from fleet_server.replicas import mark_store

log = get_logger(__name__)

MARK_INTERVAL_S = 0.1
LOOK_INTERVAL_S = 2.0
END_WITHIN_S = 1.0
"""So long streams may take to go."""
_NOTE_TRIES = 5
_NEXT = (
    "this server ends, and begins again with what the database holds; nodes that are ahead of it are kept out until you"
    " run `fleet-server db restored` (docs/operations/restore.md)"
)


class CommitMarks:
    """Marks commits of one process. SQLite has no other end that could go back.

    Args:
        database: its writer is watched; call before it starts.
        clock: for the intervals.
        replica_id: whose row.
        note: `note(found, since)` writes down what was found; see `note_rewind`.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        replica_id: str,
        note: Callable[[Mapping[str, int], int | None], Awaitable[None]],
    ) -> None:
        self._database = database
        self._clock = clock
        self._replica_id = replica_id
        self._note = note
        self._known = 0
        self._due_s = 0.0
        self._conn: Connection | None = None
        self._marked: tuple[Transaction, int] | None = None
        self._lost: dict[str, int] | None = None
        self._noted_by_others = False
        self._first: int | None = None
        self._found = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        if database.dialect == "postgresql":
            database.writer.before_commit(self._mark)
            database.writer.when_committed(self._committed)

    @property
    def went_back(self) -> bool:
        """Whether the database did."""
        return self._lost is not None or self._noted_by_others

    def look(self, conn: Connection) -> None:
        """See that the database did not go back. On the writer's thread.

        Raises:
            Refusal: UNAVAILABLE, it did.
        """
        stored = mark_store.stored(conn, self._replica_id)
        if stored and stored < self._known:
            self._lose({"marks_known": self._known, "marks_found": stored})
            raise _refusal()

    async def run(self) -> None:
        """Returns once the database went back; it is written down by then, if that could be done."""
        self._loop = asyncio.get_running_loop()
        while self._lost is None:
            try:
                newest, unsettled = await self._database.read(lambda conn: (newest_rewind(conn), is_unsettled(conn)))
                if self._first is None and unsettled:
                    log.error("database_went_back", next="run `fleet-server db restored` (docs/operations/restore.md)")
                self._first = newest if self._first is None else self._first
                if newest > self._first:
                    self._noted_by_others = True
                    log.error("database_went_back", found="by another replica", next=_NEXT)
                    return
            except Refusal as refusal:
                log.debug("rewinds_not_read", reason=str(refusal.reason))
            await self._wait_found()
        log.error("database_went_back", **self._lost, next=_NEXT)
        await self._write_down(self._lost)

    async def _wait_found(self) -> None:
        tick = asyncio.ensure_future(self._clock.sleep(LOOK_INTERVAL_S))
        found = asyncio.ensure_future(self._found.wait())
        try:
            await asyncio.wait((tick, found), return_when=asyncio.FIRST_COMPLETED)
        finally:
            tick.cancel()
            found.cancel()

    async def _write_down(self, lost: Mapping[str, int]) -> None:
        for _ in range(_NOTE_TRIES):
            try:
                await self._note(lost, self._first)
            except Refusal as refusal:
                log.warning("rewind_not_noted", reason=str(refusal.reason), detail=refusal.detail)
                await self._clock.sleep(1.0)
            else:
                return

    def _mark(self, tx: Transaction) -> None:
        if self._lost is not None:
            raise _refusal()
        now_s = self._clock.monotonic()
        if tx.conn is self._conn and now_s < self._due_s:
            return
        number = mark_store.advance(tx.conn, self._replica_id, self._known)
        if number is None:
            self.look(tx.conn)  # or it is not registered yet, or was forgotten, and registers again
        self._due_s = now_s + MARK_INTERVAL_S
        self._marked = (tx, number or 0)

    def _committed(self, tx: Transaction) -> None:
        if self._marked is not None and self._marked[0] is tx:
            self._conn, self._known = tx.conn, self._marked[1]
            self._marked = None

    def _lose(self, lost: dict[str, int]) -> None:
        self._lost = lost
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._found.set)


def _refusal() -> Refusal:
    return Refusal(
        Reason.UNAVAILABLE,
        "the server's database went back in time; nothing was changed. The server begins again with what is there: try"
        " again in a moment",
        retry_after_s=5.0,
    )
