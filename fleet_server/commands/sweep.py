"""What only time decides: commands that expired unsent, and signed ones that nobody will hear of any more."""

from __future__ import annotations

from fleet.errors import Refusal
from fleet.logs import get_logger
from fleet_server.commands import rules, store
from fleet_server.commands.cancels import Cancels
from fleet_server.commands.changes import Announcer
from fleet_server.commands.delivery import Delivery
from fleet_server.commands.ports import Rooms
from fleet_server.database.writer import Transaction

log = get_logger(__name__)

INTERVAL_S = 5.0
RELOAD_EVERY = 12
_BATCH = 500
_MANY = _BATCH // 2
"""More than that, and there may be others: of those that were found some may be held, by who ends them or by a replica
that froze. Where most are, another one sweeps at this moment."""


class Sweep:
    """Sweeps in small batches, so that no other write waits long behind one."""

    def __init__(self, rooms: Rooms, announcer: Announcer, delivery: Delivery, cancels: Cancels) -> None:
        self._rooms = rooms
        self._announcer = announcer
        self._delivery = delivery
        self._cancels = cancels

    async def load(self) -> None:
        """Read what is kept in memory: open commands by node, and cancels that wait."""
        await self._rooms.database.write(self._reload)

    async def run(self) -> None:
        """Sweep until cancelled. While the database is away nothing is lost: the next round does it."""
        rounds = 0
        while True:
            await self._rooms.clock.sleep(INTERVAL_S)
            rounds += 1
            try:
                await self.sweep()
                if rounds % RELOAD_EVERY == 0:
                    await self.load()
            except Refusal as refusal:
                log.warning("command_sweep_put_off", reason=refusal.reason)

    async def sweep(self) -> None:
        """Everything that is due now."""
        while await self._rooms.database.write(self._expire) > _MANY:
            pass
        while await self._rooms.database.write(self._give_up) > _MANY:
            pass

    def _expire(self, tx: Transaction) -> int:
        now_ms = self._rooms.clock.now_ms()
        rows = store.unsigned_past(tx.conn, self._rooms.past_ms(), _BATCH)
        self._delivery.expire(tx, rows, now_ms)
        return len(rows)

    def _give_up(self, tx: Transaction) -> int:
        now_ms = self._rooms.clock.now_ms()
        rows = store.signed_past(tx.conn, self._rooms.past_ms() - rules.SILENCE_MS, _BATCH)
        self._announcer.declare_unknown(tx, rows, rules.NO_ANSWER, now_ms)
        return len(rows)

    def _reload(self, tx: Transaction) -> None:
        self._announcer.recount(tx)
        self._cancels.reload(tx)
