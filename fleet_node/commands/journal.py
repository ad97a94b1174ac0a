"""The journal's thread: group commit for the event loop.

Mental model
    The event loop hands in batches and goes on; nothing that a batch allows (calling a driver, sending a report) is
    done before its callback says that it is durable.
    One thread owns the file. It takes everything queued and commits it in one transaction with one fsync; an idle
    node's single batch is committed at once, for nothing waits to fill a group.
    It stays a thread although handing over costs some 40 us each way: commits made on the loop were measured. They
    gained one command next to nothing, cost many a fifth of their rate, and would leave the node deaf while its disk
    hangs.
    What comes in during one turn of the event loop goes over together: the results of one statement and the acceptance
    of the next share a commit, and the thread is woken once for both. Results announce themselves and are asked for
    last, so they wait for no turn of their own.
    Callbacks come back on the loop in the order in which batches were handed in, so report numbers become visible in
    their order.
    Rows of the audit that belong to no batch gather while some of them are written, and no more than a bounded number:
    a server that makes the node refuse costs it neither its memory nor a commit each.
    Acknowledgements ride along with a later commit: losing some only sends reports again.
    A copy of the file is made in steps, and what was queued during a step is done after it: commands do not wait for
    a backup.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from fleet.logs import get_logger
from fleet_node.commands.audit_rows import AuditEvent
from fleet_node.commands.journal_copy import Between
from fleet_node.commands.store import Batch, JournalStore, JournalUnavailableError, Recovered

if TYPE_CHECKING:
    from fleet.metrics import Histogram

log = get_logger(__name__)

T = TypeVar("T")
Done = Callable[[JournalUnavailableError | None], None]
_CLOSED = "the node is shutting down"
MAX_ROWS_WAITING = 1024
"""Rows of the audit that wait for their commit; beyond, as when the disk hangs, they are counted."""


@dataclass(slots=True, eq=False)
class _Commit:
    batch: Batch
    done: Done


@dataclass(slots=True, eq=False)
class _Query:
    ask: Callable[[JournalStore], Any]
    future: asyncio.Future[Any]


@dataclass(slots=True, eq=False)
class _Copy:
    path: Path
    between: Between
    future: asyncio.Future[None]


_Item = _Commit | _Query | _Copy


class Journal:
    """Group commit on one thread.

    Args:
        store: the open file; the journal owns and closes it.
        commit_duration: observed by the thread with seconds a commit.
    """

    def __init__(self, store: JournalStore, *, commit_duration: Histogram) -> None:
        self._store = store
        self._commit_duration = commit_duration
        self._turn: list[_Item] = []
        self._late: list[Callable[[], None]] = []
        self._queue: queue.SimpleQueue[list[_Item] | None] = queue.SimpleQueue()
        self._copies: deque[_Copy] = deque()  # the thread's, and so is the next
        self._ending = False
        self._acked_report_no = 0
        self._rows: list[AuditEvent] = []
        self._rows_left_out = 0
        self._rows_open = self._rows_under_way = False
        self.audit_news = asyncio.Event()
        """Set whenever something was handed in that the audit speaks of; whoever sends the audit clears it."""
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def start(self) -> Recovered:
        """Start the thread for the running event loop; returns what the last process left.

        Raises:
            JournalUnavailableError: it cannot be read.
        """
        recovered = self._store.recover()
        self._acked_report_no = recovered.acked_report_no
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return recovered

    @property
    def rows(self) -> int:
        """Commands in the journal."""
        return self._store.rows

    @property
    def audit_chain(self) -> int:
        """Chain of the audit that is written; 0 is the first."""
        return self._store.audit.chain

    @property
    def audit_number(self) -> int:
        """Newest row of that chain."""
        return self._store.audit.number

    @property
    def audit_unsigned(self) -> bool:
        """Whether the chain has rows that the node is to sign."""
        return self._store.audit.unsigned > 0

    @property
    def audit_owner_pin(self) -> str:
        """Owner pin that the audit told last, in hexadecimal; empty before it told any."""
        return self._store.audit.owner_pin

    @property
    def next_audit_chain(self) -> int:
        """Chain that a floor named, which is written now or begun soon."""
        return self._store.audit.next_chain

    def submit(self, batch: Batch, done: Done) -> None:
        """Queue `batch`; `done` is called on the loop once it is durable, or with the reason why nothing of it is."""
        if self._closed:
            done(JournalUnavailableError(_CLOSED))
            return
        self.audit_news.set()
        self._hand_in(_Commit(batch, done))

    def audit_nowait(self, event: AuditEvent) -> None:
        """Chain a row of the node's audit that belongs to no other batch."""
        if len(self._rows) >= MAX_ROWS_WAITING:
            self._rows_left_out += event.items
            return
        self._rows.append(event)
        if not self._rows_under_way:
            self._submit_rows()

    def submit_late(self, submit: Callable[[], None]) -> None:
        """Call `submit` at the end of this turn of the event loop; what it submits goes over with all of this turn."""
        self._await_end()
        self._late.append(submit)

    async def query(self, ask: Callable[[JournalStore], T]) -> T:
        """Ask the file something, on its thread, after everything that was queued before.

        Raises:
            JournalUnavailableError: it cannot be read.
        """
        if self._closed:
            raise JournalUnavailableError(_CLOSED)
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._hand_in(_Query(ask, future))
        return await future

    async def copy(self, path: Path, between: Between) -> None:
        """Write into a new file what is durable at the end of this; commits go on meanwhile. Cancelling ends it.

        Args:
            between: told on the journal's thread how far it is.

        Raises:
            JournalUnavailableError: it cannot be read, the copy not be written, or the node shuts down.
        """
        if self._closed:
            raise JournalUnavailableError(_CLOSED)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hand_in(_Copy(path, between, future))
        await future

    def note_acked_nowait(self, report_no: int) -> None:
        """Everything up to `report_no` may be forgotten; written with a later commit, at the latest on `close`."""
        self._acked_report_no = max(self._acked_report_no, report_no)

    async def close(self) -> None:
        """Commit what is queued and close the file. A second call does nothing."""
        if not self._closed:
            if not self._rows_open:
                self._submit_rows()
            self._closed = True
            self._hand_over()
            self._queue.put(None)
        if self._thread.ident is None:
            self._store.close()
        else:
            await asyncio.to_thread(self._thread.join)

    def _submit_rows(self) -> None:
        if self._rows:
            batch = Batch(audit=self._rows, audit_left_out=self._rows_left_out)
            self._rows_left_out = 0
            self._rows_open = self._rows_under_way = True  # what this turn adds goes with them
            self.submit(batch, partial(self._rows_written, batch))

    def _rows_written(self, batch: Batch, failure: JournalUnavailableError | None) -> None:
        self._rows_under_way = False
        if failure is not None:
            log.error("audit_rows_not_written", rows=len(batch.audit), error=str(failure))
        if self._closed:
            self._rows = []
        else:
            self._submit_rows()

    def _hand_in(self, item: _Item) -> None:
        self._await_end()
        self._turn.append(item)

    def _await_end(self) -> None:
        if not self._turn and not self._late:
            asyncio.get_running_loop().call_soon(self._end_turn)

    def _end_turn(self) -> None:
        for submit in self._late:
            submit()
        self._late.clear()
        self._hand_over()

    def _hand_over(self) -> None:
        if self._rows_open:
            self._rows, self._rows_open = [], False
        if self._turn:
            self._queue.put(self._turn)
            self._turn = []

    def _run(self) -> None:
        while not self._ending:
            self._serve(wait=True)
            while self._copies and not self._ending:
                self._copy(self._copies.popleft())
        for copy in self._copies:
            self._call(_reject, copy.future, JournalUnavailableError(_CLOSED))
        self._flush_acked()
        self._store.close()

    def _serve(self, *, wait: bool) -> None:
        """Do all that is queued.

        Args:
            wait: until something is.
        """
        commits, queries = self._take(wait)
        if commits:
            self._commit(commits)
        for query in queries:
            self._answer(query)

    def _take(self, wait: bool) -> tuple[list[_Commit], list[_Query]]:
        commits: list[_Commit] = []
        queries: list[_Query] = []
        while wait or not self._queue.empty():
            wait = False
            turn = self._queue.get()
            if turn is None:
                self._ending = True
                break
            for item in turn:
                if isinstance(item, _Commit):
                    commits.append(item)
                elif isinstance(item, _Query):
                    queries.append(item)
                else:
                    self._copies.append(item)
        return commits, queries

    def _copy(self, copy: _Copy) -> None:
        def between(done: int, of: int) -> None:
            copy.between(done, of)
            self._serve(wait=False)
            if self._ending or copy.future.cancelled():
                raise JournalUnavailableError(_CLOSED)

        if copy.future.cancelled():
            return
        try:
            self._store.copy_to(copy.path, between)
        except Exception as error:  # noqa: BLE001  belongs to the caller
            self._call(_reject, copy.future, error)
        else:
            self._call(_resolve, copy.future, None)

    def _commit(self, commits: list[_Commit]) -> None:
        started = perf_counter()
        failure: JournalUnavailableError | None = None
        try:
            self._store.apply([commit.batch for commit in commits], self._acked_report_no)
        except JournalUnavailableError as error:
            failure = error
        except Exception as error:  # callers wait: whatever it is, they must hear of it
            log.exception("journal_failed")
            failure = JournalUnavailableError(f"the node's journal failed ({type(error).__name__}); see the node's log")
        self._commit_duration.observe(perf_counter() - started)
        self._call(_settle, [commit.done for commit in commits], failure)

    def _answer(self, query: _Query) -> None:
        try:
            answer = query.ask(self._store)
        except Exception as error:  # noqa: BLE001  belongs to the caller
            self._call(_reject, query.future, error)
        else:
            self._call(_resolve, query.future, answer)

    def _flush_acked(self) -> None:
        try:
            self._store.apply([], self._acked_report_no)
        except JournalUnavailableError:
            log.info("journal_acknowledgements_not_saved")  # the server hears those reports once more

    def _call(self, function: Callable[..., None], *args: object) -> None:
        assert self._loop is not None  # noqa: S101  the thread starts after it
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            return  # the loop has closed: nobody is left to tell


def _settle(callbacks: list[Done], failure: JournalUnavailableError | None) -> None:
    for done in callbacks:
        try:
            done(failure)
        except Exception:
            log.exception("journal_callback_failed")  # the others still have to hear


def _resolve(future: asyncio.Future[Any], answer: object) -> None:
    if not future.done():
        future.set_result(answer)


def _reject(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
