"""Which other ways a source walks: the direct one always, what stays as it is, and what makes room for what."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from fleet_server.routes.rules import DIRECT, Candidate, PathState, Relay, decide
from tests.unit.fleet_server.routes.known import NOW_MS, OVER_A, POLICY, ROUTE, bad, good, relay, rows

ALL = tuple(relay(f"n-{letter}") for letter in "abcxef")
STANDING = replace(OVER_A, candidates=(DIRECT, "n-b", "n-c", "n-x"))
WORKING = rows(good("n-a", 9), good(DIRECT, 15), good("n-b", 9), good("n-c", 9), good("n-x", 9))
LONG_MS = NOW_MS - POLICY.rotate_after_ms(ROUTE)


def chosen(known: dict[str, Candidate], pool: Iterable[Relay] = ALL) -> tuple[str, ...]:
    return decide(STANDING, known, tuple(pool), NOW_MS, POLICY).candidates


def without(*gone: str) -> list[Relay]:
    return [each for each in ALL if each.node_id not in gone]


def test_a_new_route_begins_with_as_many_as_it_may_have() -> None:
    first = decide(replace(ROUTE, generation=0, candidates=()), {}, ALL, NOW_MS, POLICY)
    assert len(first.candidates) == POLICY.max_candidates
    assert DIRECT not in first.candidates


def test_none_is_made_up_where_the_pool_is_small() -> None:
    first = decide(replace(ROUTE, generation=0, candidates=()), {}, (relay("n-a"), relay("n-s")), NOW_MS, POLICY)
    assert first.candidates == ("n-a",)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({}, id="all-work"),
        pytest.param(rows(good("n-x", 1)), id="another-one-is-the-best-now"),
        pytest.param(rows(bad("n-c")), id="one-broke-a-moment-ago"),
        pytest.param(rows(bad("n-c", stale_since_ms=LONG_MS + 1)), id="one-broke-a-while-ago"),
        pytest.param(rows(Candidate("n-c")), id="one-was-never-walked"),
    ],
)
def test_they_stay_in_their_places_without_a_cause(change: dict[str, Candidate]) -> None:
    assert chosen(WORKING | change) == STANDING.candidates


def test_one_that_has_not_worked_for_long_makes_room_in_its_place() -> None:
    after = chosen(WORKING | rows(bad("n-c", stale_since_ms=LONG_MS)))
    assert after[:2] == (DIRECT, "n-b")
    assert after[2] in ("n-e", "n-f")
    assert after[3] == "n-x"


def test_but_only_for_one_that_did_not_fail_lately() -> None:
    failed = rows(bad("n-e", observed_at_ms=NOW_MS - 1), bad("n-f", observed_at_ms=NOW_MS - 300_000))
    assert chosen(WORKING | failed | rows(bad("n-c", stale_since_ms=LONG_MS))) == STANDING.candidates
    forgiven = failed | rows(bad("n-f", observed_at_ms=NOW_MS - POLICY.retry_after_ms(ROUTE)))
    assert chosen(WORKING | forgiven | rows(bad("n-c", stale_since_ms=LONG_MS)))[2] == "n-f"


def test_when_nothing_works_whatever_broke_makes_room_at_once() -> None:
    broken = rows(*(bad(way) for way in (DIRECT, "n-a", "n-b", "n-c", "n-x")))
    after = chosen(broken)
    assert after[0] == DIRECT
    assert {"n-e", "n-f"} < set(after)


def test_a_full_one_makes_room_and_stays_where_nobody_needs_it() -> None:
    full = relay("n-b", load=10)
    assert chosen(WORKING, [*without("n-b"), full])[1] in ("n-e", "n-f")
    assert chosen(WORKING, [*without("n-b", "n-e", "n-f"), full]) == STANDING.candidates


@pytest.mark.parametrize("gone", [relay("n-b", usable=False, why_not="it is offline"), relay("n-e", load=10)])
def test_who_may_not_carry_it_or_has_no_room_is_not_offered(gone: Relay) -> None:
    assert gone.node_id not in chosen(WORKING, [*without(gone.node_id, "n-f"), gone])


def test_a_switch_puts_them_in_order_and_keeps_the_path_that_was_left() -> None:
    known = rows(bad("n-a"), good(DIRECT, 5), good("n-b", 40), good("n-c", 20), bad("n-x", PathState.DRIFT))
    decision = decide(STANDING, known, ALL, NOW_MS, POLICY)
    assert decision.relay_id == DIRECT
    assert decision.candidates[:2] == ("n-c", "n-b")
    assert set(decision.candidates[2:]) == {"n-a", "n-x"}
