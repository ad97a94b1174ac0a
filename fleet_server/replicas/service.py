"""Use cases around server processes: register, beat, notice the dead, ask one to drain."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.v1 import gateway_pb2
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import JSON
from fleet_server.audit.service import AuditService
from fleet_server.database import clock as database_clock
from fleet_server.database.engine import Connection, Database
from fleet_server.database.wakeup import Bell, Wakeup
from fleet_server.database.writer import Transaction
from fleet_server.replicas import pacing, rules, store
from fleet_server.replicas.fence import Fence
from fleet_server.replicas.pacing import Pace
from fleet_server.replicas.rules import DrainRequest, HeartbeatWatch, ReplicaRecord, ReplicaState, Vitals

log = get_logger(__name__)

ENDED_KEPT_MS = 24 * 3600 * 1000
_HINT_PAUSE_S = 0.5  # each has it beat, which writes


class ReplicaService:
    """The replicas room of one process.

    Args:
        replica_id: this process; nobody else beats under this id, which `fence` sees to.
        fence: taken before `register`.
        version: software version.
        vitals: what it says of itself now. On the event loop.
        secret_keys: ids of the secret encryption keys that this process holds, the one that writes first.
        tls_cas: SHA-256 of the TLS CAs from outside that it shows a certificate of, or would. On the event loop.
        on_lost: `on_lost(tx, replica_id)` runs in the transaction that finds a replica gone, or forgets what an
            earlier process of the
            same id left behind: its nodes are offline.
        on_return: awaited once this replica finds that the others took it for lost: nodes may have gone to them.
    """

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        wakeup: Wakeup,
        audit: AuditService,
        replica_id: str,
        fence: Fence,
        version: str,
        vitals: Callable[[], Vitals],
        on_lost: Callable[[Transaction, str], object],
        on_return: Callable[[], Awaitable[None]],
        secret_keys: Callable[[], Sequence[bytes]] = tuple,
        tls_cas: Callable[[], Sequence[bytes]] = tuple,
    ) -> None:
        self._database = database
        self._clock = clock
        self._wakeup = wakeup
        self._audit = audit
        self.replica_id = replica_id
        self._fence = fence
        self._version = version
        self._vitals = vitals
        self._on_lost = on_lost
        self._on_return = on_return
        self._was_lost = False
        self._clock_is_off = False
        self._secret_keys = secret_keys
        self._tls_cas = tls_cas
        self._state = ReplicaState.STARTING
        self.also_leaving: frozenset[str] = frozenset()
        """Others that end together with this one: no node is to be sent there, though they may not have said so yet."""
        self._watch = HeartbeatWatch()
        self._drain: DrainRequest | None = None
        self._drain_asked = asyncio.Event()
        self._bell = Bell(clock)
        self._seen: tuple[float, Sequence[ReplicaRecord]] = (0.0, ())
        wakeup.on_hint("replica", self._hinted, pause_s=_HINT_PAUSE_S)

    async def register(self) -> None:
        """Write this process's row, and clear away what an earlier process of the same id left."""
        await self._look()
        tls_cas = _words(self._tls_cas())

        def work(tx: Transaction) -> None:
            self._register(tx, tls_cas)
            self._on_lost(tx, self.replica_id)
            self._tell(tx, AuditKind.REPLICA_STARTED, "server", self.replica_id, {"version": self._version})

        await self._database.write(work)

    async def set_state(self, state: ReplicaState) -> None:
        """Tell the others at once what this replica does now."""
        self._state = state
        tls_cas, vitals = _words(self._tls_cas()), self._vitals()

        def work(tx: Transaction) -> bool:
            was_lost = self._beat(tx, tls_cas, vitals)
            if state is ReplicaState.STOPPED:
                self._tell(tx, AuditKind.REPLICA_STOPPED, "server", self.replica_id, {})
            return was_lost

        was_lost = await self._database.write(work)
        self._was_lost |= was_lost  # as it is by now: a heartbeat may have found so meanwhile

    async def list(self) -> list[ReplicaRecord]:
        """All replicas, by id."""
        return await self._database.read(store.every)

    def seen_lately(self) -> Sequence[ReplicaRecord]:
        """All replicas, as they were at the last heartbeat of this one; none when that is long ago, for what they hold
        has changed since."""
        at_s, replicas = self._seen
        return replicas if self._clock.monotonic() - at_s < rules.SEEN_LATELY_S else ()

    async def get(self, replica_id: str) -> ReplicaRecord:
        """One replica; empty means this one.

        Raises:
            Refusal: NOT_FOUND.
        """
        return await self._database.read(lambda conn: self._known(conn, replica_id or self.replica_id))

    async def pace(self, streams: int) -> Pace:
        """What this replica, which drains so many streams, may send to the others now.

        Raises:
            Refusal: the database is away.
        """
        replicas = [
            replace(replica, state=ReplicaState.DRAINING) if replica.replica_id in self.also_leaving else replica
            for replica in await self.list()
        ]
        return pacing.pace(self.replica_id, streams, replicas)

    def without_tls_ca(self, conn: Connection, sha256: bytes) -> Sequence[str]:
        """Ids of the other replicas that nodes come to, and that do not say that they show a certificate of this TLS CA
        from outside. Any thread."""
        return [
            replica.replica_id
            for replica in store.every(conn)
            if replica.replica_id != self.replica_id
            and replica.state in rules.TAKING
            and sha256.hex() not in replica.tls_cas.split(",")
        ]

    async def request_drain(
        self, actor: str, replica_id: str, deadline_s: int, reason: int, *, force: bool = False
    ) -> ReplicaRecord:
        """Ask a replica to drain; asking again with a nearer deadline shortens the drain that runs.

        Args:
            replica_id: empty means this one.
            deadline_s: 0 leaves it to the replica's setting.
            force: drain it even when nobody is left then for its nodes to go to.

        Raises:
            Refusal: NOT_FOUND, INVALID_ARGUMENT, or CONFLICT when it does not live, or is the last one.
        """
        rules.checked_deadline_s(deadline_s)
        goaway = rules.checked_reason(reason)
        wanted = replica_id or self.replica_id

        def work(tx: Transaction) -> ReplicaRecord:
            replica = self._known(tx.conn, wanted)
            last = not force and pacing.last_to_take(wanted, store.every(tx.conn, lock=True))
            refusal = rules.refuse_drain(replica, last=last)
            if refusal is not None:
                raise refusal
            now_ms = self._clock.now_ms()
            # Two requests within a millisecond are two requests.
            asked_ms = max(now_ms, replica.drain.requested_at_ms + 1 if replica.drain else 0)
            request = DrainRequest(asked_ms, asked_ms + deadline_s * 1000 if deadline_s else 0, goaway)
            store.request_drain(tx.conn, wanted, request)
            detail: Mapping[str, JSON] = {"deadline_s": deadline_s, "reason": gateway_pb2.GoawayReason.Name(goaway)}
            self._tell(tx, AuditKind.REPLICA_DRAIN_REQUESTED, actor, wanted, detail)
            tx.after_commit(lambda: self._wakeup.spread_nowait([f"replica:{wanted}"]))
            return self._known(tx.conn, wanted)

        return await self._database.write(work)

    async def wait_drain_requested(self) -> DrainRequest:
        """Wait until somebody asks this replica to drain; call again for the next, later request."""
        await self._drain_asked.wait()
        self._drain_asked.clear()
        if self._drain is None:
            raise AssertionError("the event is set with a request only")
        return self._drain

    async def run(self) -> None:
        """Beat, look for the dead, and pick up drain requests, until cancelled."""
        unsubscribe = self._wakeup.subscribe(f"replica:{self.replica_id}", self._bell.ring_nowait)
        try:
            while True:
                try:
                    await self.beat()
                except Refusal as refusal:
                    log.warning("heartbeat_failed", reason=str(refusal.reason))
                await self._wait_next()
        finally:
            unsubscribe()

    async def beat(self) -> None:
        """One heartbeat.

        Raises:
            Refusal: the database is away.
        """
        replicas = await self._look()
        self._seen = (self._clock.monotonic(), replicas)
        lost = [
            replica
            for replica in self._watch.lost(replicas, self._clock.monotonic())
            if replica.replica_id != self.replica_id
        ]
        tls_cas, vitals = _words(self._tls_cas()), self._vitals()

        def work(tx: Transaction) -> tuple[bool, ReplicaRecord | None]:
            was_lost = self._beat(tx, tls_cas, vitals)
            for replica in lost:
                if store.mark_lost(tx.conn, replica):
                    self._on_lost(tx, replica.replica_id)
                    detail = {"heartbeat_at_ms": replica.heartbeat_at_ms}
                    self._tell(tx, AuditKind.REPLICA_LOST, "server", replica.replica_id, detail)
            store.forget_ended(tx.conn, self._clock.now_ms() - ENDED_KEPT_MS)
            return was_lost, store.by_id(tx.conn, self.replica_id)

        try:
            was_lost, own = await self._database.write(work)
        except Refusal:
            self._watch = HeartbeatWatch()  # it can be read and not written: the others do not beat for that
            raise
        self._was_lost |= was_lost
        if self._was_lost:
            await self._on_return()
            self._was_lost = False
        if own is not None and own.drain is not None and own.drain != self._drain:
            self._drain = own.drain
            self._drain_asked.set()

    async def _look(self) -> Sequence[ReplicaRecord]:
        """All replicas, and the time on the clock that they share."""
        began_s = self._clock.monotonic()
        replicas, database_ms = await self._database.read(
            lambda conn: (store.every(conn), database_clock.read_ms(conn))
        )
        self._database.clock.note(database_ms, began_s, self._clock)
        offset_ms = self._database.clock.offset_ms(self._clock)
        if (abs(offset_ms) > database_clock.OFF_MS) is not self._clock_is_off:
            self._clock_is_off = not self._clock_is_off
            if self._clock_is_off:
                say = "set this machine's clock, or the database's: its nodes take commands for too old, or too young"
                log.warning("clock_is_off", database_ahead_s=offset_ms / 1000, next=say)
            else:
                log.info("clock_is_right")
        return replicas

    def _hinted(self, replica_ids: frozenset[str] | None) -> None:
        if replica_ids is None or self.replica_id in replica_ids:
            self._bell.ring_nowait()

    async def _wait_next(self) -> None:
        draining = self._state is ReplicaState.DRAINING
        pause_s = rules.DRAINING_INTERVAL_S if draining else rules.HEARTBEAT_INTERVAL_S
        await self._bell.wait(pause_s)

    def _register(self, tx: Transaction, tls_cas: str) -> None:
        registered = store.register(
            tx.conn,
            self.replica_id,
            self._fence.boot_id,
            version=self._version,
            secret_keys=_words(self._secret_keys()),
            tls_cas=tls_cas,
            now_ms=self._clock.now_ms(),
        )
        if not registered:
            self._fence.check(tx.conn)

    def _beat(self, tx: Transaction, tls_cas: str, vitals: Vitals) -> bool:
        """Whether the others took it for lost, or forgot it, until now."""
        # Asked here and not when it last looked: it may have stood still in between.
        was_lost = store.is_lost(tx.conn, self.replica_id)
        known = self._write_beat(tx, tls_cas, vitals)
        if known and not was_lost:
            return False
        # Cut off, or standing still, for so long that the others took it for lost, or forgot it. Its nodes may still be
        # here: what is said of them stays, and those that went elsewhere meanwhile have a newer epoch.
        if not known:
            self._fence.check(tx.conn)
            self._register(tx, tls_cas)
            self._write_beat(tx, tls_cas, vitals)
        detail: Mapping[str, JSON] = {"version": self._version, "lost" if known else "forgotten": True}
        self._tell(tx, AuditKind.REPLICA_STARTED, "server", self.replica_id, detail)
        say = "it is registered again: look why it stood still, or could not reach the database"
        tx.after_commit(lambda: log.warning("replica_was_lost", forgotten=not known, next=say))
        return True

    def _write_beat(self, tx: Transaction, tls_cas: str, vitals: Vitals) -> bool:
        return store.beat(
            tx.conn,
            self.replica_id,
            self._fence.boot_id,
            state=self._state,
            vitals=vitals,
            secret_keys=_words(self._secret_keys()),
            tls_cas=tls_cas,
            now_ms=self._clock.now_ms(),
        )

    def _known(self, conn: Connection, replica_id: str) -> ReplicaRecord:
        replica = store.by_id(conn, replica_id)
        if replica is None:
            raise Refusal(
                Reason.NOT_FOUND, f"no replica is called {replica_id[:80]!r}: `fleetctl replicas list` shows them"
            )
        return replica

    def _tell(self, tx: Transaction, kind: AuditKind, actor: str, replica_id: str, detail: Mapping[str, JSON]) -> None:
        self._audit.append(tx, kind, actor=actor, subject=f"replica:{replica_id}", detail=detail)


def _words(ids: Iterable[bytes]) -> str:
    return ",".join(each.hex() for each in ids)


async def all_replicas(database: Database) -> list[ReplicaRecord]:
    """All replicas, for a process that is none."""
    return await database.read(store.every)
