"""One command as the node remembers it, and what changes about it.

A change is made, numbered and journaled before the entry becomes what it says: until then everybody reads the entry as
it stands on the disk. A report is encoded once, when its number is given: the same bytes are journaled, kept until they
are acknowledged, and sent.
"""

from __future__ import annotations

from dataclasses import dataclass

from fleet.v1 import command_pb2
from fleet.v1.command_pb2 import CommandState


@dataclass(slots=True, eq=False)
class Entry:
    """One command in the journal. Times are server time in Unix milliseconds, 0 if it never happened.

    Args:
        seq: its monotonic_seq.
        command_id: 16 bytes.
        digest: `fleet.sequence.command_digest`.
        actor: on whose behalf.
        action: full name.
        arguments: JSON as it came; empty once it cannot run any more.
        not_after_ms: it must not start later.
        accepted_at_ms: when its seq was accepted; what is too far away never was.
        state: where it stands.
        report_no: number of the newest report about it.
        started_at_ms: when it was handed to its driver.
        final_report: the report about its end as it is sent; empty while it has not ended.
        changing: a change of it is not durable yet.
        deferred: its report is held back on this stream, because the next one is on its way to the disk.
    """

    seq: int
    command_id: bytes
    digest: bytes
    actor: str
    action: str
    arguments: bytes
    not_after_ms: int
    accepted_at_ms: int
    state: CommandState.ValueType
    report_no: int = 0
    started_at_ms: int = 0
    final_report: bytes = b""
    changing: bool = False
    deferred: bool = False

    def report(self) -> bytes:
        """The newest report about it, a serialised `Report`. Most commands end before anybody asks how they started."""
        if self.final_report:
            return self.final_report
        return command_pb2.Report(
            report_no=self.report_no,
            command_id=self.command_id,
            monotonic_seq=self.seq,
            state=self.state,
            accepted_at_ms=self.accepted_at_ms,
            started_at_ms=self.started_at_ms,
        ).SerializeToString()


@dataclass(slots=True, eq=False)
class Change:
    """What an entry becomes once this is durable.

    Args:
        entry: as it stands.
        state: its next one; the same again when it is only told again.
        started_at_ms: as it stands afterwards.
        ended_at_ms: 0 when it does not end.
        report: about its end, without a number; None when it does not end.

    `number` sets `report_no` and `final_report`.
    """

    entry: Entry
    state: CommandState.ValueType
    started_at_ms: int
    ended_at_ms: int = 0
    report: command_pb2.Report | None = None
    report_no: int = 0
    final_report: bytes = b""

    def number(self, report_no: int) -> None:
        """Give it its report_no; a later call, after a commit that failed, gives it another one."""
        self.report_no = report_no
        if self.report is not None:
            self.report.report_no = report_no
            self.final_report = self.report.SerializeToString()

    def stands(self) -> None:
        """It is durable: the entry is what it says."""
        entry = self.entry
        entry.state = self.state
        entry.report_no = self.report_no
        entry.started_at_ms = self.started_at_ms
        entry.changing = entry.deferred = False
        if self.final_report:
            entry.final_report = self.final_report
            entry.arguments = b""
