"""The one writer: a thread with a sync connection that commits whole groups.

Mental model
    Callers hand in jobs (functions of a transaction) and await their commit.
    The thread takes everything queued and runs it in ONE transaction: a busy server pays one fsync for many callers,
    an idle one commits a single job at once, for nothing waits to fill a group.
    A job that raises must not undo its neighbours: the group is rolled back and each job runs again in a transaction
    of its own, so a job is a pure function of the database and may run more than once before it commits. So does a
    group that met another replica's at the same rows: two that wait for each other would stand still for a second.
    Hooks run before the commit (the audit chain seals the group's rows there); effects (wake-ups) run on the event
    loop, after it, commit by commit; what somebody far away waits for runs first. Only this thread writes: SQLite never
    sees a second writer, and counters are read and raised without races in one replica.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Engine, RootTransaction
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet_server.database.dialects import LOCK_TIMEOUT_MS, WRITER_LOCK_TIMEOUT_MS, hang_up, is_contended, is_lost
from fleet_server.database.refusals import SHUTTING_DOWN, DatabaseLostError, as_refusal, away

log = get_logger(__name__)

T = TypeVar("T")
MAX_GROUP = 512
MAX_QUEUED = 20_000
_CONTENDED_TRIES = LOCK_TIMEOUT_MS // WRITER_LOCK_TIMEOUT_MS
_CONTENDED_GROUP_TRIES = 2  # then each of its jobs by itself, which holds fewer rows for a shorter time
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


@dataclass(slots=True, eq=False)
class _Job:
    work: Callable[[Transaction], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    result: Any = None


class Writer:
    """Group commit on one thread.

    Args:
        engine: sync engine; its pool must hand out at least one connection to this thread.
        metrics: told about every commit.
    """

    def __init__(self, engine: Engine, metrics: WriterMetrics | None = None) -> None:
        self._engine = engine
        self._metrics = metrics
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
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
        return self._queue.qsize()

    async def submit(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in a transaction and return its result once that is committed.

        Raises:
            Refusal: UNAVAILABLE when the database is away (its sentence says whether anything can have been written),
                OVERLOADED when too much waits.
            Exception: whatever `work` raised; nothing of it was written.
        """
        return await self.submit_nowait(work)

    def submit_nowait(self, work: Callable[[Transaction], T]) -> asyncio.Future[T]:
        """As `submit`; the future holds the result, or what was raised.

        Raises:
            Refusal: OVERLOADED, or the server ends (UNAVAILABLE): `work` was not taken.
        """
        if self._queue.qsize() >= MAX_QUEUED:
            raise Refusal(Reason.OVERLOADED, "too many writes wait: try again in a moment", retry_after_s=1.0)
        loop = asyncio.get_running_loop()
        job = _Job(work, loop.create_future(), loop)
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
        if since is not None or not self._queue.empty():
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
            self._fail(job, away())
            refused += 1
        if ending:
            self._queue.put(None)
        log.error("database_stalled", refused=refused)
        connection = self._connection
        if connection is not None:
            hang_up(connection)

    def _run(self) -> None:
        ending = False
        while not ending:
            group, ending = self._take()
            if group:
                self._commit_group(group)
        self._drop_connection()

    def _take(self) -> tuple[list[_Job], bool]:
        first = self._queue.get()
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

    def _commit_group(self, group: list[_Job]) -> None:
        left = _CONTENDED_TRIES if len(group) == 1 else _CONTENDED_GROUP_TRIES
        while True:
            try:
                transaction = self._attempt(group)
            except DatabaseLostError as lost:
                lost.tell(len(group))
                for job in group:
                    self._fail(job, lost.refusal())
            except Exception as error:  # noqa: BLE001 - a job's own error belongs to its caller, whatever it is
                if left and is_contended(error):
                    left -= 1
                    continue
                if len(group) == 1:
                    self._fail(group[0], as_refusal(error))
                    return
                for job in group:
                    self._commit_group([job])
            else:
                self._deliver(group, transaction)
            return

    def _attempt(self, group: list[_Job]) -> Transaction:
        reused = self._connection is not None
        try:
            return self._commit_once(group)
        except DatabaseLostError as lost:
            # A connection that died while it lay idle says nothing about the database: a fresh one decides.
            if lost.committing or not reused:
                raise
            return self._commit_once(group)

    def _commit_once(self, group: list[_Job]) -> Transaction:
        started = self.busy_since = perf_counter()
        committing = False
        try:
            transaction, outer = self._begin()
            for job in group:
                job.result = job.work(transaction)
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

    def _deliver(self, group: list[_Job], transaction: Transaction) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
        for job in group:
            by_loop.setdefault(job.loop, []).append(job)
        first, effects = transaction.first_effects, transaction.effects
        for loop, jobs in by_loop.items():
            _call(loop, self._follow, loop, first, partial(_resolve, jobs, effects))
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

    def _fail(self, job: _Job, error: Exception) -> None:
        _call(job.loop, _reject, job.future, error)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> None:
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        return  # the loop has closed: nobody is left to tell


def _resolve(jobs: list[_Job], effects: list[Callable[[], None]]) -> None:
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


def _reject(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
