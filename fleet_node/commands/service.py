"""The commands room: takes statements and cancels from the newest stream, and tells what became of them.

Mental model
    Judging and journaling happen under one lock, statement after statement; running and reporting do not wait for it.
    Nothing runs before it is durable, and nothing from an earlier process before this one was welcomed.
    Only the newest stream counts: an older one's statements are ignored from the moment a newer one was welcomed.
    A journal that cannot be written refuses statements and starts nothing; results wait in memory until it can.
"""

from __future__ import annotations

import asyncio
import contextlib

from fleet.clock import Clock, ServerTime
from fleet.node_audit import JSON, NodeAuditKind
from fleet.sequence import StatementReason, StatementRefusal, StreamContext
from fleet.trust import TrustState
from fleet.v1 import command_pb2, gateway_pb2, trust_pb2
from fleet.v1.command_pb2 import CancelOutcome, CommandState
from fleet_node.commands import audit_rows, rules
from fleet_node.commands.audit_sender import AuditSender
from fleet_node.commands.drain import Drain
from fleet_node.commands.execution import CommandLimits, Execution
from fleet_node.commands.floor import take_floor
from fleet_node.commands.intake import Intake
from fleet_node.commands.journal import Journal
from fleet_node.commands.ledger import Ledger
from fleet_node.commands.protection import Protection, Verifier
from fleet_node.commands.refusals import Refusals
from fleet_node.commands.runner import Phase, StopCause
from fleet_node.commands.store import JournalUnavailableError
from fleet_node.drivers.registry import DriverRegistry
from fleet_node.link.key_audit import Unheard
from fleet_node.link.ports import (
    MAX_REPORT_FRAME_BYTES,
    MAX_REPORTS_PER_FRAME,
    HelloCounters,
    KeyAuditPort,
    TrustPort,
    Uplink,
)
from fleet_node.observability.metrics import CommandMetrics

MAX_BACKLOG = 16_384
MAX_BACKLOG_BYTES = 128 * 1024 * 1024
"""Unacknowledged reports beyond which a node takes no more commands: its disk is not the server's queue. What it took
before still ends and is reported, so it may hold what its commands in flight write, and no more."""


class CommandService:
    """Implements `CommandPort`. Construct it on the running event loop: it starts the journal's thread, reads what the
    last process left, and runs none of that before the first welcome.

    Args:
        journal: open, not started; the service closes it.
        registry: the drivers.
        trust: the bundle in force.
        site: the node's site.
        verifier: judges intents; by default one that pinned nobody, so that every protected action is refused.
        clock: for time limits, retries and the drain's deadline.
        server_time: kept by the link, which has told it the time of a welcome before it calls `opened`.
        limits: see `CommandLimits`.
        refusals: told of what is refused.

    Raises:
        JournalUnavailableError: the journal cannot be read.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        registry: DriverRegistry,
        trust: TrustPort,
        site: str,
        clock: Clock,
        server_time: ServerTime,
        metrics: CommandMetrics,
        limits: CommandLimits | None = None,
        verifier: Verifier | None = None,
        refusals: KeyAuditPort | None = None,
    ) -> None:
        self._journal = journal
        self._trust = trust
        self._server_time = server_time
        self._metrics = metrics
        self._limits = limits or CommandLimits()
        self._refusals = Refusals(refusals or Unheard(), metrics)
        recovered = journal.start()
        self._intake = Intake(
            offers=registry,
            protection=Protection(
                verifier or Verifier(),
                recovered.used,
                clock=clock,
                server_time=server_time,
                refusals=self._refusals,
            ),
            trust=self._trust_state,
            site=site,
            server_time=server_time,
        )
        self._left_unfinished = recovered.unfinished
        self._ledger = Ledger(
            journal=journal,
            recovered=recovered,
            clock=clock,
            metrics=metrics,
            wake=self._wake,
            settled=self._tell_drain,
        )
        self._execution = Execution(
            registry=registry,
            intake=self._intake,
            ledger=self._ledger,
            clock=clock,
            server_time=server_time,
            metrics=metrics,
            limits=self._limits,
        )
        self._drain = Drain(
            clock=clock, metrics=metrics, overdue=lambda: self._execution.stop_all(StopCause.DRAIN_DEADLINE)
        )
        self._audit_sender = AuditSender(journal=journal, clock=clock, server_time=server_time, metrics=metrics)
        self._stream: _Stream | None = None
        self._lock = asyncio.Lock()
        self._turn = asyncio.Lock()
        self._welcomed = False
        self._closing = False
        self._told_owner_pin = journal.audit_owner_pin

    def audit(self, kind: NodeAuditKind, **detail: JSON) -> None:
        """Record in the node's audit what no command of the journal says; durable with the journal's next commit."""
        self._journal.audit_nowait(audit_rows.event(kind, self._server_time.now_ms(), detail))

    def tell_owner_pin(self, pin: bytes) -> None:
        """Record in the node's audit which owner is pinned, unless it says so already. Whoever pinned one while no
        process ran is told of by the next one."""
        if pin and pin.hex() != self._told_owner_pin:
            told = audit_rows.owner_pinned(pin.hex(), self._told_owner_pin, self._server_time.now_ms())
            self._journal.audit_nowait(told)
            self._told_owner_pin = pin.hex()

    def hello(self) -> HelloCounters:
        """See `CommandPort`."""
        audit_number = self._journal.audit_number  # before the chain: a chain that begins meanwhile has fewer rows
        return HelloCounters(
            last_accepted_seq=self._ledger.last_accepted_seq,
            first_report_no=self._ledger.first_report_no,
            last_report_no=self._ledger.last_report_no,
            drained=self._drain.draining,
            max_in_flight=self._limits.max_in_flight,
            audit_chain=self._journal.audit_chain,
            audit_number=audit_number,
        )

    def opened(self, context: StreamContext, welcome: gateway_pb2.Welcome, uplink: Uplink) -> _Stream:
        """See `CommandPort`."""
        self._stream = _Stream(self, context, uplink)
        self._ledger.start_over()
        if self._drain.order(welcome.drained):
            self.audit(NodeAuditKind.DRAIN_ORDERED if welcome.drained else NodeAuditKind.DRAIN_ENDED, deadline_ms=0)
        if not self._welcomed:
            self._welcomed = True
            self._execution.resume_journaled(self._left_unfinished, welcome.seq_floor)
            self._left_unfinished = []
        self._execution.leave_behind(welcome.seq_floor)
        self._execution.hold(self._drain.draining or self._closing)
        self._tell_drain()
        self._audit_sender.opened(uplink)
        uplink.wake()
        return self._stream

    def acked(self, report_no: int) -> None:
        """See `CommandPort`."""
        self._ledger.acked(report_no)
        if not self._ledger.backlog:
            self._tell_drain()

    def audit_acked(self, ack: gateway_pb2.AuditAck) -> None:
        """See `CommandPort`."""
        self._audit_sender.acked(ack)

    def drain(self, order: gateway_pb2.DrainNode) -> None:
        """See `CommandPort`."""
        news = self._drain.order(order.drain, deadline_s=order.deadline_ms / 1000)
        if news:
            kind = NodeAuditKind.DRAIN_ORDERED if order.drain else NodeAuditKind.DRAIN_ENDED
            self.audit(kind, deadline_ms=order.deadline_ms)
        self._execution.hold(order.drain or self._closing or not self._welcomed)
        if news or order.drain:
            self._send_drained()

    async def close(self) -> None:
        """Stop what runs, within its grace, and close the journal. What does not end is left RUNNING in it."""
        self._closing = True
        self._drain.close()
        self._execution.hold(True)
        self._execution.end_waiting()
        self._execution.stop_all(StopCause.NODE_SHUTDOWN)
        async with self._lock:  # a statement that is being journaled gets its answer, then stops, too
            self._execution.stop_all(StopCause.NODE_SHUTDOWN)
        await self._execution.close()
        self._ledger.close()
        self._audit_sender.close()
        self.audit(NodeAuditKind.PROCESS_STOPPED, running=self._execution.busy)
        await self._journal.close()

    async def take_statement(self, stream: _Stream, signed: trust_pb2.Signed) -> None:
        """Take a statement of `stream`, unless a newer one took over."""
        async with self._turn:  # apart from the lock: a cancel must get past statements that wait for room
            await self._execution.wait_room()
            async with self._lock:
                if stream is not self._stream or self._closing:
                    return
                try:
                    await self._settle_floor(stream)
                    await self._journal_statement(stream, signed)
                except StatementRefusal as refusal:
                    self._refuse(stream, signed, refusal)

    async def take_cancel(self, stream: _Stream, signed: trust_pb2.Signed) -> None:
        """Take a cancel of `stream`, unless a newer one took over."""
        async with self._lock:
            if stream is not self._stream or self._closing:
                return
            try:
                cancel = self._intake.open_cancel(signed, stream.context)
                outcome = await self._cancel(cancel)
            except JournalUnavailableError as error:
                self._refuse(stream, signed, _unavailable(str(error)))
                return
            except StatementRefusal as refusal:
                self._refuse(stream, signed, refusal)
                return
        answer = command_pb2.CancelResult(
            command_id=cancel.command_id, monotonic_seq=cancel.monotonic_seq, outcome=outcome
        )
        stream.uplink.send_control(gateway_pb2.NodeControl(cancel_result=answer))

    async def take_floor(self, stream: _Stream, signed: trust_pb2.Signed) -> None:
        """Take a floor on `stream`. One that cannot be journaled is owed: without it no statement is judged."""
        async with self._lock:
            stream.floor_owed = signed
            with contextlib.suppress(StatementRefusal):
                await self._settle_floor(stream)

    def next_reports(self, stream: _Stream, max_count: int, max_bytes: int) -> list[bytes]:
        """Reports for `stream`, if it is the newest."""
        return self._ledger.take_reports(max_count, max_bytes) if stream is self._stream else []

    def next_audit(self, stream: _Stream) -> bytes | None:
        """Rows of the audit for `stream`, if it is the newest."""
        return self._audit_sender.take() if stream is self._stream else None

    def closed(self, stream: _Stream) -> None:
        """`stream` has ended."""
        if stream is self._stream:
            self._stream = None
            self._audit_sender.close()

    async def _settle_floor(self, stream: _Stream) -> None:
        if stream.floor_owed is not None:
            rooms = self._intake, self._ledger, self._journal, self._refusals
            await take_floor(stream.floor_owed, stream.context, *rooms, now_ms=self._server_time.now_ms())
            stream.floor_owed = None

    async def _journal_statement(self, stream: _Stream, signed: trust_pb2.Signed) -> None:
        ledger = self._ledger
        last_accepted_seq = ledger.last_accepted_seq
        statement = self._intake.open_statement(signed, stream.context, last_accepted_seq)
        if ledger.backlog >= MAX_BACKLOG or ledger.backlog_bytes >= MAX_BACKLOG_BYTES:
            raise _unavailable(
                f"{ledger.backlog} reports of {ledger.backlog_bytes} bytes wait for the server's acknowledgement"
            )
        seqs: list[int] = []
        if statement.commands[0].monotonic_seq <= last_accepted_seq:  # they grow: otherwise all are new
            seqs = [one.monotonic_seq for one in statement.commands if one.monotonic_seq <= last_accepted_seq]
        try:
            journaled = await ledger.find(seqs) if seqs else {}
            plan = self._intake.judge(
                statement, last_accepted_seq=last_accepted_seq, journaled=journaled, tombstones=ledger.tombstones
            )
            if plan.entries or plan.again:
                await self._execution.accept(plan)
        except JournalUnavailableError as error:
            self._metrics.disk_full.inc(len(statement.commands))
            raise _unavailable(str(error)) from error
        for refused in plan.refused:
            self._refusals.command(refused)
            stream.uplink.send_control(gateway_pb2.NodeControl(command_refused=refused))

    async def _cancel(self, cancel: command_pb2.CancelStatement) -> CancelOutcome.ValueType:
        seq = cancel.monotonic_seq
        accepted = seq <= self._ledger.last_accepted_seq
        entry = (await self._ledger.find([seq])).get(seq) if accepted else None
        if entry is not None and entry.command_id != cancel.command_id:
            entry = None
        run = None if entry is None else self._execution.find(seq)
        state = None if entry is None else entry.state
        if run is not None:
            # An idempotent one that was interrupted waits, journaled as RUNNING.
            is_waiting = run.phase is Phase.WAITING
            state = CommandState.COMMAND_STATE_ACCEPTED if is_waiting else CommandState.COMMAND_STATE_RUNNING
        elif state is not None and state not in rules.FINAL_STATES:
            outcome = CancelOutcome.CANCEL_OUTCOME_ALREADY_FINISHED  # its result is on its way to the disk
            self._journal.audit_nowait(self._audited_cancel(cancel, outcome))
            return outcome
        outcome = rules.cancel_outcome(state, accepted=accepted)
        waits = run is not None and outcome == CancelOutcome.CANCEL_OUTCOME_CANCELLED
        if waits and entry is not None and entry.state == CommandState.COMMAND_STATE_RUNNING:
            outcome = CancelOutcome.CANCEL_OUTCOME_STOPPING  # it ran once: the report alone says what is known of that
        audited = self._audited_cancel(cancel, outcome)
        if outcome == CancelOutcome.CANCEL_OUTCOME_TOMBSTONED:
            await self._ledger.bury(seq, cancel.command_id, audited)
        elif run is not None and waits:
            await self._execution.cancel_waiting(run, audited)
        else:
            self._journal.audit_nowait(audited)
        if run is not None and not waits and outcome == CancelOutcome.CANCEL_OUTCOME_STOPPING:
            self._execution.ask_stop(run, StopCause.CANCELLED)
        return outcome

    def _audited_cancel(
        self, cancel: command_pb2.CancelStatement, outcome: CancelOutcome.ValueType
    ) -> audit_rows.AuditEvent:
        return audit_rows.cancel(cancel, outcome, self._server_time.now_ms())

    def _refuse(self, stream: _Stream, signed: trust_pb2.Signed, refusal: StatementRefusal) -> None:
        refused = self._refusals.statement(signed, refusal)
        refused.last_accepted_seq = self._ledger.last_accepted_seq
        refused.bundle_version.generation, refused.bundle_version.number = self._trust.state.version
        stream.uplink.send_control(gateway_pb2.NodeControl(statement_refused=refused))

    def _tell_drain(self) -> None:
        if self._drain.draining:
            self._send_drained()

    def _send_drained(self) -> None:
        if self._stream is None:
            return
        running = self._execution.busy + self._ledger.unsaved
        if self._drain.draining and not running and self._ledger.backlog:
            return  # the last acknowledgement tells: who hears that all is done must find every result there
        drained = gateway_pb2.Drained(
            last_accepted_seq=self._ledger.last_accepted_seq,
            drained=self._drain.draining,
            running=running,
        )
        self._stream.uplink.send_control(gateway_pb2.NodeControl(drained=drained))

    def _wake(self) -> None:
        if self._stream is not None:
            self._stream.uplink.wake()

    def _trust_state(self) -> TrustState:
        return self._trust.state


class _Stream:
    """Implements `CommandStream` for one welcomed stream."""

    def __init__(self, service: CommandService, context: StreamContext, uplink: Uplink) -> None:
        self._service = service
        self.context = context
        self.uplink = uplink
        self.floor_owed: trust_pb2.Signed | None = None

    async def command_frame(self, frame: command_pb2.CommandFrame) -> None:
        """See `CommandStream`."""
        await self._service.take_statement(self, frame.signed)

    async def cancel_frame(self, frame: command_pb2.CancelFrame) -> None:
        """See `CommandStream`."""
        await self._service.take_cancel(self, frame.signed)

    async def floor_frame(self, signed: trust_pb2.Signed) -> None:
        """See `CommandStream`."""
        await self._service.take_floor(self, signed)

    def next_reports(
        self, max_count: int = MAX_REPORTS_PER_FRAME, max_bytes: int = MAX_REPORT_FRAME_BYTES
    ) -> list[bytes]:
        """See `CommandStream`."""
        return self._service.next_reports(self, max_count, max_bytes)

    def next_audit(self) -> bytes | None:
        """See `CommandStream`."""
        return self._service.next_audit(self)

    def close(self) -> None:
        """See `CommandStream`."""
        self._service.closed(self)


def _unavailable(detail: str) -> StatementRefusal:
    return StatementRefusal(StatementReason.JOURNAL_UNAVAILABLE, detail)
