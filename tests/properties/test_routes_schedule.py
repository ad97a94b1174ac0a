"""Walks keep their paces whatever they show, a failure is confirmed at once with every other way, and no finding is
kept back for longer than it takes."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fleet_node.routes.health_rules import ObservationType, RouteState
from fleet_node.routes.rules import EffectivePath, Policy
from fleet_node.routes.schedule_rules import JITTER, NEVER_MS, Report, RouteWalks, Walk, walk_timeout_ms
from fleet_node.routes.walk_rules import WalkResult, WalkState

POLICY = Policy()
INTERVAL_MS = 9_000
DIRECT, OVER_R, OVER_Q = ("s", "d"), ("s", "r", "d"), ("s", "q", "d")
ROUTE = EffectivePath("a", 1, DIRECT, (OVER_R, OVER_Q), INTERVAL_MS, 6 * INTERVAL_MS)
DEADLINE_MS = walk_timeout_ms(INTERVAL_MS)
CANDIDATE, EFFECTIVE = ObservationType.CANDIDATE_PATH, ObservationType.SYNTHETIC_ROUTE_HEALTH


def result(path: tuple[str, ...], state: WalkState, rtt_us: int = 2_000) -> WalkResult:
    if state is WalkState.ANSWERED:
        return WalkResult(path, path, rtt_us, 1_000, state)
    return WalkResult(path, path[:1], 0, 0, state, "TIMED_OUT", 1)


def told_of(drive: Drive, path: tuple[str, ...]) -> list[int]:
    """When something was said of a candidate."""
    return [
        at_ms
        for at_ms, report in drive.reports
        if any(found.type is CANDIDATE and found.path == path for found in report.findings)
    ]


class Drive:
    """Starts what is due and gives back what is said of its path at that moment, after as long as such a walk takes."""

    def __init__(self, route: EffectivePath = ROUTE, seed: int = 1) -> None:
        self.now_ms = 0
        self.walks = RouteWalks(route, POLICY, 0, random.Random(seed).random)
        self.broken: dict[tuple[str, ...], WalkState] = {}
        self.lose_once: set[tuple[str, ...]] = set()
        self.rtts_us: dict[tuple[str, ...], int] = {}
        self.started: list[Walk] = []
        self.reports: list[tuple[int, Report]] = []
        self._out: list[tuple[int, int, Walk, WalkState]] = []

    def run(self, until_ms: int) -> None:
        while True:
            at_ms = min(self.walks.next_ms, self._out[0][0] if self._out else NEVER_MS)
            if at_ms > until_ms:
                self.now_ms = until_ms
                return
            self.now_ms = max(self.now_ms, at_ms)
            while self._out and self._out[0][0] <= self.now_ms:
                _, _, walk, state = heapq.heappop(self._out)
                report = self.walks.finished(
                    walk, result(walk.path, state, self.rtts_us.get(walk.path, 2_000)), self.now_ms
                )
                if report:
                    self.reports.append((self.now_ms, report))
            for walk in self.walks.due(self.now_ms):
                self.started.append(walk)
                state = self.broken.get(walk.path, WalkState.ANSWERED)
                if walk.path in self.lose_once:
                    self.lose_once.discard(walk.path)
                    state = WalkState.UNREACHABLE
                took_ms = walk.timeout_ms if state is WalkState.UNREACHABLE else 5
                heapq.heappush(self._out, (self.now_ms + took_ms, len(self.started), walk, state))


@given(seed=st.integers(0, 2**16))
def test_healthy_ways_are_walked_once_in_their_interval_with_jitter(seed: int) -> None:
    drive = Drive(seed=seed)
    drive.run(40 * INTERVAL_MS)
    for path, pace in ((DIRECT, 1), (OVER_R, 6), (OVER_Q, 6)):
        starts = [walk.started_ms for walk in drive.started if walk.path == path]
        gaps = [later - earlier for earlier, later in pairwise(starts)]
        assert all(abs(gap - pace * INTERVAL_MS) <= pace * INTERVAL_MS * JITTER + 1 for gap in gaps)
    assert not any(report.ask or report.healed for _, report in drive.reports)


@given(
    seed=st.integers(0, 2**16), dead=st.sets(st.sampled_from([OVER_R, OVER_Q])), state=st.sampled_from(["cut", "lie"])
)
def test_a_cut_path_is_reported_with_every_other_way_in_one_frame(
    seed: int, dead: set[tuple[str, ...]], state: str
) -> None:
    drive = Drive(seed=seed)
    cut_ms = 20 * INTERVAL_MS
    drive.run(cut_ms)
    said = len(drive.reports)
    failed = WalkState.UNREACHABLE if state == "cut" else WalkState.DRIFT
    drive.broken = dict.fromkeys((DIRECT, *dead), failed)
    drive.run(cut_ms + 3 * INTERVAL_MS)
    told = next((at, report) for at, report in drive.reports[said:] if report.ask)
    assert told[0] - cut_ms <= INTERVAL_MS * (1 + JITTER) + 3 * DEADLINE_MS
    kinds = {finding.path: finding for finding in told[1].findings if finding.type in (CANDIDATE, EFFECTIVE)}
    assert kinds.keys() == {DIRECT, OVER_R, OVER_Q}
    for path, finding in kinds.items():
        assert finding.state.bad == (path in drive.broken)
        assert finding.at_ms >= cut_ms


def test_a_single_lost_walk_is_no_outage() -> None:
    drive = Drive()
    drive.run(5 * INTERVAL_MS)
    drive.lose_once.add(DIRECT)
    drive.run(10 * INTERVAL_MS)
    assert not drive.lose_once
    assert drive.walks.health.loss_permille > 0
    assert drive.walks.health.state is RouteState.HEALTHY
    assert not any(report.ask for _, report in drive.reports)


@given(seed=st.integers(0, 2**16))
def test_while_nothing_works_every_way_keeps_the_pace_and_what_comes_back_is_told_soon(seed: int) -> None:
    drive = Drive(seed=seed)
    drive.broken = dict.fromkeys((DIRECT, OVER_R, OVER_Q), WalkState.UNREACHABLE)
    drive.run(20 * INTERVAL_MS)
    counts = Counter(walk.path for walk in drive.started if walk.started_ms >= 10 * INTERVAL_MS)
    assert all(7 <= count <= 15 for count in counts.values())
    healed_ms = drive.now_ms
    del drive.broken[OVER_Q]
    drive.run(healed_ms + 3 * INTERVAL_MS)
    told_ms = next(
        at
        for at, report in drive.reports
        if any(finding.path == OVER_Q and finding.state is RouteState.HEALTHY for finding in report.findings)
    )
    assert told_ms - healed_ms <= INTERVAL_MS * (1 + JITTER) + 3 * DEADLINE_MS


@given(
    seed=st.integers(0, 2**16),
    scripts=st.lists(
        st.tuples(
            st.integers(1, 30_000), st.sampled_from([DIRECT, OVER_R, OVER_Q]), st.sampled_from(sorted(WalkState))
        ),
        max_size=25,
    ),
)
def test_no_storm_and_no_silence_whatever_happens(
    seed: int, scripts: list[tuple[int, tuple[str, ...], WalkState]]
) -> None:
    drive = Drive(seed=seed)
    for passed_ms, path, state in scripts:
        drive.broken[path] = state
        drive.run(drive.now_ms + passed_ms)
    end_ms = drive.now_ms + 6 * INTERVAL_MS
    drive.run(end_ms)
    for path in (DIRECT, OVER_R, OVER_Q):
        starts = [walk.started_ms for walk in drive.started if walk.path == path]
        for at_ms in starts:
            # At the most: its own turn, a burst and a confirmation, or retries of what said nothing.
            assert sum(at_ms <= other < at_ms + INTERVAL_MS for other in starts) <= 8
    last_ms = drive.reports[-1][0]
    silent = drive.broken.get(DIRECT) is WalkState.INCONCLUSIVE
    assert end_ms - last_ms <= (4 if silent else 2) * INTERVAL_MS


def test_a_lost_lease_withdraws_the_path_asks_and_goes_on_with_the_others() -> None:
    drive = Drive(replace(ROUTE, path=OVER_R, candidates=(DIRECT, OVER_Q)))
    drive.run(5 * INTERVAL_MS)
    lost_ms, before = drive.now_ms, len(drive.started)
    report = drive.walks.lease_changed(False, lost_ms)
    assert report is not None
    assert report.ask
    assert [(each.type, each.failure) for each in report.findings] == [(ObservationType.LEASE, "LEASE_EXPIRED")]
    assert drive.walks.lease_changed(False, lost_ms) is None
    drive.run(lost_ms + 2 * INTERVAL_MS)
    after = {walk.path for walk in drive.started[before:]}
    assert after == {DIRECT, OVER_Q}
    assert any(at >= lost_ms and each.ask for at, each in drive.reports)
    assert drive.walks.lease_changed(True, drive.now_ms) is None
    drive.run(drive.now_ms + INTERVAL_MS)
    assert drive.started[-1].path == OVER_R or OVER_R in {walk.path for walk in drive.started[before:]}


def test_another_path_is_walked_very_soon_and_what_was_known_stays() -> None:
    drive = Drive()
    drive.run(10 * INTERVAL_MS)
    switched = replace(ROUTE, generation=2, path=OVER_R, candidates=(DIRECT,))
    drive.walks.replace(switched, drive.now_ms)
    assert drive.walks.health.state is RouteState.HEALTHY
    assert drive.walks.next_ms <= drive.now_ms + JITTER * INTERVAL_MS
    late = Walk("a", 1, OVER_Q, DEADLINE_MS, drive.now_ms)
    assert drive.walks.finished(late, result(OVER_Q, WalkState.UNREACHABLE), drive.now_ms) is None
    before = len(drive.started)
    drive.run(drive.now_ms + INTERVAL_MS)
    assert {(walk.path, walk.generation) for walk in drive.started[before:]} <= {(OVER_R, 2), (DIRECT, 2)}


def test_one_that_heals_says_so_once() -> None:
    drive = Drive()
    drive.broken = {DIRECT: WalkState.DRIFT}
    drive.run(5 * INTERVAL_MS)
    drive.broken = {}
    drive.run(10 * INTERVAL_MS)
    assert sum(report.healed for _, report in drive.reports) == 1


@given(seed=st.integers(0, 2**16))
def test_the_connection_is_told_when_it_is_news_and_else_at_the_pace_of_candidates(seed: int) -> None:
    def told(drive: Drive) -> list[tuple[int, RouteState]]:
        said = [(at_ms, found) for at_ms, report in drive.reports for found in report.findings]
        return [(at_ms, each.state) for at_ms, each in said if each.type is ObservationType.PEER_CONNECTION]

    drive = Drive(seed=seed)
    drive.run(40 * INTERVAL_MS)
    healthy = told(drive)
    assert all(later[0] - earlier[0] >= 6 * INTERVAL_MS for earlier, later in pairwise(healthy))
    assert all(later[0] - earlier[0] <= 8 * INTERVAL_MS for earlier, later in pairwise(healthy))
    drive.broken[DIRECT] = WalkState.UNREACHABLE
    drive.run(43 * INTERVAL_MS)
    changes = [state for _, state in told(drive)[len(healthy) :]]
    assert changes == [RouteState.UNREACHABLE]


@given(seed=st.integers(0, 2**10), lost_at_ms=st.integers(0, 40_000))
def test_a_lease_that_ends_at_any_moment_keeps_no_finding_of_the_other_ways_back(seed: int, lost_at_ms: int) -> None:
    """A relay that hangs is given no lease any more: it may end while walks over it are out."""
    route = EffectivePath("a", 1, OVER_R, (DIRECT, OVER_Q), INTERVAL_MS, 6 * INTERVAL_MS)
    drive = Drive(route, seed)
    drive.run(until_ms=INTERVAL_MS)
    drive.broken[OVER_R] = WalkState.UNREACHABLE
    drive.run(until_ms=INTERVAL_MS + lost_at_ms)
    assert drive.walks.lease_changed(False, drive.now_ms) is not None
    drive.run(until_ms=drive.now_ms + 3 * DEADLINE_MS)
    told = [report for at_ms, report in drive.reports if at_ms >= INTERVAL_MS + lost_at_ms]
    assert {finding.path for report in told for finding in report.findings} >= {DIRECT, OVER_Q}


@given(seed=st.integers(0, 2**16), news=st.sampled_from(["slower", "faster", "lossy", "another snapshot"]))
def test_a_candidate_that_is_as_it_was_is_told_of_every_other_walk_and_news_of_it_at_once(seed: int, news: str) -> None:
    pace_ms = 6 * INTERVAL_MS
    longest_ms = round(pace_ms * (1 + JITTER)) + 2 * INTERVAL_MS  # it is told with the next walk of the path in force
    drive = Drive(seed=seed)
    drive.run(20 * pace_ms)
    healthy = told_of(drive, OVER_R)
    assert healthy[1] <= INTERVAL_MS + longest_ms
    gaps = [later - earlier for earlier, later in pairwise(healthy[1:])]
    assert all(pace_ms * 3 // 2 < gap <= 2 * longest_ms for gap in gaps)
    if news == "another snapshot":
        drive.walks.replace(replace(ROUTE, generation=2), drive.now_ms)
    elif news == "lossy":
        drive.lose_once.add(OVER_R)
    else:
        drive.rtts_us[OVER_R] = 2_600 if news == "slower" else 1_400
    drive.run(drive.now_ms + 2 * longest_ms)
    since = told_of(drive, OVER_R)[len(healthy) :]
    assert len(since) >= 2
    assert since[0] - 20 * pace_ms <= longest_ms


def test_a_candidate_that_is_a_little_slower_is_no_news() -> None:
    drive = Drive()
    drive.run(121 * INTERVAL_MS)
    before = len(told_of(drive, OVER_R))
    drive.rtts_us[OVER_R] = 2_500
    drive.run(121 * INTERVAL_MS + 12 * 6 * INTERVAL_MS)
    assert len(told_of(drive, OVER_R)) - before <= 7


@given(seed=st.integers(0, 2**16), quicker=st.integers(2, 9))
def test_a_snapshot_of_shorter_intervals_counts_at_once(seed: int, quicker: int) -> None:
    drive = Drive(seed=seed)
    drive.run(20 * INTERVAL_MS)
    interval_ms = INTERVAL_MS // quicker
    now = replace(ROUTE, probe_interval_ms=interval_ms, candidate_interval_ms=6 * interval_ms)
    drive.walks.replace(now, drive.now_ms)
    began = len(drive.started)
    drive.run(20 * INTERVAL_MS + 6 * interval_ms)
    counts = Counter(walk.path for walk in drive.started[began:])
    assert counts[DIRECT] >= 5
    assert counts.keys() == {DIRECT, OVER_R, OVER_Q}
