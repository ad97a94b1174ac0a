"""Wake-ups: how a committed change reaches whoever waits for it, here and on the other replicas.

A wake-up carries no data: the woken reads the database. So a lost, doubled or late one costs time and never truth, and
whatever it is for is polled for as well. Here it is a call within the loop. Other replicas are told by a relay
(`database.relay`), if there is one, as a hint: what they say is not believed, so it does not call the subscribers of a
topic but those who asked to be hinted, who look into the database, at most so often.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fleet.clock import Clock
from fleet.logs import get_logger
from fleet_server.database.hints import Inbox

log = get_logger(__name__)

Callback = Callable[[], None]
OfKind = Callable[[str], None]
Hinted = Callable[[frozenset[str] | None], None]
"""Called with the ids that were named; None says that anything may have happened."""


class Wakeup:
    """Topics and their subscribers. Belongs to the event loop: call it nowhere else."""

    def __init__(self) -> None:
        self._subscribers: dict[str, dict[object, Callback]] = {}
        self._kinds: dict[str, OfKind] = {}
        self._hints: dict[str, _Hints] = {}
        self._tell: Callable[[Iterable[str]], None] | None = None

    def subscribe(self, topic: str, callback: Callback) -> Callable[[], None]:
        """Call `callback` on the loop at each wake-up of `topic`; it must not block.

        Returns:
            A function that unsubscribes; calling it again does nothing.
        """
        ticket = object()
        self._subscribers.setdefault(topic, {})[ticket] = callback

        def unsubscribe() -> None:
            waiting = self._subscribers.get(topic)
            if waiting is None:
                return
            waiting.pop(ticket, None)
            if not waiting:
                del self._subscribers[topic]

        return unsubscribe

    def subscribe_kind(self, kind: str, callback: OfKind) -> None:
        """Call `callback` with the id of each topic `kind:id` that is woken: one subscriber for ten thousand topics."""
        self._kinds[kind] = callback

    def on_hint(self, kind: str, callback: Hinted, *, pause_s: float) -> None:
        """Call `callback` when another replica speaks of topics of a kind: of `kind:id`, or of `kind` alone, whose id
        is "". It must not block, and must do no more than have somebody look: anybody may have said it.

        Args:
            pause_s: seconds between two calls, however much is said.
        """
        self._hints[kind] = _Hints(callback, pause_s)

    def wake_nowait(self, topics: Iterable[str]) -> None:
        """Call every subscriber of each topic once, here. One that raises is logged and keeps nobody else from
        waking."""
        for topic in dict.fromkeys(topics):
            waiting = self._subscribers.get(topic)
            for callback in () if waiting is None else tuple(waiting.values()):
                _call(topic, callback)
            kind, _, name = topic.partition(":")
            if kind in self._kinds:
                _call(topic, self._kinds[kind], name)

    def tell_others_nowait(self, topics: Iterable[str]) -> None:
        """Hint at these topics on every other replica; nothing here. Never waits, never fails."""
        if self._tell is not None:
            self._tell(topics)

    def spread_nowait(self, topics: Iterable[str]) -> None:
        """Wake the subscribers here, and hint at the topics on every other replica."""
        topics = tuple(topics)
        self.wake_nowait(topics)
        self.tell_others_nowait(topics)

    def tell_with(self, tell: Callable[[Iterable[str]], None]) -> None:
        """Tell other replicas by way of this; until then nobody is told."""
        self._tell = tell

    def hinted(self, ids: Mapping[str, Iterable[str]]) -> None:
        """Another replica named these ids, by kind; kinds that nobody here knows are passed over."""
        for kind, named in ids.items():
            if kind in self._hints:
                self._hints[kind].add(named)

    def hinted_everything(self) -> None:
        """Anything may have happened elsewhere: all who would be hinted look."""
        for hints in self._hints.values():
            hints.add(None)

    def topics(self) -> int:
        """How many topics have a subscriber."""
        return len(self._subscribers)


class Bell:
    """Rung to have one task do at once what it does every so often anyway."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rung = asyncio.Event()

    def ring_nowait(self) -> None:
        """Have it done now."""
        self._rung.set()

    async def wait(self, at_most_s: float) -> bool:
        """Return once it was rung, or after so many seconds; whether it was rung."""
        if not self._rung.is_set():
            rung = asyncio.ensure_future(self._rung.wait())
            due = asyncio.ensure_future(self._clock.sleep(at_most_s))
            try:
                await asyncio.wait((rung, due), return_when=asyncio.FIRST_COMPLETED)
            finally:
                rung.cancel()
                due.cancel()
        was_rung = self._rung.is_set()
        self._rung.clear()
        return was_rung


class _Hints:
    """Hints of one kind: the first is passed on at once, what follows at most every `pause_s` seconds."""

    def __init__(self, callback: Hinted, pause_s: float) -> None:
        self._callback = callback
        self._pause_s = pause_s
        self._inbox = Inbox()
        self._pausing = False

    def add(self, ids: Iterable[str] | None) -> None:
        self._inbox.add(ids)
        if not self._pausing:
            self._pass_on()

    def _pass_on(self) -> None:
        self._pausing = not self._inbox.empty
        if self._pausing:
            asyncio.get_running_loop().call_later(self._pause_s, self._pass_on)
            _call("hint", self._callback, self._inbox.take())


def _call(topic: str, callback: Callable[..., None], *args: Any) -> None:
    try:
        callback(*args)
    except Exception:
        log.exception("wakeup_subscriber_failed", topic=topic)
