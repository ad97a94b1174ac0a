"""What would have to change for a route to take another path: what is told can be counted upon."""

from __future__ import annotations

from dataclasses import replace

from fleet_server.routes.model import DIRECT, Candidate, HeldLease, PathState, Policy, Relay, Route
from fleet_server.routes.outlook_rules import most_us, would_switch
from fleet_server.routes.rules import decide

NOW_MS = 1_790_000_000_000
POLICY = Policy()
ROUTE = Route("rt", "s", "", "d", "", probe_interval_ms=10_000, generation=3, candidates=("r",))
POOL = [Relay("r", "", 50, 100, 0, usable=True)]


def seen(relay_id: str, rtt_ms: float, state: PathState = PathState.HEALTHY, **changes: object) -> Candidate:
    values = {"rtt_us": rtt_ms * 1000, "samples": 5, "observed_at_ms": NOW_MS, "state": state}
    return Candidate(relay_id, **{**values, **changes})  # type: ignore[arg-type]


def told(*known: Candidate, route: Route = ROUTE, pool: list[Relay] | None = None) -> list[str]:
    live = decide(route, {way.relay_id: way for way in known}, POOL if pool is None else pool, NOW_MS, POLICY)
    return list(would_switch(route.relay_id, (route.source_id, route.destination_id), live, POLICY))


def test_a_path_that_works_is_left_when_it_breaks_or_is_bettered_enough() -> None:
    breaks, gains = told(seen(DIRECT, 60), seen("r", 40))
    assert breaks.startswith("the direct path breaks: the path over r would be next")
    assert gains == "the path over r has a score of 40.0 ms or less, against 50.1 ms now"


def test_the_score_that_is_named_is_the_one_that_switches() -> None:
    for rtt_us in (60_000, 200_000):
        most = most_us(rtt_us, POLICY)
        for score_us, switches in ((most, True), (most + 1, False)):
            known = {DIRECT: seen(DIRECT, rtt_us / 1000), "r": seen("r", (score_us - POLICY.relay_us) / 1000 - 0.1)}
            # The load of a relay is a part of its score, too: one of 50 routes costs 0.1 ms.
            assert decide(ROUTE, known, POOL, NOW_MS, POLICY).switched is switches, (rtt_us, score_us)


def test_nothing_can_gain_enough_over_a_path_that_is_short() -> None:
    assert told(seen(DIRECT, 8), seen("r", 1)) == ["the direct path breaks: the path over r would be next"]


def test_one_that_is_held_out_says_why_and_is_next_when_nothing_else_works() -> None:
    flaps = seen("r", 10, penalty=2500.0, penalty_at_ms=NOW_MS, suppressed_since_ms=NOW_MS)
    breaks, gains = told(seen(DIRECT, 60), flaps)
    assert breaks.endswith("the path over r would be next")
    assert gains.startswith("the path over r can be chosen again (flaps: penalty 2500")


def test_a_relayed_path_names_what_its_relay_may_do() -> None:
    over = replace(ROUTE, relay_id="r", candidates=(DIRECT,), lease=HeldLease("r", 1, NOW_MS + 60_000))
    (breaks,) = told(seen("r", 10), seen(DIRECT, 0, PathState.UNREACHABLE, stale_since_ms=NOW_MS), route=over)[:1]
    assert "not given its lease again" in breaks
    assert breaks.endswith("no other path works now, so it would stay until one does")


def test_where_nothing_works_it_is_told_what_has_to() -> None:
    lost = {"state": PathState.UNREACHABLE, "stale_since_ms": NOW_MS, "failure": "TIMED_OUT"}
    (other,) = told(seen(DIRECT, 0, **lost), seen("r", 0, **lost))  # type: ignore[arg-type]
    assert other.startswith("the path over r works again (UNREACHABLE for ")
    alone = told(seen(DIRECT, 0, **lost), route=replace(ROUTE, candidates=()), pool=[])  # type: ignore[arg-type]
    assert alone == ["a relay is added that both ends reach"]


def test_a_change_that_is_due_is_told_as_such() -> None:
    (due,) = told(seen(DIRECT, 200), seen("r", 20))
    assert due == "its ways are compared again, within 6 intervals: the path over r would be taken now"
    broken = seen(DIRECT, 0, PathState.UNREACHABLE, stale_since_ms=NOW_MS)
    (due,) = told(broken, seen("r", 20))
    assert due.startswith("the next report comes or the next second has passed: ")


def test_an_end_in_the_pool_is_no_way_out() -> None:
    pool = [*POOL, Relay("d", "", 50, 100, 0, usable=True)]
    assert not any("over d" in each for each in told(seen(DIRECT, 60), seen("r", 40), pool=pool))


def test_a_relay_is_not_asked_for_a_score_that_no_relay_can_have() -> None:
    breaks = "the direct path breaks: the path over r would be next"
    # 10 ms less is asked for, and a relay costs as much by itself.
    assert told(seen(DIRECT, 19), seen("r", 15)) == [breaks]
    heavy = [replace(POOL[0], weight=200)]
    assert len(told(seen(DIRECT, 19), seen("r", 15), pool=heavy)) == 2


def test_one_that_gains_enough_and_was_seen_too_seldom_has_to_be_seen_again() -> None:
    _, gains = told(seen(DIRECT, 200), seen("r", 20, samples=1))
    assert gains == "the path over r is walked again, and still works as well"
