"""Admission never lets more in than it says, and sends the others away spread out: never all back in one second."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from fleet_server.sessions.rules import BucketTable, CostAverage, ReturnSlots, TokenBucket, admitted_per_s

rates = st.floats(0.1, 5000)
gaps = st.lists(st.floats(0, 2), min_size=1, max_size=200)


@given(rate=rates, burst=st.floats(1, 100), gaps=gaps)
def test_a_bucket_never_admits_more_than_rate_times_time_and_burst(
    rate: float, burst: float, gaps: list[float]
) -> None:
    bucket = TokenBucket(rate, burst, 0.0)
    now, admitted = 0.0, []
    for gap in gaps:
        now += gap
        if bucket.take(now):
            admitted.append(now)
    for first in range(len(admitted)):
        for last in range(first, len(admitted)):
            window = admitted[last] - admitted[first]
            assert last - first + 1 <= rate * window + burst + 1e-6


@given(rate=rates, burst=st.floats(1, 100), gaps=gaps)
def test_whoever_waits_as_told_is_admitted(rate: float, burst: float, gaps: list[float]) -> None:
    bucket = TokenBucket(rate, burst, 0.0)
    now = 0.0
    for gap in gaps:
        now += gap
        if not bucket.take(now):
            now += bucket.wait_s(now) + 1e-6
            assert bucket.take(now)


@given(rate=rates, gaps=st.lists(st.floats(-5, 5), max_size=50))
def test_a_clock_that_steps_back_gives_no_tokens(rate: float, gaps: list[float]) -> None:
    bucket = TokenBucket(rate, 1.0, 0.0)
    now = newest = 0.0
    admitted = 0
    for gap in gaps:
        now += gap
        newest = max(newest, now)
        admitted += bucket.take(now)
    assert admitted <= rate * newest + 1 + 1e-6


@given(
    rate=st.floats(1, 2000), arrivals=st.lists(st.floats(0, 0.5), min_size=2, max_size=300), chance=st.floats(0, 0.999)
)
def test_refused_callers_come_back_no_faster_than_they_can_be_served(
    rate: float, arrivals: list[float], chance: float
) -> None:
    slots = ReturnSlots(max_delay_s=1e9)
    now, back = 0.0, []
    for gap in arrivals:
        now += gap
        delay = slots.next_delay_s(now, rate, chance)
        assert delay > 0
        back.append(now + delay)
    for one, next_one in itertools.pairwise(back):
        assert next_one - one >= 1 / rate - 1e-9


@given(rate=st.floats(0.1, 1000), count=st.integers(1, 300), chance=st.floats(0, 0.999))
def test_nobody_is_sent_away_for_longer_than_the_limit(rate: float, count: int, chance: float) -> None:
    slots = ReturnSlots(max_delay_s=60.0)
    assert all(0 < slots.next_delay_s(0.0, rate, chance) <= 60.0 for _ in range(count))


@given(keys=st.lists(st.integers(0, 50), max_size=300))
def test_a_table_of_buckets_stays_within_its_bound(keys: list[int]) -> None:
    table: BucketTable[int] = BucketTable(rate_per_s=1.0, burst=2.0, max_keys=10)
    for key in keys:
        table.delay_s(key, 0.0)
        assert len(table) <= 10


@given(costs=st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=100), share=st.floats(0.1, 1.0))
def test_the_rate_follows_the_cost_within_its_limits(costs: list[float], share: float) -> None:
    average = CostAverage(assumed_s=0.001)
    for cost in costs:
        average.observe("complete", cost)
    assert 0.001 + min(costs) - 1e-9 <= average.total_s() <= 0.001 + max(costs) + 1e-9
    rate = admitted_per_s(average.total_s(), share=share, least=5.0, most=500.0)
    assert 5.0 <= rate <= 500.0
    if 5.0 < rate < 500.0:
        assert abs(rate * average.total_s() - share) < 1e-6
