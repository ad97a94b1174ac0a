"""`fleet-server secrets rekey`: everything under a new secret encryption key, while servers run.

Mental model
    Servers that hold both keys open and verify under either; the database says which one they write under.
    First everybody has to hold both: a replica that knew the old key alone would take rows under the new one for
    forged. Then the database names the new key, and every replica tells that it writes under it. From then on rows
    under the old key only become fewer. Walks over all tables seal and mark them anew, a small batch a transaction,
    until one whole walk finds nothing left.
    Whatever is under the new key already is passed over, so being killed at any point costs a walk, and no more. So do
    two runs at once: each row is put under the new key by one of them, and each looks at all of them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet.secrets import Secret
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.service import AuditService
from fleet_server.commands.marks import CommandWalk
from fleet_server.database.engine import Connection, Database
from fleet_server.database.marked import MARKED_TABLES
from fleet_server.database.wakeup import Wakeup
from fleet_server.database.writer import Transaction
from fleet_server.replicas.rules import LIVING, LOST_AFTER_S, HeartbeatWatch, ReplicaRecord
from fleet_server.replicas.service import all_replicas
from fleet_server.trust import master_keys
from fleet_server.trust.keyring import TrustSetupError
from fleet_server.trust.reseal import Batch, TableWalk
from fleet_server.trust.secrets import Secrets

BATCH_ROWS = 200
PAUSE_S = 0.01
"""Between two batches, so that servers on the same SQLite file get their turn."""
_RETRY_S = 1.0
_MAX_TRIES = 30
_LOOK_S = 0.5
_PATIENCE_S = LOST_AFTER_S + 5.0
_WRITER = "rekey-"
_SHOWN_REFUSED = 100


class Walk(Protocol):
    """One table under a change of keys."""

    name: str

    def batch(self, conn: Connection, after: tuple[Any, ...] | None, limit: int) -> Batch:
        """Do the next rows after a key."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a change came to: rows put under the new key by this run, and names of those that verify under neither."""

    done: int
    refused: tuple[str, ...]


class Change:
    """One run.

    Args:
        url: of the database.
        old: the key that ends.
        new: the key that begins.
        clock: for pauses and times.
        say: takes progress for the person.
    """

    def __init__(
        self, url: str, *, old: Secret[bytes], new: Secret[bytes], clock: Clock, say: Callable[[str], None]
    ) -> None:
        self._old, self._new = Secrets(old), Secrets(new)
        self._clock = clock
        self._say = say
        self._database = Database(url, readers=1)
        # A chain of its own: two runs at once, on two machines, must not both go on with one.
        writer = _WRITER + os.urandom(4).hex()
        self._audit = AuditService(
            database=self._database, clock=clock, wakeup=Wakeup(), writer=writer, row_mac=Secrets(new, old).row_mac
        )
        self._walks = _walks(self._old, self._new)
        # Nothing under the old key counts once the change has ended: what is, somebody wrote around the server since.
        self._looks = {walk.name: walk for walk in _walks(self._new, self._new)}

    async def run(self) -> Outcome:
        """Do all of it.

        Raises:
            TrustSetupError: both keys are one, or the database is under neither.
            Refusal: a living replica does not hold both keys, or the database is away.
        """
        self._database.start()
        try:
            return await self._run()
        finally:
            await self._database.close()

    async def _run(self) -> Outcome:
        old_id, new_id = self._old.key_ids[0], self._new.key_ids[0]
        if old_id == new_id:
            raise TrustSetupError(
                "the new secret encryption key is the old one: make one with `openssl rand -base64 32`"
            )
        state = await self._database.read(lambda conn: master_keys.read_state(conn, self._old, self._new))
        writing = state.key_id
        if writing not in (old_id, new_id):
            raise TrustSetupError(
                "this database is kept under neither of these secret encryption keys: name the right one"
            )
        if writing == old_id:
            await self._wait_replicas(
                lambda keys: {old_id.hex(), new_id.hex()} <= set(keys),
                "hold both keys: start them with the new one"
                " as secret_encryption_key_file and the old one as secret_encryption_key_previous_file",
            )
            await self._write(self._begin)
        elif state.done_at_ms:
            self._say("the change has ended already: looking for rows that are not under the new key")
        else:
            self._say("the new key writes already: going on")
        await self._wait_replicas(lambda keys: keys[:1] == [new_id.hex()], "write under the new key")
        done: Counter[str] = Counter()
        refused: dict[str, None] = {}
        while await self._walk_all(done, refused):
            pass
        outcome = Outcome(done.total(), tuple(refused))
        await self._write(lambda tx: self._end(tx, done, outcome))
        return outcome

    async def _walk_all(self, done: Counter[str], refused: dict[str, None]) -> bool:
        """One walk over everything; whether it found something that was not under the new key."""
        found = False
        for walk in self._walks:
            after: tuple[Any, ...] | None = None
            seen, before = 0, done[walk.name]
            while True:
                batch = await self._batch(walk, after)
                seen += batch.seen
                done[walk.name] += batch.done
                refused |= dict.fromkeys(batch.refused)
                found = found or bool(batch.done or batch.missed)
                if batch.last is None:
                    break
                after = batch.last
                await self._clock.sleep(PAUSE_S)
            if done[walk.name] > before:
                self._say(f"{walk.name}: {seen} rows seen, {done[walk.name] - before} put under the new key")
        return found

    async def _batch(self, walk: Walk, after: tuple[Any, ...] | None) -> Batch:
        def work(tx: Transaction) -> Batch:
            ended = master_keys.read_state(tx.conn, self._new, lock=True).done_at_ms  # by another run, it may be
            return (self._looks[walk.name] if ended else walk).batch(tx.conn, after, BATCH_ROWS)

        batch: Batch = await self._write(work)
        return batch

    async def _write(self, work: Callable[[Transaction], Any]) -> Any:
        """Write, and be patient with a database that is away or busy for a moment."""
        for attempt in range(1, _MAX_TRIES + 1):
            try:
                return await self._database.write(work)
            except Refusal as refusal:
                if refusal.reason is not Reason.UNAVAILABLE or attempt == _MAX_TRIES:
                    raise
            await self._clock.sleep(_RETRY_S)
        raise AssertionError("unreachable")

    def _begin(self, tx: Transaction) -> None:
        if master_keys.begin_change(tx.conn, self._old, self._new, self._clock.now_ms()):
            self._tell(tx, AuditKind.SECRETS_REKEY_STARTED, {"old": self._old.key_ids[0].hex()})

    def _end(self, tx: Transaction, done: Counter[str], outcome: Outcome) -> None:
        master_keys.end_change(tx.conn, self._new, self._clock.now_ms())
        self._tell(
            tx,
            AuditKind.SECRETS_REKEYED,
            {
                "rows": {name: count for name, count in sorted(done.items()) if count},
                "refused": list(outcome.refused[:_SHOWN_REFUSED]),
                "refused_count": len(outcome.refused),
            },
        )

    def _tell(self, tx: Transaction, kind: AuditKind, detail: dict[str, Any]) -> None:
        subject = self._new.key_ids[0].hex()
        self._audit.append(tx, kind, actor="fleet-server secrets rekey", subject=subject, detail=detail)

    async def _wait_replicas(self, ready: Callable[[list[str]], bool], what: str) -> None:
        """Until every replica that beats is `ready`; one that stands still is dead and holds nothing up."""
        watch = HeartbeatWatch()
        began_s = self._clock.monotonic()
        while True:
            replicas = await all_replicas(self._database)
            lost = watch.lost(replicas, self._clock.monotonic())
            late = [each for each in replicas if each.state in LIVING and each not in lost and not _is(each, ready)]
            if not late:
                return
            if self._clock.monotonic() - began_s > _PATIENCE_S:
                names = ", ".join(each.replica_id for each in late)
                raise Refusal(Reason.CONFLICT, f"these replicas do not {what}: {names}")
            await self._clock.sleep(_LOOK_S)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a database stands: id of the key that writes, and the newest change in Unix milliseconds (begun, ended)."""

    key_id: str
    change: tuple[int, int] | None
    replicas: tuple[tuple[str, str], ...]


async def standing(url: str) -> Standing:
    """Look at a database; `replicas` holds the living ones, each with the ids that it holds, the one that writes first.

    Raises:
        Refusal: the database is away.
    """
    database = Database(url, readers=1)
    database.start()
    try:
        state = await database.read(master_keys.read_state)
        change = (state.changed_at_ms, state.done_at_ms) if state.changed_at_ms else None
        living = [each for each in await all_replicas(database) if each.state in LIVING]
        return Standing(state.key_id.hex(), change, tuple((each.replica_id, each.secret_keys) for each in living))
    finally:
        await database.close()


def _walks(old: Secrets, new: Secrets) -> list[Walk]:
    return [*(TableWalk(table, old, new) for table in MARKED_TABLES), CommandWalk(old, new)]


def _is(replica: ReplicaRecord, ready: Callable[[list[str]], bool]) -> bool:
    return ready(replica.secret_keys.split(",") if replica.secret_keys else [])
