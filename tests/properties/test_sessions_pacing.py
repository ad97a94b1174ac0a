"""Admission never lets more in than it says, and what it measures stays within what was seen."""

import math

from hypothesis import given
from hypothesis import strategies as st

from fleet_server.sessions.rules import BucketTable, CostAverage, Throughput, TokenBucket, UnderWay, admitted_per_s

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
            assert last - first + 1 <= rate * window + burst + 1e-3


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
    assert admitted <= rate * newest + 1 + 1e-3


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


@given(rate=st.floats(60, 400), windows=st.integers(1, 40))
def test_a_server_that_stays_behind_is_measured_by_what_it_gets_done(rate: float, windows: int) -> None:
    throughput = Throughput(0.0, window_s=0.5)
    throughput.per_s(0.5, behind=True, least=50, most=500)  # a window that began while it was not
    now, seen, done = 0.5, 0.0, 0
    while now < 0.5 + windows * 0.5 + 0.1:
        now += 0.01
        while done < (now - 0.5) * rate:
            throughput.done()
            done += 1
        seen = throughput.per_s(now, behind=True, least=50, most=500)
    assert abs(seen - rate) < 5


@given(dones=st.lists(st.integers(0, 300), min_size=1, max_size=60), behind=st.lists(st.booleans(), min_size=60))
def test_what_is_measured_stays_within_its_limits_and_is_forgotten_once_it_is_not_behind(
    dones: list[int], behind: list[bool]
) -> None:
    throughput = Throughput(0.0, window_s=0.5)
    now = 0.0
    for count, late in zip(dones, behind, strict=False):
        for _ in range(count):
            throughput.done()
        now += 0.5
        per_s = throughput.per_s(now, behind=late, least=50, most=500)
        assert per_s >= 50
    for _ in range(80):
        now += 0.5
        per_s = throughput.per_s(now, behind=False, least=50, most=500)
    assert per_s == math.inf


@given(steps=st.lists(st.tuples(st.integers(0, 20), st.booleans(), st.floats(0, 4)), max_size=100))
def test_what_is_under_way_counts_each_once_and_not_for_ever(steps: list[tuple[int, bool, float]]) -> None:
    under_way: UnderWay[int] = UnderWay(stale_s=10.0, max_keys=15)
    known: dict[int, float] = {}
    now = 0.0
    for key, begins, gap in steps:
        now += gap
        if begins:
            under_way.begin(key, now)
            known.pop(key, None)
            known[key] = now
        else:
            under_way.end(key)
            known.pop(key, None)
        known = dict(list(known.items())[-15:])
        assert under_way.count(now) == sum(since > now - 10.0 for since in known.values())


def test_until_a_whole_handshake_was_measured_it_is_guessed() -> None:
    average = CostAverage(0.001, guess_s=0.01, stages=("complete", "claim"))
    average.observe("complete", 0.002)
    assert average.total_s() == 0.01
    average.observe("claim", 0.002)
    assert abs(average.total_s() - 0.005) < 1e-9
