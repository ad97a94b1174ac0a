"""Retention: issues whose last command ended long ago are forgotten, with their commands.

Mental model
    Every replica looks once an hour. An issue is forgotten only whole, and only once every command of it ended before
    the retention began, as their nodes say: what waits, was sent, or is being cancelled is open, and keeps its issue.
    Readers find what is due, a hundred issues at a time. The writer gets some milliseconds of work, then others have it
    for twice as long: that is 25,000 commands a second, more than a cluster issues. Each deletion says again what it
    may delete, so replicas that do this at once, a result that turns up late, or an end in the middle do no harm:
    whatever is left is found again. What is in hand is never final.
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
from fleet_server.commands.retention_store import Most, Piece, Place
from fleet_server.database.engine import Connection
from fleet_server.database.writer import Transaction

log = get_logger(__name__)

INTERVAL_S = 3600.0
PAUSE_S = 0.002
"""At least, between two transactions."""
_REST = 2.0
"""So many times as long as a transaction's statements took others have the writer to themselves."""
_TARGET_S = 0.004
"""So long they are to take, for others wait for them."""
_MOST = Most(commands=256, output_bytes=4 * 1024 * 1024)
_MIN_PIECES, _MAX_PIECES = 8, 256
"""In a transaction. Each is a statement or two: SQLite does hundreds in the time in which PostgreSQL does dozens."""
_MAX_ISSUES = 128
_MAX_COMMANDS = 8192
"""That are looked at in one read; a single issue may have more."""
_BEGINNING: Place = (-1, "")


class Retention:
    """Forgets commands.

    Args:
        retention_ms: how long an issue is kept after its last command ended.
    """

    def __init__(self, rooms: Rooms, retention_ms: int) -> None:
        self._rooms = rooms
        self._retention_ms = retention_ms
        self._pause_s = PAUSE_S
        self._max_pieces = _MIN_PIECES

    async def run(self) -> None:
        """Forget what is due once an hour, until cancelled; a database that is away costs nothing but time."""
        clock, took_s = self._rooms.clock, 0.0
        while True:
            await clock.sleep(max(PAUSE_S, INTERVAL_S - took_s))
            began_s = clock.monotonic()
            try:
                await self.prune()
            except Refusal as refusal:
                log.warning("command_retention_put_off", reason=refusal.reason)
            took_s = clock.monotonic() - began_s

    async def prune(self) -> int:
        """Forget everything that is due now; how many commands that were. Between transactions others have their turn.

        Raises:
            Refusal: the database is away; what is left is forgotten the next time.
        """
        before_ms = self._rooms.past_ms() - self._retention_ms
        batch, forgotten, after = _Batch(), 0, _BEGINNING
        while True:
            found = await self._rooms.database.read(partial(_look, before_ms, after))
            if found is None:
                break
            after, pieces = found
            for piece in pieces:
                if not batch.takes(piece, self._max_pieces):
                    forgotten += await self._forget(batch, before_ms)
                    batch = _Batch()
                batch.add(piece)
        forgotten += await self._forget(batch, before_ms)
        if forgotten:
            log.info("commands_forgotten", count=forgotten)
        return forgotten

    async def _forget(self, batch: _Batch, before_ms: int) -> int:
        if not batch.pieces:
            return 0
        clock = self._rooms.clock
        await clock.sleep(self._pause_s)

        def work(tx: Transaction) -> tuple[int, float]:
            began_s = clock.monotonic()
            count = retention_store.forget_commands(tx.conn, batch.pieces, before_ms)
            emptied = count == sum(each.end_seq - each.first_seq for each in batch.pieces)
            retention_store.forget_runs(tx.conn, batch.pieces, emptied=emptied)
            retention_store.forget_issues(tx.conn, sorted({each.issue_id for each in batch.pieces}))
            tx.after_commit(lambda: self._rooms.metrics.forgotten.inc(count))
            return count, clock.monotonic() - began_s

        count, took_s = await self._rooms.database.write(work)
        self._pause_s = max(PAUSE_S, _REST * took_s)
        if took_s > _TARGET_S:
            self._max_pieces = max(_MIN_PIECES, self._max_pieces // 2)
        elif took_s < _TARGET_S / 2:
            self._max_pieces = min(_MAX_PIECES, self._max_pieces * 2)
        return count


class _Batch:
    """What one transaction deletes."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self._commands = self._output_bytes = 0

    def takes(self, piece: Piece, max_pieces: int) -> bool:
        """Whether there is room for one more."""
        commands, output_bytes = self._commands + piece.size, self._output_bytes + piece.output_bytes
        fits = commands <= _MOST.commands and output_bytes <= _MOST.output_bytes
        return not self.pieces or (fits and len(self.pieces) < max_pieces)

    def add(self, piece: Piece) -> None:
        """One more."""
        self.pieces.append(piece)
        self._commands += piece.size
        self._output_bytes += piece.output_bytes


def _look(before_ms: int, after: Place, conn: Connection) -> tuple[Place, list[Piece]] | None:
    """The next issues that were made before a time, as far as they ended before it, in pieces; and where they end.
    None behind the last."""
    issues = retention_store.issues_before(conn, before_ms, after, _MAX_ISSUES)
    if not issues:
        return None
    taken, commands = [issues[0]], issues[0].commands
    for issue in issues[1:]:
        commands += issue.commands
        if commands > _MAX_COMMANDS:
            break
        taken.append(issue)
    pieces = retention_store.pieces(conn, [issue.issue_id for issue in taken], before_ms, _MOST)
    return (taken[-1].issued_at_ms, taken[-1].issue_id), pieces
