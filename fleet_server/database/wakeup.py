"""Wake-ups: how a committed change reaches whoever waits for it, inside one process.

A wake-up carries no data: the woken reads the database. So a lost, doubled or late one costs time and never truth, and
another transport, between replicas, can stand behind the same calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fleet.logs import get_logger

log = get_logger(__name__)

Callback = Callable[[], None]
OfKind = Callable[[str], None]


class Wakeup:
    """Topics and their subscribers. Belongs to the event loop: call it nowhere else."""

    def __init__(self) -> None:
        self._subscribers: dict[str, dict[object, Callback]] = {}
        self._kinds: dict[str, OfKind] = {}

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

    def wake_nowait(self, topics: Iterable[str]) -> None:
        """Call every subscriber of each topic once. One that raises is logged and keeps nobody else from waking."""
        for topic in dict.fromkeys(topics):
            waiting = self._subscribers.get(topic)
            for callback in () if waiting is None else tuple(waiting.values()):
                self._call(topic, callback)
            kind, _, name = topic.partition(":")
            if kind in self._kinds:
                self._call(topic, self._kinds[kind], name)

    def _call(self, topic: str, callback: Callable[..., None], *args: str) -> None:
        try:
            callback(*args)
        except Exception:
            log.exception("wakeup_subscriber_failed", topic=topic)

    def topics(self) -> int:
        """How many topics have a subscriber."""
        return len(self._subscribers)
