"""The line of those who come back: never more than the rate and its burst, in order, and each is sent away once."""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_server.sessions.line import FULL_WAIT_S, LATE_S, ReturnLine

rates = st.floats(2, 1000)


def node(number: int) -> bytes:
    return number.to_bytes(4, "big")


class Storm:
    """Nodes that obey the line.

    Args:
        comes: whether a node that was promised a slot comes for it.
        pace: rate and burst at a moment.
        jitter: part of its delay that a node may add.
        full: whether nobody begins now.
    """

    def __init__(
        self,
        pace: Callable[[float], tuple[float, float]],
        *,
        seed: int = 1,
        jitter: float = 0.1,
        comes: Callable[[int], bool] = lambda number: True,
        full: Callable[[float], bool] = lambda now: False,
    ) -> None:
        self.pace, self.comes, self.full = pace, comes, full
        self.line = ReturnLine(*pace(0.0), 0.0)
        self.chance = random.Random(seed)
        self.jitter = jitter
        self.sent_away: Counter[int] = Counter()
        self.admitted: list[tuple[float, int]] = []
        self.now = 0.0

    def run(self, arrivals: list[tuple[float, int]]) -> None:
        coming = list(arrivals)
        heapq.heapify(coming)
        while coming:
            self.now, number = heapq.heappop(coming)
            self.line.pace(*self.pace(self.now), self.now)
            chance = self.chance.random()
            delay = self.line.arrive(node(number), "", self.now, chance=chance, full=self.full(self.now))
            if not delay:
                self.admitted.append((self.now, number))
                continue
            self.sent_away[number] += 1
            assert self.sent_away[number] < 100, "somebody is sent away for ever"
            if self.comes(number):
                heapq.heappush(coming, (self.now + delay * self.chance.uniform(1.0, 1.0 + self.jitter), number))


def at_random(count: int, within_s: float, seed: int) -> list[tuple[float, int]]:
    chance = random.Random(seed)
    return [(chance.uniform(0, within_s), number) for number in range(count)]


def held(admitted: list[tuple[float, int]], rate: float, burst: float) -> bool:
    """Whether no stretch of time saw more than rate * time + burst."""
    level, before = burst, 0.0
    for at, _ in admitted:
        level, before = min(burst, level + (at - before) * rate) - 1.0, at
        if level < -0.01:
            return False
    return True


@settings(max_examples=60)
@given(rate=rates, burst=st.floats(1, 200), count=st.integers(1, 400), within=st.floats(0, 10), seed=st.integers())
def test_never_more_than_the_rate_and_a_burst_and_nobody_is_lost(
    rate: float, burst: float, count: int, within: float, seed: int
) -> None:
    storm = Storm(lambda now: (rate, burst), seed=seed)
    storm.run(at_random(count, within, seed))
    assert len(storm.admitted) == count
    assert held(storm.admitted, rate, burst)


@settings(max_examples=60)
@given(rate=rates, burst=st.floats(1, 200), count=st.integers(1, 400), within=st.floats(0, 10), seed=st.integers())
def test_who_comes_to_its_slot_is_sent_away_once_and_all_keep_their_order(
    rate: float, burst: float, count: int, within: float, seed: int
) -> None:
    count = min(count, int(rate * 50))  # beyond that the line is longer than anybody is sent away for
    storm = Storm(lambda now: (rate, burst), seed=seed, jitter=0.0)
    arrivals = at_random(count, within, seed)
    storm.run(arrivals)
    assert max(storm.sent_away.values(), default=0) <= 1
    waited = [number for _, number in storm.admitted if storm.sent_away[number]]
    assert waited == [number for _, number in sorted(arrivals) if storm.sent_away[number]]


@settings(max_examples=20)
@given(rate=st.floats(50, 400), seed=st.integers())
def test_with_what_nodes_add_to_their_delays_hardly_anybody_waits_twice(rate: float, seed: int) -> None:
    storm = Storm(lambda now: (rate, rate / 2), seed=seed)
    count = int(rate * 12)
    storm.run(at_random(count, 1.0, seed))
    assert sum(storm.sent_away.values()) <= 1.02 * count
    assert storm.now < 1.15 * count / rate + 2.0


@settings(max_examples=20)
@given(rate=st.floats(50, 400), factor=st.floats(0.3, 1.0), seed=st.integers())
def test_when_the_rate_falls_each_waits_once_more_and_in_order(rate: float, factor: float, seed: int) -> None:
    falls_at = 1.0
    storm = Storm(
        lambda now: (rate, rate / 2) if now < falls_at else (rate * factor, rate * factor / 2), seed=seed, jitter=0.0
    )
    count = int(rate * 10)
    storm.run(at_random(count, 0.5, seed))
    assert len(storm.admitted) == count
    assert max(storm.sent_away.values()) <= 3
    assert sum(storm.sent_away.values()) <= 2.1 * count
    late = [number for at, number in storm.admitted if storm.sent_away[number] >= 2]
    first_slot = {number: place for place, (_, number) in enumerate(sorted(at_random(count, 0.5, seed)))}
    assert sum(first_slot[a] > first_slot[b] for a, b in itertools.pairwise(late)) <= 0.02 * count
    assert storm.now < 1.15 * count / (rate * factor) + 3.0


@settings(max_examples=20)
@given(rate=st.floats(50, 200), factor=st.floats(1.5, 4), seed=st.integers())
def test_when_the_rate_rises_those_who_come_meanwhile_get_what_is_left_over(
    rate: float, factor: float, seed: int
) -> None:
    storm = Storm(lambda now: (rate if now < 1.0 else rate * factor, rate / 2), seed=seed)
    first, more = int(rate * 6), int(rate)
    chance = random.Random(seed)
    latecomers = [(chance.uniform(2.0, 5.0), number) for number in range(first, first + more)]
    storm.run(at_random(first, 0.5, seed) + latecomers)
    assert max(storm.sent_away.values()) <= 2
    by_6_s = sum(at < 6.0 for at, number in storm.admitted if number >= first)
    assert by_6_s > 0.4 * more * min(1.0, factor - 1.0), "the line of the slow rate ends at 6 s, for who comes last"


@settings(max_examples=20)
@given(rate=st.floats(50, 400), absent=st.floats(0.1, 0.9), seed=st.integers())
def test_slots_of_those_who_never_come_are_given_on_and_not_twice(rate: float, absent: float, seed: int) -> None:
    chance = random.Random(seed)
    count = int(rate * 8)
    gone = {number for number in range(count) if chance.random() < absent}
    storm = Storm(lambda now: (rate, rate / 2), seed=seed, comes=lambda number: number not in gone)
    latecomers = [(chance.uniform(4.0, 8.0), number) for number in range(count, count + int(rate))]
    storm.run(at_random(count, 0.5, seed) + latecomers)
    assert held(storm.admitted, rate, rate / 2)
    present = count - len(gone & storm.sent_away.keys())
    assert len(storm.admitted) == present + int(rate)
    # Each slot is kept for its owner a while; then its turn is anybody's.
    at_once = sum(storm.sent_away[number] == 0 for number in range(count, count + int(rate)))
    assert at_once > 0
    storm.line.pace(rate, rate / 2, storm.now + 100.0)
    assert storm.line.arrive(b"x", "", storm.now + 100.0, chance=0.5) == 0.0
    assert len(storm.line) == 0, "nobody is kept in mind for ever"


@settings(max_examples=20)
@given(rate=st.floats(50, 400), seed=st.integers())
def test_while_too_many_are_under_way_nobody_is_let_in_and_nobody_goes_to_the_end(rate: float, seed: int) -> None:
    storm = Storm(lambda now: (rate, rate / 2), seed=seed, full=lambda now: 1.0 <= now < 3.0)
    count = int(rate * 6)
    storm.run(at_random(count, 0.5, seed))
    assert len(storm.admitted) == count
    assert not [at for at, _ in storm.admitted if 1.0 <= at < 3.0]
    assert held(storm.admitted, rate, rate / 2)
    assert storm.now < 1.2 * (count / rate + 2.0) + FULL_WAIT_S


def test_who_comes_early_is_told_the_same_slot_and_lengthens_nothing() -> None:
    line = ReturnLine(1.0, 1.0, 0.0)
    assert line.arrive(b"first", "", 0.0, chance=0.5) == 0.0
    slot = line.arrive(b"early", "", 0.0, chance=0.5)
    for now in (0.1, 0.5, 0.9):
        assert abs(now + line.arrive(b"early", "", now, chance=0.5) - slot) < 1e-9
    assert 1.999 < 0.9 + line.arrive(b"next", "", 0.9, chance=0.5) < 2.001
    assert line.arrive(b"early", "", slot, chance=0.5) == 0.0


def test_a_slot_is_its_owners_alone() -> None:
    line = ReturnLine(1.0, 1.0, 0.0)
    line.arrive(b"first", "", 0.0, chance=0.5)
    slot = line.arrive(b"owner", "home", 0.0, chance=0.5)
    assert line.arrive(b"stranger", "home", slot + 0.5, chance=0.5) > 0
    assert line.arrive(b"owner", "elsewhere", slot + 0.5, chance=0.5) > 0
    assert sorted(line.places(b"owner", slot + 0.5)) == ["elsewhere", "home"]
    assert line.arrive(b"owner", "home", slot + 0.5, chance=0.5) == 0.0


def test_a_slot_is_kept_for_its_owner_for_a_while_only() -> None:
    line = ReturnLine(1.0, 1.0, 0.0)
    line.arrive(b"first", "", 0.0, chance=0.5)
    slot = line.arrive(b"owner", "", 0.0, chance=0.5)
    assert line.arrive(b"other", "", slot + LATE_S - 0.1, chance=0.5) > 0
    assert line.arrive(b"third", "", slot * 1.1 + LATE_S + 1.2, chance=0.5) > 0, "the other one's turn"
    line = ReturnLine(1.0, 1.0, 0.0)
    line.arrive(b"first", "", 0.0, chance=0.5)
    line.arrive(b"owner", "", 0.0, chance=0.5)
    assert line.arrive(b"other", "", slot * 1.1 + LATE_S, chance=0.5) == 0.0


@given(rate=st.floats(0.1, 50), count=st.integers(1, 300), chance=st.floats(0, 0.999))
def test_nobody_is_sent_away_for_longer_than_the_limit(rate: float, count: int, chance: float) -> None:
    line = ReturnLine(rate, 1.0, 0.0, max_delay_s=60.0)
    delays = [line.arrive(node(number), "", 0.0, chance=chance) for number in range(count)]
    assert all(0 <= delay <= 60.0 for delay in delays)
    assert 0 < line.delay_s(0.0, chance) <= 60.0


@given(count=st.integers(1, 60), steps=st.lists(st.floats(-5, 5), max_size=60))
def test_no_more_slots_are_kept_in_mind_than_fit_and_a_clock_that_steps_back_gives_no_turns(
    count: int, steps: list[float]
) -> None:
    line = ReturnLine(2.0, 1.0, 0.0, max_slots=20)
    now, newest, let_in = 0.0, 0.0, 0
    for number, step in enumerate(steps):
        now += step
        newest = max(newest, now)
        let_in += not line.arrive(node(number % count), "", now, chance=0.5)
        assert len(line) <= 20
    assert let_in <= 2.0 * newest + 1.0 + 1e-3
