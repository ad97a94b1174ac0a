"""Retention: issues whose last command ended long ago are forgotten, with their commands.

Mental model
    Every replica looks once an hour. An issue is forgotten only whole, and only once every command of it ended before
    the retention began, as their nodes say: what waits, was sent, or is being cancelled is open, and keeps its issue.
    Readers find what is due; the writer gets small pieces, with pauses, and each deletion says again what it may
    delete, so replicas that do this at once, a result that turns up late, or an end in the middle do no harm: whatever
    is left is found again. What is in hand is never final.
    An idempotency key goes with its issue, so nothing is forgotten while its key can come again: an approval issues
    once more under its own while its intent lasts, which is 30 days at most. The audit keeps who ordered what, and what
    became of it.
"""

from __future__ import annotations

from functools import partial

from fleet.errors import Refusal
from fleet.logs import get_logger
from fleet_server.commands import retention_store
from fleet_server.commands.ports import Rooms
from fleet_server.commands.retention_store import Piece, Place
from fleet_server.database.engine import Connection
from fleet_server.database.writer import Transaction

log = get_logger(__name__)

INTERVAL_S = 3600.0
PAUSE_S = 0.01
_PIECE = 32  # commands in a transaction; with the largest outputs 8 MiB
_ISSUES_AT_ONCE = 100
_BEGINNING: Place = (-1, "")


class Retention:
    """Forgets commands.

    Args:
        retention_ms: how long an issue is kept after its last command ended.
    """

    def __init__(self, rooms: Rooms, retention_ms: int) -> None:
        self._rooms = rooms
        self._retention_ms = retention_ms

    async def run(self) -> None:
        """Forget what is due once an hour, until cancelled; a database that is away costs nothing but time."""
        while True:
            await self._rooms.clock.sleep(INTERVAL_S)
            try:
                await self.prune()
            except Refusal as refusal:
                log.warning("command_retention_put_off", reason=refusal.reason)

    async def prune(self) -> int:
        """Forget everything that is due now; how many commands that were. Between transactions others have their turn.

        Raises:
            Refusal: the database is away; what is left is forgotten the next time.
        """
        before_ms = self._rooms.clock.now_ms() - self._retention_ms
        batch, forgotten, after = _Batch(), 0, _BEGINNING
        while True:
            found = await self._rooms.database.read(partial(_page, before_ms, after))
            for after in found:
                for piece in await self._rooms.database.read(partial(_ended, before_ms, after[1])):
                    if not batch.takes(piece):
                        forgotten += await self._forget(batch, before_ms)
                        batch = _Batch()
                    batch.add(piece)
            if len(found) < _ISSUES_AT_ONCE:
                break
        forgotten += await self._forget(batch, before_ms)
        if forgotten:
            log.info("commands_forgotten", count=forgotten)
        return forgotten

    async def _forget(self, batch: _Batch, before_ms: int) -> int:
        if not batch.pieces:
            return 0
        await self._rooms.clock.sleep(PAUSE_S)

        def work(tx: Transaction) -> int:
            count = retention_store.forget_commands(tx.conn, batch.pieces, before_ms)
            retention_store.forget_runs(tx.conn, batch.pieces)
            retention_store.forget_issues(tx.conn, sorted({each.issue_id for each in batch.pieces}))
            tx.after_commit(lambda: self._rooms.metrics.forgotten.inc(count))
            return count

        return await self._rooms.database.write(work)


class _Batch:
    """What one transaction deletes."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self._size = 0

    def takes(self, piece: Piece) -> bool:
        """Whether there is room for one more."""
        return self._size + piece.size <= _PIECE

    def add(self, piece: Piece) -> None:
        """One more."""
        self.pieces.append(piece)
        self._size += piece.size


def _page(before_ms: int, after: Place, conn: Connection) -> list[Place]:
    return retention_store.issues_before(conn, before_ms, after, _ISSUES_AT_ONCE)


def _ended(before_ms: int, issue_id: str, conn: Connection) -> list[Piece]:
    """An issue in pieces, when it ended before a time."""
    if not retention_store.ended_before(conn, issue_id, before_ms):
        return []
    return retention_store.pieces(conn, issue_id, _PIECE)
