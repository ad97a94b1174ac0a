"""Journaled commands on their way through the runner: who starts when, what a restart means, what ended.

Every step that lets a driver be called is durable before the driver is; every end is recorded, and frees the way for
the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass

from fleet.clock import Clock, ServerTime
from fleet.logs import get_logger
from fleet.v1.command_pb2 import CommandState
from fleet_node.commands import reports, rules
from fleet_node.commands.audit_rows import AuditEvent
from fleet_node.commands.entry import Entry
from fleet_node.commands.intake import Intake, Plan
from fleet_node.commands.ledger import FIRST_RETRY_S, Ledger
from fleet_node.commands.rules import Objection, Resume
from fleet_node.commands.runner import CANCEL_GRACE_S, Run, Runner, StopCause
from fleet_node.commands.store import JournalUnavailableError
from fleet_node.drivers.api import Outcome
from fleet_node.drivers.registry import DriverRegistry
from fleet_node.observability.metrics import CommandMetrics

log = get_logger(__name__)

_EXPIRY_CHECK_S = 5.0
_RUNNING = CommandState.COMMAND_STATE_RUNNING  # an enum of protobuf costs a look-up each time


@dataclass(frozen=True, slots=True)
class CommandLimits:
    """What a node does at once.

    Args:
        concurrency: commands that run at a time.
        max_in_flight: commands that the server may have sent without an answer.
        max_waiting: accepted commands that wait for their turn; beyond it statements wait.
        stop_grace_s: how long a command may take to stop when asked.
    """

    concurrency: int = 32
    max_in_flight: int = 64
    max_waiting: int = 256
    stop_grace_s: float = 10.0


class Execution:
    """Runner and ledger together.

    Args:
        registry: the drivers.
        intake: makes runs of journaled commands.
        ledger: where every step is written.
        limits: see `CommandLimits`.
    """

    def __init__(
        self,
        *,
        registry: DriverRegistry,
        intake: Intake,
        ledger: Ledger,
        clock: Clock,
        server_time: ServerTime,
        metrics: CommandMetrics,
        limits: CommandLimits,
    ) -> None:
        self._registry = registry
        self._intake = intake
        self._ledger = ledger
        self._clock = clock
        self._server_time = server_time
        self._metrics = metrics
        self._limits = limits
        self._runner = Runner(
            actions=registry,
            clock=clock,
            concurrency=limits.concurrency,
            stop_grace_s=limits.stop_grace_s,
            ended=self._ended,
        )
        self._room = asyncio.Event()
        self._room.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._pumping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._expiring = False

    @property
    def busy(self) -> int:
        """Commands that run, or are about to."""
        return self._runner.busy

    def find(self, seq: int) -> Run | None:
        """The run of that seq, unless it has ended."""
        return self._runner.find(seq)

    async def wait_room(self) -> None:
        """Return once the queue of waiting commands takes more, or the node ends."""
        if not self._room.is_set():
            await self._room.wait()

    def hold(self, held: bool) -> None:
        """Start nothing new, or go on."""
        self._runner.held = held
        self._pump()

    def resume_journaled(self, entries: Sequence[Entry], seq_floor: int) -> None:
        """Decide about what the last process left unfinished (docs/protocol.md, "Commands").

        Args:
            entries: in seq order.
            seq_floor: see `leave_behind`.
        """
        now_ms = self._server_time.now_ms()
        for entry in entries:
            if entry.seq <= seq_floor:
                self._ledger.record(reports.left_behind(entry, now_ms))
                continue
            action = self._registry.action(entry.action)
            decision = rules.after_restart(
                entry.state,
                not_after_ms=entry.not_after_ms,
                server_now_ms=now_ms,
                action=action,
                permitted=action is not None and self._intake.permits(action, entry),
            )
            run = self._intake.run_of(entry) if decision in (Resume.RUN, Resume.REJECT) else None
            if decision is Resume.RUN and isinstance(run, Run):
                self._runner.enqueue(run)
                continue
            objection = run if isinstance(run, Objection) else None
            if decision is Resume.RUN:  # the action's schema is another one now
                ran = entry.state == _RUNNING
                decision = Resume.INTERRUPT if ran else Resume.REJECT
            self._ledger.record(reports.after_restart(entry, decision, objection, now_ms))
            log.info("command_not_resumed", command_id=entry.command_id.hex(), decision=decision.value)

    def leave_behind(self, seq_floor: int) -> None:
        """Start nothing any more that waits at or under `seq_floor`: a person has said that this machine is the node
        since, and until then another one, or a later disk of this one, may have run it."""
        now_ms = self._server_time.now_ms()
        for run in self._runner.waiting if seq_floor else ():
            if run.entry.seq <= seq_floor and run.cause is None:
                self._runner.remove(run)
                self._ledger.record(reports.left_behind(run.entry, now_ms))

    async def accept(self, plan: Plan) -> None:
        """Make a plan durable, with RUNNING in the same commit for what starts at once, then start it.

        Raises:
            JournalUnavailableError: nothing of it stands.
        """
        admitted, waiting = self._runner.admit(plan.runs)
        for run in admitted:
            run.entry.state = _RUNNING
            run.entry.started_at_ms = run.entry.accepted_at_ms
        self._note_load()

        def done(error: JournalUnavailableError | None) -> None:
            if error is None:
                for run in waiting:
                    self._runner.enqueue(run)
                self._runner.start(admitted)
            else:
                for run in admitted:
                    self._runner.withdraw(run)
            if waiting or error is not None:
                self._pump()

        await self._ledger.accept(
            plan.entries,
            plan.not_run,
            plan.again,
            last_accepted_seq=plan.last_accepted_seq,
            consumed=plan.consumed,
            uses=[permit.use for permit in plan.permits.values()],
            audited=plan.audited,
            done=done,
        )

    async def cancel_waiting(self, run: Run, audited: AuditEvent) -> None:
        """End a run that has no slot; `audited` in the same commit.

        Raises:
            JournalUnavailableError: it waits on.
        """
        run.cause = StopCause.CANCELLED  # it must not start while the disk is written
        try:
            cancelled = reports.cancelled_unstarted(run.entry, self._server_time.now_ms())
            await self._ledger.finish(cancelled, audited)
        except BaseException:
            run.cause = None
            self._pump()
            raise
        self._runner.remove(run)
        self._pump()

    def ask_stop(self, run: Run, cause: StopCause) -> None:
        """Ask a run with a slot to stop."""
        self._runner.ask_stop(run, cause)

    def stop_all(self, cause: StopCause) -> None:
        """Ask every run with a slot to stop."""
        self._runner.stop_all(cause)

    def end_waiting(self) -> None:
        """The node ends: nobody waits for room any more."""
        self._closing = True
        self._room.set()

    async def close(self) -> None:
        """Wait, within the grace, for runs that were asked to stop, then end. What has not ended stays RUNNING in the
        journal."""
        idle = asyncio.ensure_future(self._idle.wait())
        timer = asyncio.ensure_future(self._clock.sleep(self._limits.stop_grace_s + CANCEL_GRACE_S))
        await asyncio.wait({idle, timer}, return_when=asyncio.FIRST_COMPLETED)
        for task in (idle, timer, *self._tasks):
            task.cancel()
        await self._runner.close()

    def _pump(self) -> None:
        """Start whoever's turn it is."""
        self._pumping = False
        if self._runner.waiting_count:
            self._start_waiting()
        self._note_load()

    def _start_waiting(self) -> None:
        now_ms = self._server_time.now_ms()
        starting: list[Run] = []
        while runs := self._runner.take_startable():
            for run in runs:
                if now_ms > run.entry.not_after_ms:
                    self._runner.withdraw(run)
                    self._ledger.record(reports.expired(run.entry, now_ms))
                elif (objection := self._intake.objection(run)) is not None:
                    self._runner.withdraw(run)
                    self._ledger.record(reports.not_permitted(run.entry, objection, now_ms))
                else:
                    starting.append(run)
        if starting:  # RUNNING is journaled first
            changes = [reports.running(run.entry, now_ms) for run in starting]
            self._ledger.start(changes, lambda error: self._started(starting, error))

    def _started(self, runs: list[Run], error: JournalUnavailableError | None) -> None:
        if error is None:
            self._runner.start(runs)
            return
        now_ms = self._server_time.now_ms()
        for run in [run for run in runs if run.cause is not None]:  # asked to stop while the disk failed
            self._runner.withdraw(run)
            self._ledger.record(reports.cancelled_unstarted(run.entry, now_ms))
        self._runner.put_back([run for run in runs if run.cause is None])
        self._note_load()
        self._spawn(self._pump_later())

    async def _pump_later(self) -> None:
        await self._clock.sleep(FIRST_RETRY_S)
        self._pump()

    def _ended(self, run: Run, outcome: Outcome | None) -> None:
        self._ledger.record(reports.ended(run, outcome, self._server_time.now_ms()))
        if not self._pumping:  # once for all that end in this turn: those that they make room for start in one commit
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    async def _expire_waiting(self) -> None:
        """Tell at once that a waiting command expired, rather than when its turn comes."""
        while self._runner.waiting_count:
            await self._clock.sleep(_EXPIRY_CHECK_S)
            now_ms = self._server_time.now_ms()
            for run in self._runner.waiting:
                if now_ms > run.entry.not_after_ms and run.cause is None:
                    self._runner.remove(run)
                    self._ledger.record(reports.expired(run.entry, now_ms))
            self._pump()
        self._expiring = False

    def _note_load(self) -> None:
        busy, waiting = self._runner.busy, self._runner.waiting_count
        self._metrics.running.set(busy)
        (self._idle.clear if busy else self._idle.set)()
        if waiting < self._limits.max_waiting or self._closing:
            self._room.set()
        else:
            self._room.clear()
        if waiting and not self._expiring:
            self._expiring = True
            self._spawn(self._expire_waiting())

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
