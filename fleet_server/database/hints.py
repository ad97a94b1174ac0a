"""What replicas say to each other: words, packed into messages, bounded on both sides. Pure.

A message is text: `fleet1`, the process that says it, and words apart by a space. A word is a topic of the wake-ups
(`node:4f…`, `nodes`), or `everything`: more happened than is worth saying, so look for all there is. Whoever can write
to the database's channel or to the subject at NATS can say anything here, and nothing that is said is believed: it has
somebody look into the database, and that is all it does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

EVERYTHING = "everything"
ALIVE = "alive"
"""Said now and then, so that a replica which hears its own knows that it hears."""

MAX_MESSAGE_BYTES = 7_900
"""PostgreSQL takes less than 8,000 bytes in a notification."""
MAX_WAITING = 2_048
"""Words that wait to be said."""
MAX_HEARD = 2_048
"""Ids of one kind that wait to be looked at."""

_VERSION = "fleet1"
_ORIGIN = re.compile(r"[0-9a-f]{16}\Z")
_WORD = re.compile(r"([a-z][a-z-]{0,15})(?::([A-Za-z0-9._-]{1,64}))?\Z")


@dataclass(frozen=True, slots=True)
class Heard:
    """A message of another process.

    Args:
        origin: of whom.
        ids: by kind of topic, the ids that were named; "" for a topic without one.
        everything: all there is has to be looked for.
        malformed: words that are none.
    """

    origin: str
    ids: dict[str, set[str]]
    everything: bool = False
    malformed: int = 0

    def words(self) -> int:
        """How many were understood."""
        return sum(map(len, self.ids.values())) + self.everything


def pack(origin: str, words: Iterable[str]) -> Iterator[str]:
    """Messages that say `words`, each at most `MAX_MESSAGE_BYTES` long.

    Args:
        origin: this process: 16 hexadecimal digits.
    """
    head = f"{_VERSION} {origin}"
    said: list[str] = []
    size = len(head)
    for word in words:
        if said and size + 1 + len(word) > MAX_MESSAGE_BYTES:
            yield " ".join([head, *said])
            said, size = [], len(head)
        said.append(word)
        size += 1 + len(word)
    if said:
        yield " ".join([head, *said])


def read(message: str | bytes) -> Heard | None:
    """What a message says; None when it is none."""
    if len(message) > MAX_MESSAGE_BYTES:
        return None
    try:
        text = message if isinstance(message, str) else message.decode("ascii")
    except UnicodeDecodeError:
        return None
    version, _, rest = text.partition(" ")
    origin, *words = rest.split(" ")
    if version != _VERSION or not _ORIGIN.match(origin):
        return None
    ids: dict[str, set[str]] = {}
    malformed = 0
    for word in words:
        matched = _WORD.match(word)
        if matched is None:
            malformed += 1
        elif word not in (EVERYTHING, ALIVE):
            ids.setdefault(matched[1], set()).add(matched[2] or "")
    return Heard(origin, ids, EVERYTHING in words, malformed)


class Outbox:
    """Words that wait to be said: each once, and past a bound the one word that stands for all.

    Args:
        max_waiting: words.
    """

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        self._max_waiting = max_waiting
        self._words: dict[str, None] = {}
        self._everything = False

    def __len__(self) -> int:
        return len(self._words) + self._everything

    def add(self, words: Iterable[str]) -> int:
        """Have them said; how many were dropped for the one that stands for them. What is no word is passed over: it
        may be what an operator wrote, of any length, and one that no message holds would cost the link."""
        if self._everything:
            return sum(1 for _ in words)
        self._words.update(dict.fromkeys(filter(_WORD.match, words)))
        if len(self._words) <= self._max_waiting:
            return 0
        dropped = len(self._words)
        self.give_up()
        return dropped

    def give_up(self) -> None:
        """Say `everything` next: nobody knows what was heard of what was said last."""
        self._words.clear()
        self._everything = True

    def take(self) -> Sequence[str]:
        """What is to be said now."""
        words = [EVERYTHING] if self._everything else list(self._words)
        self._words, self._everything = {}, False
        return words


class Inbox:
    """Ids of one kind that were named and not looked at yet; None stands for all there are.

    Args:
        max_heard: ids.
    """

    def __init__(self, max_heard: int = MAX_HEARD) -> None:
        self._max_heard = max_heard
        self._ids: set[str] | None = set()

    def add(self, ids: Iterable[str] | None) -> None:
        """These were named."""
        if ids is None or self._ids is None:
            self._ids = None
            return
        self._ids.update(ids)
        if len(self._ids) > self._max_heard:
            self._ids = None

    def take(self) -> frozenset[str] | None:
        """What was named since the last time."""
        ids, self._ids = self._ids, set()
        return None if ids is None else frozenset(ids)

    @property
    def empty(self) -> bool:
        """Whether nothing was named."""
        return self._ids is not None and not self._ids
