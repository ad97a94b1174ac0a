"""Relay: what this process wakes, told to the other replicas, and what they tell, passed on here.

Mental model
    Words are gathered for some milliseconds, each once, and said in as few messages as hold them, over a connection
    that does nothing else: never inside a transaction of the writer, for a NOTIFY takes a lock of the whole database
    server at its commit. What is waiting to be said is bounded; past that it is "everything", which has all who hear it
    poll at once. Nobody waits for a relay, and none of its faults reaches a caller: while it is down nothing is said,
    and polls find everything a little later. A new connection begins with a round of polls, for what was missed.
    Every word of one's own comes back, and is not passed on; one that does not come back says that nobody is heard.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterable, Sequence
from typing import Protocol

from fleet.backoff import Backoff, BackoffPolicy
from fleet.clock import Clock
from fleet.logs import get_logger
from fleet_server.database import hints
from fleet_server.database.hints import Outbox
from fleet_server.database.wakeup import Wakeup

log = get_logger(__name__)

GATHER_S = 0.005
"""So long a word waits for company."""
ALIVE_S = 10.0
DEAF_AFTER_S = 3 * ALIVE_S
CONNECT_AGAIN = BackoffPolicy(initial_s=0.2, maximum_s=5.0)
_SAY_TIMEOUT_S = 10.0
_OPEN_TIMEOUT_S = 15.0
_CLOSE_TIMEOUT_S = 2.0
_WINDOW_S = 0.1
_READ_IN_A_WINDOW = 256
"""Kibibytes that are read word by word in a window, each message at least one; what is more means `everything`."""


class TransportError(Exception):
    """The way to the other replicas cannot be had, or is lost. The message is for people and holds no credential."""


class Link(Protocol):
    """An open way to the other replicas."""

    async def say(self, messages: Sequence[str]) -> None:
        """Send messages, each to every replica, this one too. Raises TransportError."""
        ...

    async def hear(self) -> str | bytes:
        """The next message. Raises TransportError when none will come any more."""
        ...

    async def close(self) -> None:
        """Close it; raises nothing that matters."""
        ...


class Transport(Protocol):
    """Opens links."""

    @property
    def name(self) -> str:
        """What it is, for logs: no credential."""
        ...

    async def open(self) -> Link:
        """A new link. Raises TransportError."""
        ...


class RelayMetrics(Protocol):
    """What a relay tells of itself."""

    def told(self, words: int) -> None:
        """So many words were sent."""
        ...

    def heard(self, words: int) -> None:
        """So many words of other replicas came."""
        ...

    def dropped(self, why: str, words: int) -> None:
        """So many were not sent (overflow), or not read (malformed, flood)."""
        ...

    def up(self, up: bool) -> None:
        """Whether what is said is heard."""
        ...


class Relay:
    """Keeps one link, for ever.

    Args:
        transport: opens it.
        wakeup: whose words are told, and who passes on what is heard.
        again: how long to stay away from a transport that fails; `CONNECT_AGAIN` by default.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        wakeup: Wakeup,
        clock: Clock,
        metrics: RelayMetrics,
        again: BackoffPolicy | None = None,
    ) -> None:
        self._transport = transport
        self._wakeup = wakeup
        self._clock = clock
        self._metrics = metrics
        self._backoff = Backoff(again or CONNECT_AGAIN)
        self._origin = secrets.token_hex(8)
        self._outbox = Outbox()
        self._words = asyncio.Event()
        self._heard_own_s = 0.0
        self._window_s = 0.0
        self._read = 0
        self._said_lost = False
        self.is_up = False
        """Whether what is said is heard."""
        wakeup.tell_with(self.tell_nowait)

    def tell_nowait(self, words: Iterable[str]) -> None:
        """Have words said to the other replicas; never waits, never fails."""
        dropped = self._outbox.add(words)
        if dropped:
            self._metrics.dropped("overflow", dropped)
        if len(self._outbox):
            self._words.set()

    async def run(self) -> None:
        """Say and hear until cancelled; a transport that fails is opened again and again."""
        self._set_up(False)
        while True:
            began_s = self._clock.monotonic()
            try:
                await self._serve()
            except TransportError as error:
                self._lost(str(error))
            except (OSError, TimeoutError) as error:
                self._lost(str(error) or "nothing answered in time")
            except Exception as error:  # a fault of the library must not end the server, which does without
                log.exception("wakeup_transport_failed", transport=self._transport.name)
                self._lost(type(error).__name__)
            self._backoff.ended(self._clock.monotonic() - began_s)
            await self._clock.sleep(self._backoff.next_delay_s())

    async def _serve(self) -> None:
        """One link, until it is lost."""
        async with asyncio.timeout(_OPEN_TIMEOUT_S):
            link = await self._transport.open()
        tasks: list[asyncio.Task[None]] = []
        try:
            self._heard_own_s = self._clock.monotonic()
            # Whatever was said while there was no link is not known: here all look, and elsewhere too.
            self._outbox.give_up()
            self._words.set()
            self._wakeup.hinted_everything()
            tasks = [asyncio.create_task(work) for work in (self._say(link), self._hear(link), self._stay_alive())]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task.cancelled():  # from below: nobody cancels them here before
                    raise TransportError("the connection was given up")
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with contextlib.suppress(Exception):  # it is of no use any more, whatever it says
                async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                    await link.close()

    async def _say(self, link: Link) -> None:
        while True:
            await self._words.wait()
            await self._clock.sleep(GATHER_S)
            self._words.clear()
            words = self._outbox.take()
            try:
                async with asyncio.timeout(_SAY_TIMEOUT_S):
                    await link.say(list(hints.pack(self._origin, words)))
            except BaseException:
                self._outbox.give_up()
                raise
            self._metrics.told(len(words))

    async def _hear(self, link: Link) -> None:
        while True:
            message = await link.hear()
            if self._is_flooded(len(message)):
                self._metrics.dropped("flood", 1)
                self._wakeup.hinted_everything()
                await asyncio.sleep(0)
                continue
            heard = hints.read(message)
            if heard is None or heard.malformed:
                self._metrics.dropped("malformed", 1 if heard is None else heard.malformed)
            if heard is None:
                continue
            if heard.origin == self._origin:
                self._hears_itself()
                continue
            self._metrics.heard(heard.words())
            if heard.everything:
                self._wakeup.hinted_everything()
            self._wakeup.hinted(heard.ids)

    async def _stay_alive(self) -> None:
        while True:
            await self._clock.sleep(ALIVE_S)
            if self._clock.monotonic() - self._heard_own_s > DEAF_AFTER_S:
                raise TransportError("what is said does not come back: is there a pooler or a rule in between?")
            self.tell_nowait([hints.ALIVE])

    def _is_flooded(self, size_bytes: int) -> bool:
        now_s = self._clock.monotonic()
        if now_s - self._window_s >= _WINDOW_S:
            self._window_s, self._read = now_s, 0
        self._read += 1 + size_bytes // 1024
        return self._read > _READ_IN_A_WINDOW

    def _hears_itself(self) -> None:
        self._heard_own_s = self._clock.monotonic()
        if not self.is_up:
            self._set_up(True)
            self._said_lost = False
            log.info("wakeup_transport_up", transport=self._transport.name)

    def _lost(self, why: str) -> None:
        self._set_up(False)
        if not self._said_lost:  # once, until it was up again
            self._said_lost = True
            log.warning("wakeup_transport_lost", transport=self._transport.name, why=why, meanwhile="replicas poll")

    def _set_up(self, up: bool) -> None:
        self.is_up = up
        self._metrics.up(up)
