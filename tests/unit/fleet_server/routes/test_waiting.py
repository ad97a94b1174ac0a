"""A route whose ways are as they were is decided about once in a while; what could lead to another path, at once."""

from dataclasses import replace
from typing import Any

import pytest

from fleet_server.routes.model import DIRECT, Candidate, HeldLease, PathState, Route
from fleet_server.routes.waiting_rules import LOOK_EVERY, looked, may_wait
from tests.unit.fleet_server.routes.known import NOW_MS, OVER_A, POLICY, ROUTE, bad, good, rows

KNOWN = rows(good(DIRECT, 40), good("n-a", 60))
LATER_MS = NOW_MS + ROUTE.probe_interval_ms


def waits(
    *told: Candidate, route: Route = ROUTE, now_ms: int = LATER_MS, usable: bool = True, ever: bool = True
) -> bool:
    last = looked(KNOWN, NOW_MS, POLICY) if ever else None
    after = KNOWN | rows(*told)
    return may_wait(route, KNOWN, after, last, now_ms, POLICY, relay_usable=usable)


def test_what_is_as_it_was_waits_until_every_way_was_walked_once() -> None:
    told = good(DIRECT, 41)
    pause_ms = LOOK_EVERY * ROUTE.probe_interval_ms
    assert waits(told)
    assert waits(told, now_ms=NOW_MS + pause_ms - 1)
    assert not waits(told, now_ms=NOW_MS + pause_ms)
    assert not waits(told, now_ms=NOW_MS - 1)  # a clock went back
    assert not waits(told, ever=False)


@pytest.mark.parametrize(
    ("told", "may"),
    [
        (good(DIRECT, 45), True),
        (good(DIRECT, 45.1), False),
        (good(DIRECT, 34), False),
        (good("n-a", 52), False),
        (good(DIRECT, 40)._replace(loss=0.01), True),  # 4 ms, of 40
        (good(DIRECT, 40)._replace(loss=0.02), False),
        (bad(DIRECT), False),
        (bad("n-a"), False),
        (good("n-b", 90), False),  # a way of which nothing was known
    ],
)
def test_what_moved_by_an_eighth_or_changed_its_state_does_not_wait(told: Candidate, may: bool) -> None:
    assert waits(told) is may


def test_a_short_path_may_vary_by_a_quarter_of_what_a_switch_gains() -> None:
    known = rows(good(DIRECT, 1))
    last = looked(known, NOW_MS, POLICY)
    for rtt_ms, may in ((3.5, True), (3.6, False)):
        after = rows(good(DIRECT, rtt_ms))
        assert may_wait(ROUTE, known, after, last, LATER_MS, POLICY, relay_usable=True) is may


def test_a_path_over_a_relay_needs_the_relay_and_its_lease() -> None:
    told = good("n-a", 61)
    held = HeldLease("n-a", 1, LATER_MS + 1)
    route = replace(OVER_A, lease=held)
    assert waits(told, route=route)
    assert not waits(told, route=route, usable=False)
    assert not waits(told, route=replace(route, lease=None))
    assert not waits(told, route=replace(route, lease=replace(held, expires_at_ms=LATER_MS)))
    assert not waits(told, route=replace(route, lease=replace(held, relay_id="n-b")))


@pytest.mark.parametrize("changes", [{"enabled": False}, {"generation": 0}])
def test_a_route_that_is_off_or_has_no_path_yet_does_not_wait(changes: dict[str, Any]) -> None:
    assert not waits(good(DIRECT, 41), route=replace(ROUTE, **changes))


def test_a_path_that_does_not_work_does_not_wait() -> None:
    broken = rows(bad(DIRECT), good("n-a", 60))
    last = looked(broken, NOW_MS, POLICY)
    after = broken | rows(good("n-a", 61))
    assert broken[DIRECT].state is PathState.UNREACHABLE
    assert not may_wait(ROUTE, broken, after, last, LATER_MS, POLICY, relay_usable=True)


def test_a_way_that_was_seen_often_enough_to_be_chosen_does_not_wait() -> None:
    least = POLICY.min_samples
    for samples, may in ((least - 1, True), (least, False), (least + 1, True)):
        known = KNOWN | rows(good("n-a", 12, samples=samples - 1))
        last = looked(known, NOW_MS, POLICY)
        after = known | rows(good("n-a", 12, samples=samples))
        assert may_wait(ROUTE, known, after, last, LATER_MS, POLICY, relay_usable=True) is may
