"""What a way is worth: each part of a score, and the switch rule at its bounds."""

from dataclasses import replace

import pytest

from fleet_server.routes import scoring_rules
from fleet_server.routes.rules import DIRECT, Candidate, Relay, Route
from tests.unit.fleet_server.routes.known import NOW_MS, OVER_A, POLICY, ROUTE, good, relay

BERLIN = replace(ROUTE, source_site="berlin", destination_site="oslo")


def now(relay_id: str, rtt_ms: float, loss: float = 0.0) -> Candidate:
    return good(relay_id, rtt_ms, loss=loss, observed_at_ms=NOW_MS)


@pytest.mark.parametrize(
    ("row", "over", "route", "score_us"),
    [
        pytest.param(now(DIRECT, 30), None, ROUTE, 30_000, id="a-round-trip"),
        pytest.param(now(DIRECT, 30, 0.1), None, ROUTE, 60_000, id="a-lost-probe-costs-ten-round-trips"),
        pytest.param(now(DIRECT, 1, 0.1), None, ROUTE, 21_000, id="of-twenty-milliseconds-at-least"),
        pytest.param(good(DIRECT, 30, observed_at_ms=NOW_MS - 15_000), None, ROUTE, 31_500, id="half-way-to-stale"),
        pytest.param(good(DIRECT, 30, observed_at_ms=NOW_MS + 5), None, ROUTE, 30_000, id="of-the-future"),
        pytest.param(now("n-a", 30), relay("n-a", load=9), ROUTE, 45_000, id="the-last-place-of-a-relay"),
        pytest.param(now("n-a", 30), relay("n-a", load=10), OVER_A, 45_000, id="its-own-place-counts-once"),
        pytest.param(now("n-a", 30), relay("n-a", load=40), OVER_A, 45_000, id="made-smaller-than-what-it-carries"),
        pytest.param(now("n-a", 30), relay("n-a", weight=200), OVER_A, 20_000, id="twice-the-weight"),
        pytest.param(now("n-a", 30), relay("n-a", weight=50), OVER_A, 80_000, id="half-the-weight"),
        pytest.param(now("n-a", 30), relay("n-a", site="oslo", load=1), BERLIN, 41_000, id="at-an-end"),
        pytest.param(now("n-a", 30), relay("n-a", site="rome", load=1), BERLIN, 46_000, id="somewhere-else"),
        pytest.param(now("n-a", 30), relay("n-a", load=1), BERLIN, 41_000, id="nobody-knows-where"),
        pytest.param(now("n-a", 30), relay("n-a", site="rome", load=1), ROUTE, 41_000, id="ends-of-no-known-site"),
    ],
)
def test_what_a_score_is_made_of(row: Candidate, over: Relay | None, route: Route, score_us: int) -> None:
    assert scoring_rules.total(scoring_rules.parts_of(row, over, route, NOW_MS, POLICY)) == score_us


@pytest.mark.parametrize(
    ("old_us", "new_us", "enough"),
    [
        pytest.param(30_000, 20_000, True, id="ten-milliseconds-and-two-thirds"),
        pytest.param(30_000, 20_001, False, id="a-microsecond-less"),
        pytest.param(29_999, 20_000, False, id="a-microsecond-less-to-gain"),
        pytest.param(24_000, 16_000, False, id="two-thirds-but-eight-milliseconds"),
        pytest.param(90_000, 61_000, False, id="29-milliseconds-but-not-two-thirds"),
        pytest.param(10_000, 0, True, id="ten-milliseconds-to-nothing"),
        pytest.param(9_999, 0, False, id="there-are-no-ten-milliseconds-to-gain"),
    ],
)
def test_the_switch_rule_at_its_bounds(old_us: int, new_us: int, enough: bool) -> None:
    assert scoring_rules.gains_enough(new_us, old_us, POLICY) is enough


def test_of_equals_the_direct_one_is_taken_then_by_name() -> None:
    equals = sorted([("n-b", 5), (DIRECT, 5), ("n-a", 5), ("n-c", 4)], key=lambda each: scoring_rules.order(*each))
    assert [name for name, _ in equals] == ["n-c", DIRECT, "n-a", "n-b"]


def test_relays_that_nobody_walked_are_tried_by_what_is_known_and_by_lot_of_each_route() -> None:
    pool = [relay(f"n-{number}") for number in range(20)]
    firsts = set()
    for number in range(20):
        route = replace(ROUTE, route_id=f"r-{number}")
        firsts.add(min(pool, key=lambda each: scoring_rules.prior(each, route, POLICY)).node_id)
    assert len(firsts) > 5
    favourite = relay("n-x", weight=101)
    assert min([*pool, favourite], key=lambda each: scoring_rules.prior(each, ROUTE, POLICY)) is favourite
