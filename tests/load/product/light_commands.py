"""A commands room without a journal file: all that the product verifies and judges, and a driver that does nothing.

What a node does for a command before its disk is the product's own (`Intake`): signature, binding to the stream, order,
time to live, arguments. Its journal is a dictionary. Thousands of nodes fit into a process this way; where the node's
own cost is what is measured, whole nodes run (`fleet`).
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from fleet.clock import SystemClock
from fleet.metrics import Registry
from fleet.sequence import StatementRefusal, StreamContext
from fleet.v1 import gateway_pb2
from fleet_node.commands import reports
from fleet_node.commands.entry import Entry
from fleet_node.commands.intake import Intake
from fleet_node.commands.protection import Protection, Verifier
from fleet_node.commands.refusals import Refusals
from fleet_node.commands.used_intents import UsedIntents
from fleet_node.drivers.api import Outcome, OutcomeState
from fleet_node.drivers.registry import DriverRegistry
from fleet_node.link.key_audit import Unheard
from fleet_node.link.ports import HelloCounters, Uplink
from fleet_node.observability.metrics import NodeMetrics
from tests.load.product.idle_links import Member

_DONE = Outcome(OutcomeState.SUCCEEDED, {})
_MAX_IN_FLIGHT = 32
_REMEMBERED = 64
_REMEMBERED_IDS = 4_096
_TIMED = 16_384


@dataclass(slots=True)
class Tally:
    """What happened to the commands of all nodes of a process."""

    ran: int = 0
    acknowledged: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    ran_twice: int = 0
    ran_at_s: dict[bytes, float] = field(default_factory=dict)
    """By command id, on the monotonic clock, of the last `_TIMED` commands."""


class LightCommands:
    """Implements `CommandPort`.

    Args:
        tally: shared by the nodes of the process.
    """

    def __init__(self, member: Member, drivers: DriverRegistry, tally: Tally) -> None:
        metrics = NodeMetrics(Registry()).commands
        refusals = Refusals(Unheard(), metrics)
        clock = SystemClock()
        self._tally = tally
        self._intake = Intake(
            offers=drivers,
            protection=Protection(
                Verifier(), UsedIntents(), clock=clock, server_time=member.server_time, refusals=refusals
            ),
            trust=lambda: member.trust.state,
            site=member.membership.site,
            server_time=member.server_time,
        )
        self._server_time = member.server_time
        self._journal: dict[int, Entry] = {}
        self._last_accepted_seq = 0
        self._last_report_no = 0
        self._out: deque[tuple[int, bytes]] = deque()
        self._stream: _Stream | None = None
        self._ran_ids: OrderedDict[bytes, None] = OrderedDict()

    def hello(self) -> HelloCounters:
        """See `CommandPort`."""
        return HelloCounters(
            last_accepted_seq=self._last_accepted_seq,
            first_report_no=self._out[0][0] if self._out else 0,
            last_report_no=self._last_report_no,
            drained=False,
            max_in_flight=_MAX_IN_FLIGHT,
        )

    def opened(self, context: StreamContext, welcome: gateway_pb2.Welcome, uplink: Uplink) -> _Stream:
        """See `CommandPort`."""
        self._stream = _Stream(self, context, uplink)
        if self._out:
            uplink.wake()
        return self._stream

    def acked(self, report_no: int) -> None:
        """See `CommandPort`."""
        while self._out and self._out[0][0] <= report_no:
            self._out.popleft()
            self._tally.acknowledged += 1

    def audit_acked(self, ack: Any) -> None:
        """Nothing was sent."""

    def drain(self, order: Any) -> None:
        """Nothing runs for long."""

    def take(self, stream: _Stream, signed: Any) -> None:
        """A statement of `stream`, unless a newer one took over."""
        if stream is not self._stream:
            return
        try:
            statement = self._intake.open_statement(signed, stream.context, self._last_accepted_seq)
            plan = self._intake.judge(
                statement, last_accepted_seq=self._last_accepted_seq, journaled=self._journal, tombstones={}
            )
        except StatementRefusal as refusal:
            self._tally.refused[refusal.reason.value] += 1
            return
        for refused in plan.refused:
            self._tally.refused[refused.reason] += 1
        self._last_accepted_seq = plan.last_accepted_seq
        for run in plan.runs:
            self._run(run.entry.command_id)
            self._report(reports.ended(run, _DONE, self._server_time.now_ms()))
        for change in plan.not_run:
            self._report(change)
        for entry in plan.again:
            self._report(reports.told_again(entry))
        while len(self._journal) > _REMEMBERED:
            del self._journal[next(iter(self._journal))]
        stream.uplink.wake()

    def next_reports(self, stream: _Stream, max_count: int, max_bytes: int) -> list[bytes]:
        """Reports that `stream` has not given out."""
        if stream is not self._stream:
            return []
        fresh = (report for report in self._out if report[0] > stream.given_out)
        taken = list(islice(fresh, max_count))
        if taken:
            stream.given_out = taken[-1][0]
        return [report for _, report in taken]

    def _run(self, command_id: bytes) -> None:
        self._tally.ran += 1
        if command_id in self._ran_ids:
            self._tally.ran_twice += 1
        self._ran_ids[command_id] = None
        if len(self._ran_ids) > _REMEMBERED_IDS:
            self._ran_ids.popitem(last=False)
        times = self._tally.ran_at_s
        times[command_id] = time.monotonic()
        if len(times) > _TIMED:
            del times[next(iter(times))]

    def _report(self, change: Any) -> None:
        self._last_report_no += 1
        change.number(self._last_report_no)
        change.stands()
        self._journal[change.entry.seq] = change.entry
        self._out.append((self._last_report_no, change.final_report))


@dataclass(slots=True, eq=False)
class _Stream:
    """Implements `CommandStream`."""

    room: LightCommands
    context: StreamContext
    uplink: Uplink
    given_out: int = 0

    async def command_frame(self, frame: Any) -> None:
        """Verified, judged, run and reported before this returns."""
        self.room.take(self, frame.signed)

    async def floor_frame(self, signed: Any) -> None:
        """None comes to a node that was never adopted."""

    async def cancel_frame(self, frame: Any) -> None:
        """Not expected."""

    def next_reports(self, max_count: int = 256, max_bytes: int = 0) -> list[bytes]:
        """See `CommandStream`."""
        return self.room.next_reports(self, max_count, max_bytes)

    def next_audit(self) -> None:
        """None: what is audited is in a node's journal."""

    def close(self) -> None:
        """Nothing to close."""
