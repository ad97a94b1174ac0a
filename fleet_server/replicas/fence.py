"""One process a replica id: who holds it writes its audit chain and speaks for its nodes.

Mental model
    A copied data folder, one FLEET_REPLICA_ID given twice, a container that was thought dead: two processes of one name
    would continue one audit chain and take each other's nodes offline. So the row of a replica names its process, by a
    boot id, and whatever is written under the name is written by that process alone.
    A start takes the name over. It may at once where the lock of the data folder proves that the process before is
    gone: the boot id tells in which folder, on which running kernel, that lock was held. Otherwise it watches the row
    for a while, on its own monotonic clock: one that beats is left alone, and the start refused.
    Who finds another boot id in its row was replaced, and stops at once; unless the database went back to a process of
    before.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet_server.database.engine import Connection, Database
from fleet_server.database.writer import Transaction
from fleet_server.replicas import rules, store
from fleet_server.replicas.rules import Holder

log = get_logger(__name__)

PATIENCE_S = 3 * rules.HEARTBEAT_INTERVAL_S
_LOOK_S = 0.25


class NameTakenError(Exception):
    """Another process serves under this replica's id. The message says what to do."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What a look at the row found: who holds it, and since when that did not change, in monotonic seconds."""

    holder: Holder | None
    since_s: float


class Fence:
    """This process's hold on a replica id.

    Args:
        database: where the row stands.
        clock: its monotonic time alone counts.
        replica_id: the name.
        place: tells the data folder that this process has locked from every other one; empty when it has locked none.
        version: software version, for the row.
        see_not_rewound: `see_not_rewound(conn)` raises a `Refusal` when the database went back in time.
    """

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        replica_id: str,
        place: str,
        version: str,
        see_not_rewound: Callable[[Connection], None] = lambda conn: None,
    ) -> None:
        self._database = database
        self._clock = clock
        self._replica_id = replica_id
        self.boot_id = rules.boot_id(place or secrets.token_hex(8), secrets.token_hex(8))
        self._version = version
        self._see_not_rewound = see_not_rewound
        self.replaced = asyncio.Event()
        """Another process has taken the name."""
        self._loop: asyncio.AbstractEventLoop | None = None

    async def take(self) -> None:
        """Take the name; before anything is written under it.

        Raises:
            NameTakenError: another process holds it, and lives.
            Refusal: the database is away.
        """
        self._loop = asyncio.get_running_loop()
        holder = await self._wait_silent()
        if not await self._database.write(partial(self._claim, holder)):
            raise self._taken()  # by another one that started just now, from another copy
        if holder is not None and rules.is_foreign(holder, self.boot_id):
            log.warning("replica_taken_over", replica_id=self._replica_id, state=str(holder.state))

    def check(self, conn: Connection) -> None:
        """See that this process still holds the name. On the writer's thread.

        Raises:
            Refusal: UNAVAILABLE, it was replaced, or the database went back in time.
        """
        holder = store.holder(conn, self._replica_id)
        if holder is not None and holder.boot_id != self.boot_id:
            self._see_not_rewound(conn)
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self.replaced.set)
            raise Refusal(
                Reason.UNAVAILABLE,
                f"another process serves as replica {self._replica_id} now, and this one stops: try again in a moment",
                retry_after_s=1.0,
            )

    async def _wait_silent(self) -> Holder | None:
        """Return once whoever holds the name is surely, or most likely, gone; who it was."""
        found: _Found | None = None
        while True:
            holder = await self._database.read(lambda conn: store.holder(conn, self._replica_id))
            if holder is None or rules.is_known_gone(holder, self.boot_id):
                return holder
            now_s = self._clock.monotonic()
            if found is None:
                log.info("replica_id_in_use", replica_id=self._replica_id, watched_for_s=PATIENCE_S)
                found = _Found(holder, now_s)
            elif holder != found.holder:
                raise self._taken()
            if now_s - found.since_s >= PATIENCE_S:
                return holder
            await self._clock.sleep(_LOOK_S)

    def _claim(self, before: Holder | None, tx: Transaction) -> bool:
        return store.claim(
            tx.conn, self._replica_id, self.boot_id, before, version=self._version, now_ms=self._clock.now_ms()
        )

    def _taken(self) -> NameTakenError:
        return NameTakenError(
            f"another process serves as replica {self._replica_id}, and gave a sign of life just now: stop it, or give"
            " this one a replica_id of its own. In a copy of its data folder delete the file `replica-id`"
        )
