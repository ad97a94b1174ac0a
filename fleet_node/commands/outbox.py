"""Reports that the server has not acknowledged: which of them the newest stream still has to give out.

A command has at most one report here, its newest. Numbers only grow, each stream starts over at the first that is not
acknowledged, and an acknowledgement covers everything up to its number (docs/protocol.md, "Commands"). What does not
fit into memory is a bare number until its turn comes, and is then read from the journal again.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from itertools import islice

from fleet.v1 import command_pb2

MAX_MEMORY_BYTES = 4 * 1024 * 1024
_LIST_OVERHEAD_BYTES = 8  # tag and length of one report in its list


_Held = tuple[command_pb2.Report, int]  # with its size: a report passes here several times, its size is counted once


class Outbox:
    """Unacknowledged reports in report_no order.

    Args:
        numbers: what the journal holds unacknowledged, growing.
        max_memory_bytes: reports beyond it are left in the journal until they are sent.

    `last_report_no` is the highest number that it ever held.
    """

    def __init__(self, numbers: Iterable[int], *, max_memory_bytes: int = MAX_MEMORY_BYTES) -> None:
        self._max_memory_bytes = max_memory_bytes
        self._memory_bytes = 0
        self._pending: OrderedDict[int, _Held | None] = OrderedDict.fromkeys(numbers)
        self._unsent: deque[int] = deque(self._pending)
        self._deferred: set[int] = set()
        self.last_report_no = max(self._pending, default=0)

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def first_report_no(self) -> int:
        """First report that is not acknowledged; 0 when none waits."""
        return next(iter(self._pending), 0)

    def add(self, report: command_pb2.Report, *, replaces: int) -> None:
        """A report is durable.

        Args:
            report: numbered above all before it.
            replaces: number of the command's report before this one; 0 when it is the first.
        """
        if replaces:
            self._drop(replaces)
        size = report.ByteSize() + _LIST_OVERHEAD_BYTES
        fits = self._memory_bytes + size <= self._max_memory_bytes
        self._pending[report.report_no] = (report, size) if fits else None
        self._memory_bytes += size if fits else 0
        self._unsent.append(report.report_no)
        self.last_report_no = report.report_no

    def defer(self, report_no: int) -> None:
        """Hold back a report on this stream: the next one about its command is on its way to the disk."""
        self._deferred.add(report_no)

    def acked(self, report_no: int) -> None:
        """Forget everything up to `report_no`."""
        while self._pending and next(iter(self._pending)) <= report_no:
            _, held = self._pending.popitem(last=False)
            self._memory_bytes -= 0 if held is None else held[1]

    def start_over(self) -> None:
        """A new stream: everything goes out again."""
        self._deferred.clear()
        self._unsent = deque(self._pending)

    @property
    def ready(self) -> bool:
        """Whether `take` would give something, or has to wait for `missing`."""
        self._skip()
        return bool(self._unsent)

    def take(self, max_count: int, max_bytes: int) -> list[command_pb2.Report]:
        """The next reports for this stream, each once; stops at one that is not in memory. One that alone exceeds
        `max_bytes` goes alone."""
        taken: list[command_pb2.Report] = []
        size = 0
        self._skip()
        while self._unsent and len(taken) < max_count:
            held = self._pending[self._unsent[0]]
            if held is None:
                break
            size += held[1]
            if taken and size > max_bytes:
                break
            taken.append(held[0])
            self._unsent.popleft()
            self._skip()
        return taken

    def missing(self, limit: int) -> list[int]:
        """Numbers that have to be read from the journal before `take` goes on; empty when it need not wait."""
        self._skip()
        if not self._unsent or self._pending[self._unsent[0]] is not None:
            return []
        return [number for number in islice(self._unsent, limit) if self._pending.get(number, ...) is None]

    def loaded(self, asked: Iterable[int], reports: Iterable[command_pb2.Report]) -> None:
        """Answer to `missing`: what the journal no longer holds as newest is superseded and forgotten here, too."""
        found = {report.report_no: report for report in reports}
        for number in asked:
            if self._pending.get(number, ...) is not None:
                continue  # acknowledged or superseded while it was read
            report = found.get(number)
            if report is None:
                del self._pending[number]
            else:
                size = report.ByteSize() + _LIST_OVERHEAD_BYTES
                self._pending[number] = (report, size)
                self._memory_bytes += size

    def _skip(self) -> None:
        """Pass over what this stream need not give out: superseded, about to be, or acknowledged meanwhile."""
        while self._unsent and (self._unsent[0] not in self._pending or self._unsent[0] in self._deferred):
            self._unsent.popleft()

    def _drop(self, number: int) -> None:
        held = self._pending.pop(number, None)
        self._deferred.discard(number)
        if held is not None:
            self._memory_bytes -= held[1]
