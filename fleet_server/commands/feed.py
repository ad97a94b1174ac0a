"""Which commands changed, for whoever watches: keys only, coalesced, in memory.

A watcher that cannot keep up loses no change: its keys fold into one set, and past a bound into the word "everything",
after which it reads its issue anew. So a slow watcher costs bounded memory, and a busy fleet one read for many changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

MAX_WAITING_KEYS = 20_000

Key = tuple[str, int]


@dataclass(slots=True, eq=False)
class Subscription:
    """What changed for one watcher since it last looked."""

    issue_id: str
    _keys: dict[Key, None] = field(default_factory=dict)
    _overrun: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait_changed(self) -> None:
        """Return once something has changed since the last `take`."""
        await self._changed.wait()

    def take(self) -> tuple[list[Key], bool]:
        """Changed keys, and whether keys were lost, so that everything has to be read again."""
        keys, overrun = list(self._keys), self._overrun
        self._keys.clear()
        self._overrun = False
        self._changed.clear()
        return keys, overrun

    def add(self, keys: Iterable[Key]) -> None:
        """Note changes."""
        if not self._overrun:
            self._keys.update(dict.fromkeys(keys))
            if len(self._keys) > MAX_WAITING_KEYS:
                self._keys.clear()
                self._overrun = True
        self._changed.set()


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
        watchers = self._watchers.get(subscription.issue_id, [])
        if subscription in watchers:
            watchers.remove(subscription)
        if not watchers:
            self._watchers.pop(subscription.issue_id, None)

    def publish_nowait(self, issue_id: str, keys: Iterable[Key]) -> None:
        """Tell the watchers of an issue, and those of every command, which of its commands changed."""
        for topic in (issue_id, ""):
            for watcher in self._watchers.get(topic, ()):
                watcher.add(keys)

    @property
    def watched(self) -> bool:
        """Whether anybody watches at all."""
        return bool(self._watchers)
