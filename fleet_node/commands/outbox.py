"""Reports that the server has not acknowledged: which of them the newest stream still has to give out.

A command has at most one report here, its newest. Numbers only grow, each stream starts over at the first that is not
acknowledged, and an acknowledgement covers everything up to its number (docs/protocol.md, "Commands"). What does not
fit into memory is a bare number and a size until its turn comes, is then read from the journal again, and let go of
once it is sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from itertools import islice, takewhile

from fleet_node.commands.entry import Entry

MAX_MEMORY_BYTES = 4 * 1024 * 1024
MAX_LOADED_BYTES = 1024 * 1024
ENTRY_BYTES = 512
"""What an entry takes beside its report."""

_LIST_OVERHEAD_BYTES = 8  # tag and length of one report in its list


class Outbox:
    """Unacknowledged reports in report_no order.

    Args:
        left: bytes of each report that the journal holds unacknowledged, by number, growing.
        max_memory_bytes: entries beyond it are left in the journal until their reports are sent.

    `last_report_no` is the highest number that it ever held.
    """

    def __init__(self, left: Mapping[int, int], *, max_memory_bytes: int = MAX_MEMORY_BYTES) -> None:
        self._max_memory_bytes = max_memory_bytes
        self._memory_bytes = 0
        self._left = {number: ENTRY_BYTES + size for number, size in left.items()}  # in the journal alone
        self._left_bytes = sum(self._left.values())
        self._pending: dict[int, Entry | None] = dict.fromkeys(left)  # growing
        self._unsent: deque[int] = deque(self._pending)
        self.last_report_no = max(self._pending, default=0)

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def held_bytes(self) -> int:
        """What those in memory take."""
        return self._memory_bytes

    @property
    def size_bytes(self) -> int:
        """What all of them take, those left in the journal among them."""
        return self.held_bytes + self._left_bytes

    @property
    def first_report_no(self) -> int:
        """First report that is not acknowledged; 0 when none waits."""
        return next(iter(self._pending), 0)

    def add(self, entries: Iterable[Entry]) -> None:
        """The newest reports about these are durable; they are numbered above all before them, growing."""
        pending, unsent = self._pending, self._unsent
        for entry in entries:
            number = self.last_report_no = entry.report_no
            size = ENTRY_BYTES + len(entry.final_report)
            if self._memory_bytes + size <= self._max_memory_bytes:
                self._memory_bytes += size
                pending[number] = entry
            else:
                self._leave(number, size)
            unsent.append(number)

    def remove(self, entry: Entry) -> None:
        """A report about this entry is superseded, if it waits here; call it before the entry changes."""
        if self._pending.pop(entry.report_no, None) is not None:
            self._memory_bytes -= ENTRY_BYTES + len(entry.final_report)
        else:
            self._left_bytes -= self._left.pop(entry.report_no, 0)

    def acked(self, report_no: int) -> None:
        """Forget everything up to `report_no`."""
        pending = self._pending
        for number in list(takewhile(report_no.__ge__, pending)):
            entry = pending.pop(number)
            if entry is not None:
                self._memory_bytes -= ENTRY_BYTES + len(entry.final_report)
            else:
                self._left_bytes -= self._left.pop(number)

    def start_over(self) -> None:
        """A new stream: everything goes out again."""
        for entry in self._pending.values():
            if entry is not None:
                entry.deferred = False
        self._unsent = deque(self._pending)

    @property
    def ready(self) -> bool:
        """Whether `take` would give something, or has to wait for `missing`."""
        self._skip()
        return bool(self._unsent)

    def take(self, max_count: int, max_bytes: int) -> list[bytes]:
        """The next serialised reports for this stream, each once; stops at one that is not in memory. One that alone
        exceeds `max_bytes` goes alone."""
        taken: list[bytes] = []
        size = 0
        unsent, pending = self._unsent, self._pending
        while unsent and len(taken) < max_count:
            number = unsent[0]
            entry = pending.get(number)
            if entry is None and number in pending:
                break
            if entry is not None and not entry.deferred:
                report = entry.report()
                size += len(report) + _LIST_OVERHEAD_BYTES
                if taken and size > max_bytes:
                    break
                taken.append(report)
                if self._memory_bytes > self._max_memory_bytes:  # it was read for this: whoever never acknowledges
                    self._memory_bytes -= ENTRY_BYTES + len(entry.final_report)  # must not have us hold all of them
                    self._leave(number, ENTRY_BYTES + len(entry.final_report))
            unsent.popleft()
        return taken

    def missing(self, limit: int) -> list[int]:
        """Numbers that have to be read from the journal before `take` goes on; empty when it need not wait."""
        self._skip()
        if not self._unsent or self._pending[self._unsent[0]] is not None:
            return []
        asked: list[int] = []
        size = 0
        for number in islice(self._unsent, limit):
            if self._pending.get(number, ...) is None:
                size += self._left[number]
                if asked and size > MAX_LOADED_BYTES:
                    break
                asked.append(number)
        return asked

    def loaded(self, asked: Iterable[int], entries: Iterable[Entry]) -> None:
        """Answer to `missing`: what the journal no longer holds as newest is superseded and forgotten here, too."""
        found = {entry.report_no: entry for entry in entries}
        for number in asked:
            if self._pending.get(number, ...) is not None:
                continue  # acknowledged or superseded while it was read
            entry = found.get(number)
            self._left_bytes -= self._left.pop(number)
            if entry is None:
                del self._pending[number]
            else:
                self._pending[number] = entry
                self._memory_bytes += ENTRY_BYTES + len(entry.final_report)

    def _leave(self, number: int, size: int) -> None:
        self._pending[number] = None
        self._left[number] = size
        self._left_bytes += size

    def _skip(self) -> None:
        """Pass over what this stream need not give out: superseded, about to be, or acknowledged meanwhile."""
        unsent, pending = self._unsent, self._pending
        while unsent:
            entry = pending.get(unsent[0])
            if not entry.deferred if entry is not None else unsent[0] in pending:
                return
            unsent.popleft()
