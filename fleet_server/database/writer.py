"""The one writer: a thread with a sync connection that commits whole groups.

Mental model
    Callers hand in jobs (functions of a transaction) and await their commit.
    The thread takes everything queued and runs it in ONE transaction: a busy server pays one fsync for many callers,
    an idle one commits a single job at once, for nothing waits to fill a group.
    A job that raises must not undo its neighbours: the group is rolled back and each job runs again in a transaction
    of its own, so a job is a pure function of the database and may run more than once before it commits. One that meets
    a row which another replica holds steps aside instead, and the others go on without it (`jobs`).
    Jobs commit in the order in which they came, but for those that stepped aside, or have a rank. Numbers are drawn and
    rows sealed in the transaction, effects follow commit by commit: all of that is right in whichever order. Who needs
    one job behind another awaits the first.
    Hooks run before the commit (the audit chain seals the group's rows there); effects (wake-ups) run on the event
    loop, after it, commit by commit; what somebody far away waits for runs first. Only this thread writes: SQLite never
    sees a second writer, and counters are read and raised without races in one replica.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Engine, RootTransaction
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet_server.database.dialects import hang_up, is_contended, is_lost, wait_for_rows
from fleet_server.database.jobs import GLANCE_MS, LOOK_MS, Aside, Job, call, in_order
from fleet_server.database.refusals import SHUTTING_DOWN, DatabaseLostError, as_refusal, away

log = get_logger(__name__)

T = TypeVar("T")
MAX_GROUP = 512
MAX_QUEUED = 20_000
_TRIES_TOGETHER = 3  # of a group whose jobs meet held rows; then each of its jobs by itself
STALL_S = 15.0
"""So long a group may take: longer than any statement, or wait for a lock (dialects), shorter than who calls waits."""


class WriterMetrics(Protocol):
    """What the writer tells about itself."""

    def committed(self, jobs: int, seconds: float) -> None:
        """One commit of `jobs` jobs took `seconds`, queueing excluded."""
        ...


@dataclass(slots=True)
class Transaction:
    """What a job works on. `conn` is valid only while the job runs."""

    conn: Connection
    effects: list[Callable[[], None]] = field(default_factory=list)
    first_effects: list[Callable[[], None]] = field(default_factory=list)
    audit: list[Any] = field(default_factory=list)

    def after_commit(self, effect: Callable[[], None]) -> None:
        """Run `effect` on the event loop once this transaction is durable; never when it rolled back."""
        self.effects.append(effect)

    def first_after_commit(self, effect: Callable[[], None]) -> None:
        """As `after_commit`, for what somebody far away waits for: whatever else follows from the commit follows a turn
        of the event loop later, behind the tasks that `effect` wakes. What such an effect relies on has to be one."""
        self.first_effects.append(effect)


class Writer:
    """Group commit on one thread.

    Args:
        engine: sync engine; its pool must hand out at least one connection to this thread.
        metrics: told about every commit.
    """

    def __init__(self, engine: Engine, metrics: WriterMetrics | None = None) -> None:
        self._engine = engine
        self._metrics = metrics
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._aside = Aside()
        self._at: Job | None = None  # the job at work
        self._hooks: list[Callable[[Transaction], None]] = []
        self._committed: list[Callable[[Transaction], None]] = []
        self._connection: Connection | None = None
        self._closed = False
        self._closing = threading.Lock()
        self.busy_since: float | None = None  # of `perf_counter`: the group in hand
        self.connecting = False
        self._watched = False
        self._left: dict[asyncio.AbstractEventLoop, Callable[[], None]] = {}  # to do on a loop, of its last commit
        self._thread = threading.Thread(target=self._run, name="database-writer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def before_commit(self, hook: Callable[[Transaction], None]) -> None:
        """Run `hook` inside every transaction, after its jobs. For the audit chain; call before `start`."""
        self._hooks.append(hook)

    def when_committed(self, hook: Callable[[Transaction], None]) -> None:
        """Run `hook` on the writer's thread behind each commit, before the next transaction begins; it must not raise.
        For the audit chain; call before `start`."""
        self._committed.append(hook)

    def depth(self) -> int:
        """Jobs that wait."""
        return self._queue.qsize() + len(self._aside)

    async def submit(self, work: Callable[[Transaction], T], *, rank: str | None = None) -> T:
        """Run `work` in a transaction and return its result once that is committed.

        Args:
            rank: in one group jobs that have one run by it, in growing order. For rows that every replica writes: taken
                in one order, no two wait for each other in a circle.

        Raises:
            Refusal: UNAVAILABLE when the database is away (its sentence says whether anything can have been written),
                OVERLOADED when too much waits.
            Exception: whatever `work` raised; nothing of it was written.
        """
        return await self.submit_nowait(work, rank=rank)

    def submit_nowait(
        self, work: Callable[[Transaction], T], *, rank: str | None = None, patience_s: float | None = None
    ) -> asyncio.Future[T]:
        """As `submit`; the future holds the result, or what was raised.

        Args:
            patience_s: so long it stands aside for a row that somebody holds, if not for the usual time (`jobs`).

        Raises:
            Refusal: OVERLOADED, or the server ends (UNAVAILABLE): `work` was not taken.
        """
        if self.depth() >= MAX_QUEUED:
            raise Refusal(Reason.OVERLOADED, "too many writes wait: try again in a moment", retry_after_s=1.0)
        loop = asyncio.get_running_loop()
        job = Job(work, loop.create_future(), loop, rank, patience_s=patience_s)
        with self._closing:  # or a job could slip in behind the end marker, and its caller wait for ever
            if self._closed:
                raise Refusal(Reason.UNAVAILABLE, SHUTTING_DOWN)
            self._queue.put(job)
        self._watch(loop)
        return job.future

    def close(self) -> None:
        """Commit what is queued, then end the thread. Blocks; at most a few seconds."""
        with self._closing:
            self._closed = True
            self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=10.0)
        if self._thread.is_alive():
            self._break_stall()
            self._thread.join(timeout=5.0)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look for a stall while there is work; one timer, however many callers."""
        if not self._watched:
            self._watched = True
            loop.call_later(STALL_S / 3, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._watched = False
        since = self.busy_since
        if since is not None and perf_counter() - since > STALL_S:
            self._break_stall()
        if since is not None or self.depth():
            self._watch(loop)

    def _break_stall(self) -> None:
        """Refuse what waits, of which nothing was begun, and break the connection: the thread fails what it holds."""
        refused = 0
        ending = False
        while not self._queue.empty():
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                break
            if job is None:
                ending = True
                continue
            job.fail(away())
            refused += 1
        if ending:
            self._queue.put(None)
        log.error("database_stalled", refused=refused)
        connection = self._connection
        if connection is not None:
            hang_up(connection)

    def _run(self) -> None:
        ending = False
        while not ending or self._aside:
            group, ended = self._take()
            ending |= ended
            if group:
                self._commit_group(group)
            if self._aside:
                self._look_aside()
        self._drop_connection()

    def _take(self) -> tuple[list[Job], bool]:
        """A group of what came, without those that stand aside; and whether nothing comes any more."""
        try:
            first = self._queue.get(timeout=self._aside.pause_s())
        except queue.Empty:
            return [], False
        if first is None:
            return [], True
        group = [first]
        while len(group) < MAX_GROUP:
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                break
            if job is None:
                return group, True
            group.append(job)
        return group, False

    def _look_aside(self) -> None:
        if not self._commit_group([self._aside.next()], LOOK_MS):
            return
        others = self._aside.some(MAX_GROUP)
        if others:
            self._commit_group(others, GLANCE_MS)

    def _commit_group(self, group: list[Job], wait_ms: int = 0, tries: int = _TRIES_TOGETHER) -> bool:
        """Commit jobs, or tell their callers why not; those that meet a held row step aside.

        Args:
            wait_ms: how long to wait for such a row; 0 for the usual.
            tries: of all of them together.

        Returns:
            Whether none met one.
        """
        try:
            transaction = self._attempt(in_order(group), wait_ms or (GLANCE_MS if self._aside else 0))
        except DatabaseLostError as lost:
            lost.tell(len(group))
            _fail_all(group, lost.refusal())
            _fail_all(self._aside.some(len(self._aside)), away())
        except Exception as error:  # noqa: BLE001 - a job's own error belongs to its caller, whatever it is
            return self._sort_out(group, error, tries)
        else:
            self._deliver(group, transaction)
        return True

    def _sort_out(self, group: list[Job], error: Exception, tries: int) -> bool:
        """Go on with a group that was rolled back for `error`; whether no job met a held row."""
        contended = is_contended(error)
        if len(group) == 1:
            _fail_all(self._aside.put(group[0]) if contended else group, error)
            return not contended
        if not contended or tries == 1:
            free = [self._commit_group([job]) for job in group]
            return all(free)
        held_up, self._at = self._at, None
        if held_up is not None:  # or the row is one of those that the hooks write, of every group
            group = [job for job in group if job is not held_up]
            _fail_all(self._aside.put(held_up), error)
        self._commit_group(group, tries=tries - 1)
        return False

    def _attempt(self, group: list[Job], wait_ms: int) -> Transaction:
        reused = self._connection is not None
        try:
            return self._commit_once(group, wait_ms)
        except DatabaseLostError as lost:
            # A connection that died while it lay idle says nothing about the database: a fresh one decides.
            if lost.committing or not reused:
                raise
            return self._commit_once(group, wait_ms)

    def _commit_once(self, group: list[Job], wait_ms: int) -> Transaction:
        started = self.busy_since = perf_counter()
        committing = False
        try:
            transaction, outer = self._begin()
            self._at = None
            if wait_ms:
                wait_for_rows(transaction.conn, wait_ms)
            for job in group:
                self._at = job
                job.result = job.work(transaction)
            self._at = None
            for hook in self._hooks:
                hook(transaction)
            committing = True
            outer.commit()
            for hook in self._committed:
                hook(transaction)
        except Exception as error:
            self._abandon(error, committing)
            raise
        finally:
            self.busy_since = None
        if self._metrics is not None:
            self._metrics.committed(len(group), perf_counter() - started)
        return transaction

    def _begin(self) -> tuple[Transaction, RootTransaction]:
        try:
            connection = self._connect()
            return Transaction(connection), connection.begin()
        except DBAPIError as error:
            self._drop_connection()
            raise DatabaseLostError(error, committing=False) from error

    def _abandon(self, error: Exception, committing: bool) -> None:
        """Undo what the failed transaction began; a connection that is not surely clean is dropped."""
        lost = is_lost(error)
        outer = None if self._connection is None or lost or committing else self._connection.get_transaction()
        try:
            if outer is not None:
                outer.rollback()
            else:
                self._drop_connection()
        except SQLAlchemyError:
            self._drop_connection()
        if lost:
            raise DatabaseLostError(error, committing) from error

    def _connect(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self.connecting = True
            try:
                self._connection = self._engine.connect()
                self.busy_since = perf_counter()  # the group only begins now
            finally:
                self.connecting = False
        return self._connection

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.invalidate()
                connection.close()
            except SQLAlchemyError as error:
                log.debug("database_connection_close_failed", error=str(error))

    def _deliver(self, group: list[Job], transaction: Transaction) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[Job]] = {}
        for job in group:
            by_loop.setdefault(job.loop, []).append(job)
        first, effects = transaction.first_effects, transaction.effects
        for loop, jobs in by_loop.items():
            call(loop, self._follow, loop, first, partial(_resolve, jobs, effects))
            first, effects = [], []

    def _follow(
        self, loop: asyncio.AbstractEventLoop, first: list[Callable[[], None]], rest: Callable[[], None]
    ) -> None:
        self._follow_up(loop)  # what the commit before left
        if not first:
            rest()
            return
        _run_effects(first)
        self._left[loop] = rest
        loop.call_soon(self._follow_up, loop)

    def _follow_up(self, loop: asyncio.AbstractEventLoop) -> None:
        rest = self._left.pop(loop, None)
        if rest is not None:
            rest()


def _fail_all(jobs: Sequence[Job], error: Exception) -> None:
    told = as_refusal(error) if jobs else error
    for job in jobs:
        job.fail(told)


def _resolve(jobs: list[Job], effects: list[Callable[[], None]]) -> None:
    _run_effects(effects)  # first: whoever hears of its commit finds done what follows from it
    for job in jobs:
        if not job.future.done():
            job.future.set_result(job.result)


def _run_effects(effects: list[Callable[[], None]]) -> None:
    for effect in effects:
        try:
            effect()
        except Exception:
            log.exception("after_commit_failed")  # the others still have to be woken
