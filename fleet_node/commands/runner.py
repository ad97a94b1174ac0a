"""Runs commands: so many at a time, in seq order on one thing, within their time, and stopped when told.

Mental model
    A run is admitted into a free slot (its RUNNING is then journaled with its acceptance), or waits: for a slot in
    `_ready`, or behind the one before it on the same ordering key. Whoever ends frees slot and key;
    `take_startable` then hands out who may start next, once RUNNING is durable.
    A few worker tasks run drivers one after the other and are never more than there is work: actions that end at once
    share one task.
    One watchdog for all runs steps a run that is over its time: ask it to stop, cancel its task, give it up. What is
    given up is INTERRUPTED, for nobody can know how it ended.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Any, Protocol

from fleet.clock import Clock
from fleet.logs import get_logger
from fleet_node.commands.entry import Entry
from fleet_node.drivers.api import Action, Invocation, Outcome, OutcomeState

log = get_logger(__name__)

CANCEL_GRACE_S = 2.0


class StopCause(StrEnum):
    """Why a run was asked to stop; the reason in its report."""

    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    DRAIN_DEADLINE = "DRAIN_DEADLINE"
    NODE_SHUTDOWN = "NODE_SHUTDOWN"


class Phase(Enum):
    """Where a run is."""

    WAITING = auto()
    STARTING = auto()  # has its slot; RUNNING is on its way to the disk
    RUNNING = auto()
    ENDED = auto()


_WAITING, _STARTING, _RUNNING, _ENDED = Phase  # a member of an enum costs a search each time


@dataclass(slots=True, eq=False)
class Run:
    """One command on its way through the driver.

    Args:
        entry: its journal entry.
        action: what to run.
        arguments: parsed and valid.
        key: ordering key, or None.
    """

    entry: Entry
    action: Action
    arguments: Mapping[str, Any]
    key: str | None
    stop: asyncio.Event | None = None  # made when the driver is called
    phase: Phase = _WAITING
    cause: StopCause | None = None
    due_s: float = 0.0
    task: asyncio.Task[None] | None = None
    cancelled: bool = False


class Actions(Protocol):
    """What the runner needs of the drivers."""

    async def run(self, invocation: Invocation) -> Outcome:
        """Run an action; see `DriverRegistry.run`."""
        ...


class Runner:
    """Concurrency, order, time limits and stops.

    Args:
        actions: the drivers.
        clock: for time limits.
        concurrency: runs at a time.
        stop_grace_s: how long a run may take to stop before its task is cancelled.
        ended: called with every run's outcome, None when nobody can know it.
    """

    def __init__(
        self,
        *,
        actions: Actions,
        clock: Clock,
        concurrency: int,
        stop_grace_s: float,
        ended: Callable[[Run, Outcome | None], None],
    ) -> None:
        self._actions = actions
        self._clock = clock
        self._concurrency = concurrency
        self._stop_grace_s = stop_grace_s
        self._ended = ended
        self.held = True
        self._busy: dict[int, Run] = {}  # STARTING and RUNNING, by seq
        self._waiting: dict[int, Run] = {}
        self._ready: deque[Run] = deque()
        self._keys: dict[str, deque[Run]] = {}  # a key that is taken, and who waits for it
        self._to_run: deque[Run] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        self._idle_workers = 0
        self._watchdog: asyncio.Task[None] | None = None
        self._watch_due_s = 0.0

    @property
    def busy(self) -> int:
        """Runs that have a slot."""
        return len(self._busy)

    @property
    def waiting(self) -> Sequence[Run]:
        """Runs without a slot, in the order in which they came."""
        return list(self._waiting.values())

    @property
    def waiting_count(self) -> int:
        """How many have no slot."""
        return len(self._waiting)

    def find(self, seq: int) -> Run | None:
        """The run of that seq, unless it has ended."""
        return self._busy.get(seq) or self._waiting.get(seq)

    def admit(self, runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
        """Give slots to those of new runs that may start at once; the others, second, are not known here."""
        admitted: list[Run] = []
        others: list[Run] = []
        free = 0 if self.held or self._ready else self._concurrency - len(self._busy)
        for run in runs:
            key = run.key
            if len(admitted) >= free or (key is not None and key in self._keys):
                others.append(run)
                continue
            if key is not None:
                self._keys[key] = deque()
            run.phase = _STARTING
            self._busy[run.entry.seq] = run
            admitted.append(run)
        return admitted, others

    def withdraw(self, run: Run) -> None:
        """Take back an admitted run whose acceptance could not be journaled."""
        self._release(run)

    def enqueue(self, run: Run) -> None:
        """Let a run wait for its turn; seqs come growing."""
        self._waiting[run.entry.seq] = run
        if run.key is None:
            self._ready.append(run)
        elif run.key in self._keys:
            self._keys[run.key].append(run)
        else:
            self._keys[run.key] = deque()
            self._ready.append(run)

    def take_startable(self) -> list[Run]:
        """Give slots to those whose turn it is; start them with `start`, or hand them back with `put_back`."""
        taken: list[Run] = []
        while self._ready and not self.held and len(self._busy) < self._concurrency:
            if self._ready[0].cause is not None:
                break  # its cancel is being journaled
            run = self._ready.popleft()
            del self._waiting[run.entry.seq]
            run.phase = _STARTING
            self._busy[run.entry.seq] = run
            taken.append(run)
        return taken

    def put_back(self, runs: Sequence[Run]) -> None:
        """Return runs whose RUNNING could not be journaled to the head of the queue."""
        for run in reversed(runs):
            del self._busy[run.entry.seq]
            run.phase = _WAITING
            self._waiting[run.entry.seq] = run
            self._ready.appendleft(run)

    def remove(self, run: Run) -> None:
        """A waiting run will never start."""
        run.phase = _ENDED
        del self._waiting[run.entry.seq]
        if run in self._ready:
            self._ready.remove(run)
            if run.key is not None:
                self._free_key(run.key)
        elif run.key is not None:
            self._keys[run.key].remove(run)

    def start(self, runs: Sequence[Run]) -> None:
        """Call the drivers of runs whose RUNNING is durable."""
        if not runs:
            return
        now_s = self._clock.monotonic()
        first_due_s = float("inf")
        for run in runs:
            run.phase = _RUNNING
            run.due_s = now_s + (run.action.timeout_s if run.cause is None else self._stop_grace_s)
            first_due_s = min(first_due_s, run.due_s)
        self._to_run.extend(runs)
        if not self._idle_workers:
            self._staff()
        self._watch(first_due_s)

    def ask_stop(self, run: Run, cause: StopCause) -> None:
        """Ask a run with a slot to stop; the first cause counts."""
        if run.cause is None:
            self._tell_stop(run, cause)
            self._watch(run.due_s)

    def stop_all(self, cause: StopCause) -> None:
        """Ask every run with a slot to stop."""
        for run in list(self._busy.values()):
            self.ask_stop(run, cause)

    async def close(self) -> None:
        """End all tasks now. Runs that have not ended stay RUNNING in the journal."""
        self.held = True
        tasks = [*self._workers] + ([self._watchdog] if self._watchdog else [])
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_GRACE_S)  # a driver that swallows it must not hold the node

    def _release(self, run: Run) -> None:
        run.phase = _ENDED
        del self._busy[run.entry.seq]
        if run.key is not None:
            self._free_key(run.key)

    def _free_key(self, key: str) -> None:
        queue = self._keys[key]
        if queue:
            self._ready.append(queue.popleft())
        else:
            del self._keys[key]

    def _tell_stop(self, run: Run, cause: StopCause) -> None:
        run.cause = cause
        if run.stop is not None:
            run.stop.set()
        run.due_s = self._clock.monotonic() + self._stop_grace_s

    def _staff(self) -> None:
        self._idle_workers += 1
        worker = asyncio.get_running_loop().create_task(self._work())
        self._workers.add(worker)
        worker.add_done_callback(self._workers.discard)

    async def _work(self) -> None:
        self._idle_workers -= 1
        task = asyncio.current_task()
        to_run = self._to_run
        while to_run:
            run = to_run.popleft()
            if to_run and not self._idle_workers:  # for the rest, should this one take its time
                self._staff()
            outcome = await self._call(run, task)
            if run.phase is _RUNNING:
                self._release(run)
                self._ended(run, outcome)

    async def _call(self, run: Run, task: asyncio.Task[None] | None) -> Outcome | None:
        if run.cause is not None:
            return Outcome(OutcomeState.CANCELLED, {}, run.cause, "stopped before it started")
        run.task = task
        run.stop = asyncio.Event()
        entry, action = run.entry, run.action
        invocation = Invocation(entry.command_id, action.name, run.arguments, action.timeout_s, run.stop, entry.actor)
        try:
            return await self._actions.run(invocation)
        except asyncio.CancelledError:
            if not run.cancelled:
                raise  # the node ends
            if run.task is not None:
                run.task.uncancel()
            return None
        finally:
            run.task = None

    def _watch(self, due_s: float) -> None:
        if self._watchdog is not None and not self._watchdog.done():
            if due_s >= self._watch_due_s:
                return
            self._watchdog.cancel()
        self._watch_due_s = due_s
        self._watchdog = asyncio.get_running_loop().create_task(self._step_overdue())

    async def _step_overdue(self) -> None:
        while True:
            await self._clock.sleep(max(0.0, self._watch_due_s - self._clock.monotonic()))
            now_s = self._clock.monotonic()
            for run in [run for run in self._busy.values() if run.phase is _RUNNING and run.due_s <= now_s]:
                self._step(run)
            due = [run.due_s for run in self._busy.values() if run.phase is _RUNNING]
            if not due:
                return
            self._watch_due_s = min(due)

    def _step(self, run: Run) -> None:
        if run.cause is None:
            self._tell_stop(run, StopCause.TIMEOUT)
        elif not run.cancelled and run.task is not None:
            run.cancelled = True
            run.due_s = self._clock.monotonic() + CANCEL_GRACE_S
            run.task.cancel()
        else:
            log.error("run_given_up", action=run.action.name, command_id=run.entry.command_id.hex(), cause=run.cause)
            self._release(run)
            self._ended(run, None)
