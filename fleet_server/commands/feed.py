"""Which commands changed, for whoever watches: coalesced, in memory, with the row where the commit knew it.

A watcher that cannot keep up loses no change: its keys fold into one map, and past a bound into the word "everything",
after which it reads its issue anew. Rows are kept within a bound of bytes; a key without one is read from the database.
So a slow watcher costs bounded memory, and a quick one no read at all.

How a command ends is told at once. A state on the way there waits a moment for what follows it: a command that ends
within milliseconds is one message to each watcher, not two or three.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from fleet_server.commands.history_store import FullRow

MAX_WAITING_KEYS = 20_000
MAX_WAITING_BYTES = 4 * 1024 * 1024
PASSING_S = 0.02
"""So long a state that is not final waits for company."""
_ROW_BYTES = 1024

Key = tuple[str, int]
Changed = Mapping[Key, FullRow | None]
"""Changed commands; None where the row has to be read."""
Marks = Mapping[Key, int]
"""Where the open commands of an issue stood when they were read; see `history_store.mark`."""


@dataclass(slots=True, eq=False)
class Subscription:
    """What changed for one watcher since it last looked."""

    issue_id: str
    _rows: dict[Key, FullRow | None] = field(default_factory=dict)
    _bytes: int = 0
    _overrun: bool = False
    _marks: Marks | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _due: asyncio.TimerHandle | None = None

    async def wait_changed(self) -> None:
        """Return once something has changed since the last `take`."""
        await self._changed.wait()

    def take(self) -> tuple[dict[Key, FullRow | None], bool]:
        """What changed, and whether keys were lost, so that everything has to be read again."""
        rows, overrun = self._rows, self._overrun
        self._rows, self._bytes, self._overrun = {}, 0, False
        self._changed.clear()
        self._forget_due()
        return rows, overrun

    def take_marks(self) -> Marks | None:
        """Where the open commands of the issue stand, if that was looked up since the last time."""
        marks, self._marks = self._marks, None
        return marks

    def look(self, marks: Marks) -> None:
        """Compare what was told with this: other replicas may have changed something."""
        self._marks = marks
        self._changed.set()

    def add(self, changed: Changed, *, passing: bool) -> None:
        """Note changes; of one command the last stands. `passing` ones may wait for others."""
        if not self._overrun:
            for key, row in changed.items():
                self._rows[key] = self._kept(row)
            if len(self._rows) > MAX_WAITING_KEYS:
                self._rows, self._bytes, self._overrun = {}, 0, True
        if not passing:
            self._changed.set()
        elif self._due is None and not self._changed.is_set():
            self._due = asyncio.get_running_loop().call_later(PASSING_S, self._changed.set)

    def close(self) -> None:
        """Nobody looks any more."""
        self._forget_due()

    def _forget_due(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _kept(self, row: FullRow | None) -> FullRow | None:
        if row is not None:
            self._bytes += _ROW_BYTES + len(row.output or b"") + len(row.error)
        return row if self._bytes <= MAX_WAITING_BYTES else None


class ChangeFeed:
    """Watchers of issues, and of all commands (issue id ''). Belongs to the event loop."""

    def __init__(self) -> None:
        self._watchers: dict[str, list[Subscription]] = {}

    def subscribe(self, issue_id: str) -> Subscription:
        """Start to collect changes of an issue, or of every command."""
        subscription = Subscription(issue_id)
        self._watchers.setdefault(issue_id, []).append(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop."""
        subscription.close()
        watchers = self._watchers.get(subscription.issue_id, [])
        if subscription in watchers:
            watchers.remove(subscription)
        if not watchers:
            self._watchers.pop(subscription.issue_id, None)

    def publish_nowait(self, issue_id: str, changed: Changed, *, passing: bool) -> None:
        """Tell the watchers of an issue, and those of every command, which of its commands changed.

        Args:
            passing: none of them has ended, or is to: nobody minds a moment.
        """
        for topic in dict.fromkeys((issue_id, "")):
            for watcher in self._watchers.get(topic, ()):
                watcher.add(changed, passing=passing)

    def look_nowait(self, issue_id: str, marks: Marks) -> None:
        """Have the watchers of an issue compare what they told with where its open commands stand."""
        for watcher in self._watchers.get(issue_id, ()):
            watcher.look(marks)

    @property
    def issues(self) -> Collection[str]:
        """Issues that are watched, '' for all commands."""
        return self._watchers.keys()

    @property
    def watched(self) -> bool:
        """Whether anybody watches at all. Any thread may ask: a row that was not kept for a new watcher is read."""
        return bool(self._watchers)
