"""A relay over a transport that tests cut: what is said, what is passed on, and that no fault reaches a caller."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence

import pytest

from fleet_server.database import hints, relay
from fleet_server.database.hints import EVERYTHING, MAX_WAITING
from fleet_server.database.relay import Relay, TransportError
from fleet_server.database.wakeup import Wakeup
from tests.fakes.clock import MockClock

OTHER = "b" * 16


class FakeLink:
    """Says into a list; hears what the test puts there, and what it said itself."""

    def __init__(self, *, echo: bool) -> None:
        self.said: list[str] = []
        self.heard: asyncio.Queue[str | bytes | Exception] = asyncio.Queue()
        self.closed = False
        self._echo = echo

    async def say(self, messages: Sequence[str]) -> None:
        self.said += messages
        for message in messages if self._echo else ():
            self.heard.put_nowait(message)

    async def hear(self) -> str | bytes:
        message = await self.heard.get()
        if isinstance(message, Exception):
            raise message
        return message

    async def close(self) -> None:
        self.closed = True

    def words(self) -> list[str]:
        """What was said since the last time."""
        said = [word for message in self.said for word in message.split(" ")[2:]]
        self.said.clear()
        return said


class FakeTransport:
    """Opens links, or fails."""

    name = "fake"

    def __init__(self) -> None:
        self.links: list[FakeLink] = []
        self.failure: Exception | None = None
        self.echo = True
        self.attempts = 0

    async def open(self) -> FakeLink:
        self.attempts += 1
        if self.failure is not None:
            raise self.failure
        self.links.append(FakeLink(echo=self.echo))
        return self.links[-1]


class Figures:
    """What a relay tells of itself."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.is_up = False

    def told(self, words: int) -> None:
        self.counts["told"] += words

    def heard(self, words: int) -> None:
        self.counts["heard"] += words

    def dropped(self, why: str, words: int) -> None:
        self.counts[why] += words

    def up(self, up: bool) -> None:
        self.is_up = up


class Room:
    """A relay that runs, and whoever is hinted by it."""

    def __init__(self, clock: MockClock) -> None:
        self.clock = clock
        self.transport = FakeTransport()
        self.figures = Figures()
        self.wakeup = Wakeup()
        self.hints: list[frozenset[str] | None] = []
        self.wakeup.on_hint("node", self.hints.append, pause_s=0)
        self.relay = Relay(transport=self.transport, wakeup=self.wakeup, clock=clock, metrics=self.figures)
        self.running: asyncio.Task[None] | None = None

    @property
    def link(self) -> FakeLink:
        return self.transport.links[-1]

    async def start(self) -> None:
        self.running = asyncio.create_task(self.relay.run())
        await self.turn()

    async def turn(self, seconds: float = 2 * relay.GATHER_S) -> None:
        """Let what is due happen; hints of one kind are apart by a turn of the real loop."""
        await asyncio.sleep(0)
        await self.clock.advance(seconds)
        for _ in range(5):
            await asyncio.sleep(0)

    def hear(self, *words: str, origin: str = OTHER) -> None:
        (message,) = hints.pack(origin, words)
        self.link.heard.put_nowait(message)


@pytest.fixture
async def room(clock: MockClock) -> AsyncIterator[Room]:
    room = Room(clock)
    await room.start()
    yield room
    assert room.running is not None
    room.running.cancel()
    await asyncio.gather(room.running, return_exceptions=True)


async def test_a_new_link_has_all_replicas_look_for_what_they_missed(room: Room) -> None:
    assert room.link.words() == [EVERYTHING]
    assert room.hints == [None]
    assert room.figures.is_up


async def test_words_are_gathered_each_once(room: Room) -> None:
    room.link.words()
    for _ in range(3):
        room.wakeup.tell_others_nowait(["node:a", "nodes"])
    room.wakeup.spread_nowait(["node:b"])
    await room.turn()
    assert len(room.link.said) == 1
    assert room.link.words() == ["node:a", "nodes", "node:b"]
    assert room.figures.counts["told"] == 4


async def test_more_than_is_worth_saying_is_one_word(room: Room) -> None:
    room.link.words()
    room.wakeup.tell_others_nowait([f"node:{number}" for number in range(MAX_WAITING + 1)])
    await room.turn()
    assert room.link.words() == [EVERYTHING]
    assert room.figures.counts["overflow"] == MAX_WAITING + 1


async def test_what_others_say_hints_and_ones_own_words_do_not(room: Room) -> None:
    room.hints.clear()
    room.wakeup.tell_others_nowait(["node:mine"])
    await room.turn()
    room.hear("node:a", "node:b", "weather", "NONSENSE")
    await room.turn()
    assert room.hints == [frozenset({"a", "b"})]
    assert (room.figures.counts["heard"], room.figures.counts["malformed"]) == (3, 1)
    room.hear(EVERYTHING)
    await room.turn()
    assert room.hints[1:] == [None]


async def test_a_flood_is_not_read_and_means_everything(room: Room) -> None:
    room.hints.clear()
    for number in range(2_000):
        room.hear(f"node:{number}")
    await room.turn(0.001)
    while not room.link.heard.empty():
        await asyncio.sleep(0)
    assert room.figures.counts["flood"] >= 1_500
    assert room.hints[-1] is None


async def test_many_words_in_few_messages_are_a_flood_too(room: Room) -> None:
    room.hints.clear()
    for _ in range(100):
        room.hear(*(f"node:{number}" for number in range(800)))
    await room.turn(0.001)
    while not room.link.heard.empty():
        await asyncio.sleep(0)
    assert room.figures.counts["heard"] < 100 * 800 // 2
    assert room.hints[-1] is None


async def test_a_lost_link_is_opened_again_and_begins_with_a_round_of_polls(room: Room) -> None:
    first = room.link
    room.hints.clear()
    first.heard.put_nowait(TransportError("cut"))
    await room.turn(0)
    assert first.closed
    assert not room.figures.is_up
    room.wakeup.tell_others_nowait(["node:a"])  # nobody waits, nothing fails
    await room.turn(relay.CONNECT_AGAIN.maximum_s)
    assert room.link is not first
    assert room.link.words() == [EVERYTHING]
    assert room.hints == [None]
    assert room.figures.is_up


@pytest.mark.parametrize("failure", [TransportError("refused"), OSError("reset"), TimeoutError(), RuntimeError("bug")])
async def test_a_transport_that_never_opens_is_tried_for_ever(clock: MockClock, failure: Exception) -> None:
    room = Room(clock)
    room.transport.failure = failure
    await room.start()
    for _ in range(10):
        room.wakeup.tell_others_nowait(["node:a"])
        await room.turn(relay.CONNECT_AGAIN.maximum_s)
    assert room.transport.attempts > 10
    room.transport.failure = None
    await room.turn(relay.CONNECT_AGAIN.maximum_s)
    assert room.figures.is_up
    assert room.running is not None
    room.running.cancel()
    await asyncio.gather(room.running, return_exceptions=True)


async def test_a_link_that_brings_nothing_back_is_not_up_and_is_opened_again(clock: MockClock) -> None:
    room = Room(clock)
    room.transport.echo = False
    await room.start()
    assert not room.figures.is_up
    await room.turn(relay.DEAF_AFTER_S + 2 * relay.ALIVE_S)
    assert room.transport.attempts > 1
    assert room.running is not None
    room.running.cancel()
    await asyncio.gather(room.running, return_exceptions=True)
