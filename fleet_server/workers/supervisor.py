"""The supervisor of `fleet-server run --workers N`: starts, watches, replaces and ends N server processes.

Mental model
    Each worker has a keeper, a task that runs one process after another. It ends with the exit code that the whole is
    to end with: 0 after a stop, another one when going on makes no sense.
    Until all workers served once, any that ends badly ends the whole, as one server that cannot start would. After
    that it is started again, later each time; only when none serves and one keeps failing the whole gives up.
    A stop, and a worker that is replaced, follow what the worker promised: it is killed when it is not gone by then.
    It holds the data folder's lock and no port: nodes and operators talk to workers alone. It loads nothing heavy.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

from fleet.backoff import Backoff, BackoffPolicy
from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.metrics_listener import Health
from fleet.service_manager import ServiceManager
from fleet_server.workers import rules
from fleet_server.workers.plan import Plan
from fleet_server.workers.process import WorkerProcess
from fleet_server.workers.rules import Failures, Phase

log = get_logger(__name__)

_RESTARTS = BackoffPolicy(initial_s=1.0, maximum_s=30.0, stable_s=rules.STABLE_S)
_FAILED = 1
_LOOK_S = 0.5
_TELL_S = 2.0
_STOOD_STILL_S = 1.0


class Supervisor:
    """See the module.

    Args:
        plan: what to run.
        manager: whoever started this process.
        clock: the machine's.
    """

    def __init__(self, plan: Plan, manager: ServiceManager, clock: Clock) -> None:
        self._plan = plan
        self._manager = manager
        self._clock = clock
        self._watchdog_s = rules.watchdog_s(manager.watchdog_s)
        self._keepers = [_Keeper(number, self) for number in range(1, plan.count + 1)]
        self._served = False
        self.leaving = asyncio.Event()
        self._rolling: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Until all workers have ended; the exit code."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        loop.add_signal_handler(signal.SIGHUP, self._roll)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        watching = asyncio.create_task(self._watch(), name="watch")
        running = {asyncio.create_task(keeper.run(), name=f"worker-{keeper.number}") for keeper in self._keepers}
        code = 0
        try:
            while running:
                await asyncio.wait({watching, *running}, return_when=asyncio.FIRST_COMPLETED)
                if watching.done():
                    watching.result()  # it ends by a fault alone; workers without a supervisor end by themselves
                done = {task for task in running if task.done()}
                running -= done
                for ended in done:
                    code = code or ended.result()
                    self._stop("a worker failed" if ended.result() else "its workers have ended")
        finally:
            watching.cancel()
            if self._rolling is not None:
                self._rolling.cancel()
        log.info("workers_ended", exit_code=code)
        return code

    def healthz(self) -> Health:
        """Whether each worker that runs gives signs of life. One that does not is replaced by itself."""
        overdue = [str(process.number) for process in self._processes() if process.left_s < 0]
        return Health(not overdue, f"worker {', '.join(overdue)} hangs" if overdue else "alive")

    def readyz(self) -> Health:
        """Whether nodes find a worker here."""
        ready = any(process.phase is Phase.READY for process in self._processes())
        return Health(self._served and ready and not self.leaving.is_set(), self._status())

    def launch(self, number: int) -> WorkerProcess:
        """Start one worker's process."""
        process = WorkerProcess(number, self._plan.arguments, self._watchdog_s, self._clock, self._changed)
        log.info("worker_started", worker=number, pid=process.pid)
        return process

    def may_fail(self, keeper: _Keeper) -> bool:
        """Whether a worker that ended badly is started again."""
        if not self._served:
            return False
        return not keeper.failures.is_crash_loop([other.phase for other in self._keepers if other is not keeper])

    def _changed(self) -> None:
        if not self._served and all(keeper.phase is Phase.READY for keeper in self._keepers):
            self._served = True
            log.info("workers_ready", workers=self._plan.count)
            self._manager.ready(self._status())

    def _status(self) -> str:
        return rules.status_line(
            [keeper.phase for keeper in self._keepers], [process.said for process in self._processes()]
        )

    def _processes(self) -> Iterator[WorkerProcess]:
        for keeper in self._keepers:
            if keeper.process is not None and keeper.phase is not Phase.GONE:
                yield keeper.process

    def _signalled(self) -> None:
        if not self.leaving.is_set():
            self._stop("signalled")
            return
        for process in self._processes():
            process.hurry()

    def _stop(self, why: str) -> None:
        if self.leaving.is_set():
            return
        log.info("workers_ending", why=why)
        self.leaving.set()
        self._manager.stopping("draining")
        for process in self._processes():
            process.stop(all_end=True)

    def _reap(self) -> None:
        """Of all children: as pid 1 of a container it is given those of others, too."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for process in self._processes():
                if process.pid == pid:
                    process.reaped(os.waitstatus_to_exitcode(status))
                    break

    async def _watch(self) -> None:
        """Kill what hangs; tell the service manager as long as nothing does."""
        signs_s = self._manager.watchdog_s / 2
        pause_s = min(_LOOK_S, signs_s / 2) if signs_s else _LOOK_S
        next_sign_s = next_status_s = 0.0
        looked_s = self._clock.monotonic()
        while True:
            late_s = self._clock.monotonic() - looked_s - pause_s
            if late_s > _STOOD_STILL_S:
                for process in self._processes():
                    process.excuse(late_s)
            for process in self._processes():
                if process.left_s < 0:
                    log.error("worker_hangs", worker=process.number, pid=process.pid, said=process.said)
                    process.kill()
            now_s = looked_s = self._clock.monotonic()
            if signs_s and now_s >= next_sign_s and self.healthz().ok:
                self._manager.alive()
                next_sign_s = now_s + signs_s
            if now_s >= next_status_s:
                self._manager.status(self._status())
                if self.leaving.is_set():
                    self._manager.extend(max((process.left_s for process in self._processes()), default=0.0) + _LOOK_S)
                next_status_s = now_s + _TELL_S
            await self._clock.sleep(pause_s)

    def _roll(self) -> None:
        if self.leaving.is_set() or (self._rolling is not None and not self._rolling.done()):
            return
        if not self._served:
            log.warning("roll_refused", why="not all workers serve yet")
            return
        self._rolling = asyncio.create_task(self._replace_all(), name="roll")

    async def _replace_all(self) -> None:
        """One worker after the other drains to the rest; its successor serves before the next one goes."""
        self._manager.reloading("workers are replaced one by one")
        log.info("roll_begun", workers=self._plan.count)
        for keeper in self._keepers:
            if not await keeper.replace():
                if not self.leaving.is_set():
                    log.error("roll_stopped", worker=keeper.number, why="it did not come back: see its log")
                break
        else:
            log.info("roll_done", workers=self._plan.count)
        if not self.leaving.is_set():
            self._manager.ready(self._status())


class _Keeper:
    """Keeps one worker running."""

    def __init__(self, number: int, supervisor: Supervisor) -> None:
        self.number = number
        self.failures = Failures()
        self.process: WorkerProcess | None = None
        self._supervisor = supervisor
        self._backoff = Backoff(_RESTARTS)
        self._replacing = False
        self._wanted = asyncio.Event()
        self._came: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    @property
    def phase(self) -> Phase:
        """Of its process."""
        return Phase.GONE if self.process is None else self.process.phase

    async def run(self) -> int:
        """One process after another; the exit code that the whole is to end with."""
        while True:
            code = await self._live()
            if self._supervisor.leaving.is_set():
                return rules.exit_code(code, leaving=True)
            if self._replacing:
                self._replacing = False
                continue
            if code and not self._supervisor.may_fail(self):
                log.error("worker_given_up", worker=self.number, failures=self.failures.in_a_row)
                return rules.exit_code(code)
            await self._rest()  # one that an operator drained comes back, too: a stop of the whole takes it away
            if self._supervisor.leaving.is_set():
                return 0

    async def replace(self) -> bool:
        """Have its process end and another one serve; False when that one fails, or all end before."""
        self._came = asyncio.get_running_loop().create_future()
        if self.process is not None and self.phase in (Phase.STARTING, Phase.READY):
            self._replacing = True
            self.process.stop()
        self._wanted.set()
        return await self._came

    async def _live(self) -> int:
        self._wanted.clear()
        try:
            process = self.process = self._supervisor.launch(self.number)
        except OSError as error:  # no memory, or no process left
            log.error("worker_not_started", worker=self.number, error=str(error))
            self.failures.ended(_FAILED, 0.0)
            self._tell_came(False)
            return _FAILED
        serving = asyncio.ensure_future(process.serving.wait())
        first: set[asyncio.Future[Any]] = {serving, process.ended}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        serving.cancel()
        self._tell_came(process.serving.is_set())
        code = await process.ended
        lived_s = process.lived_s
        ending_well = rules.exit_code(code, leaving=self._supervisor.leaving.is_set()) == 0
        say = log.info if ending_well else log.error
        say("worker_ended", worker=self.number, pid=process.pid, how=rules.describe(code), lived_s=round(lived_s, 1))
        self._backoff.ended(lived_s)
        if not ending_well and not self._replacing:
            self.failures.ended(code, lived_s)
        return code

    def _tell_came(self, serves: bool) -> None:
        if not self._came.done() and not self._replacing:
            self._came.set_result(serves)

    async def _rest(self) -> None:
        delay_s = self._backoff.next_delay_s()
        log.info("worker_restarts", worker=self.number, after_s=round(delay_s, 1), failures=self.failures.in_a_row)
        waiting = [asyncio.create_task(event.wait()) for event in (self._wanted, self._supervisor.leaving)]
        await asyncio.wait(waiting, timeout=delay_s, return_when=asyncio.FIRST_COMPLETED)
        for each in waiting:
            each.cancel()
