"""What is decided for a route: the rule in each situation, which way it takes, and what it says for itself."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from fleet_server.routes.rules import DIRECT, Candidate, DecisionRule, PathState, Relay, Route, decide
from tests.unit.fleet_server.routes.known import (
    HELD_OUT,
    NOW_MS,
    OVER_A,
    POLICY,
    RELAYS,
    ROUTE,
    SEEN_MS,
    bad,
    good,
    relay,
    rows,
)

NEW = replace(ROUTE, generation=0)
UNLEASED = replace(OVER_A, lease=None)
LONG_AGO_MS = NOW_MS - 40_000
"""Too long for the effective path, not for a candidate."""
ONLY_B = (relay("n-b"),)
A_DRAINED = (relay("n-a", usable=False, why_not="it is drained"), relay("n-b"))


@pytest.mark.parametrize(
    ("route", "known", "relays", "rule", "relay_id", "said"),
    [
        pytest.param(NEW, rows(), RELAYS, DecisionRule.FIRST, DIRECT, "nothing of the route has been walked", id="new"),
        pytest.param(
            NEW, rows(good("n-a", 9)), RELAYS, DecisionRule.FIRST, "n-a", "the best that works", id="new-but-known"
        ),
        pytest.param(
            ROUTE, rows(good(DIRECT, 5), good("n-a", 9)), RELAYS, DecisionRule.KEPT, DIRECT, "5.1 ms", id="the-best"
        ),
        pytest.param(
            ROUTE,
            rows(bad(DIRECT, failure="TIMED_OUT"), good("n-a", 9), good("n-b", 7)),
            RELAYS,
            DecisionRule.UNHEALTHY,
            "n-b",
            "UNREACHABLE for 1.0 s (TIMED_OUT): the path over n-b takes over",
            id="cut",
        ),
        pytest.param(
            ROUTE,
            rows(bad(DIRECT), good("n-a", 9, observed_at_ms=LONG_AGO_MS), good("n-b", 30)),
            RELAYS,
            DecisionRule.UNHEALTHY,
            "n-b",
            "the path over n-b takes over",
            id="cut-and-the-best-was-not-seen-since",
        ),
        pytest.param(
            ROUTE,
            rows(bad(DIRECT), good("n-a", 9, observed_at_ms=LONG_AGO_MS)),
            RELAYS,
            DecisionRule.UNHEALTHY,
            "n-a",
            "the path over n-a takes over",
            id="cut-and-nothing-was-seen-since",
        ),
        pytest.param(
            ROUTE,
            rows(bad(DIRECT), good("n-a", 9, **HELD_OUT), good("n-b", 90, **HELD_OUT | {"penalty": 2400.0})),
            RELAYS,
            DecisionRule.LAST_USABLE,
            "n-b",
            "the last way that works is taken",
            id="of-two-that-flap-the-calmer-one",
        ),
        pytest.param(
            OVER_A,
            rows(bad("n-a", PathState.DRIFT, failure="BAD_RECORD", blamed="n-a"), good("n-b", 9)),
            RELAYS,
            DecisionRule.UNHEALTHY,
            "n-b",
            "DRIFT for 1.0 s (BAD_RECORD, evidence names n-a)",
            id="a-liar",
        ),
        pytest.param(
            OVER_A, rows(bad("n-a"), bad(DIRECT)), RELAYS, DecisionRule.NO_USABLE_PATH, "n-a", "no way works", id="dead"
        ),
        pytest.param(
            OVER_A,
            rows(),
            RELAYS,
            DecisionRule.UNOBSERVED,
            "n-a",
            "not told of any walk of it yet",
            id="not-walked-yet",
        ),
        pytest.param(
            OVER_A,
            rows(good("n-a", 9, observed_at_ms=LONG_AGO_MS), good("n-b", 9, observed_at_ms=LONG_AGO_MS)),
            RELAYS,
            DecisionRule.UNOBSERVED,
            "n-a",
            "told nothing for 40 s",
            id="a-silent-source-is-not-a-broken-path",
        ),
        pytest.param(
            OVER_A,
            rows(good("n-a", 9, observed_at_ms=LONG_AGO_MS), good("n-b", 9)),
            RELAYS,
            DecisionRule.STALE,
            "n-b",
            "tells of other ways, but not of the path over n-a (not seen for 40 s)",
            id="told-of-others-only",
        ),
        pytest.param(
            replace(OVER_A, decided_at_ms=NOW_MS - 20_000),
            rows(good("n-a", 9, observed_at_ms=LONG_AGO_MS), good("n-b", 19)),
            RELAYS,
            DecisionRule.KEPT,
            "n-a",
            "the best",
            id="a-path-that-is-new-is-not-missed-yet",
        ),
        pytest.param(
            OVER_A,
            rows(good("n-a", 9), good("n-b", 9)),
            A_DRAINED,
            DecisionRule.RELAY_GONE,
            "n-b",
            "n-a cannot be its relay any more, for it is drained: the path over n-b takes over",
            id="drained",
        ),
        pytest.param(
            OVER_A,
            rows(good("n-a", 9), bad(DIRECT)),
            ONLY_B,
            DecisionRule.RELAY_GONE,
            "n-b",
            "not in the relay pool: the path over n-b is tried",
            id="removed-and-nothing-else-is-known",
        ),
        pytest.param(
            OVER_A, rows(bad("n-b")), ONLY_B, DecisionRule.RELAY_GONE, DIRECT, "is tried", id="removed-try-directly"
        ),
        pytest.param(
            OVER_A, rows(bad("n-b"), bad(DIRECT)), ONLY_B, DecisionRule.RELAY_GONE, DIRECT, "", id="removed-all-broken"
        ),
        pytest.param(
            UNLEASED,
            rows(good("n-a", 30), good("n-b", 25)),
            RELAYS,
            DecisionRule.LEASE_ENDED,
            "n-a",
            "gets another one",
            id="another-lease-for-the-same-relay",
        ),
        pytest.param(
            replace(OVER_A, lease=replace(OVER_A.lease, expires_at_ms=NOW_MS)),
            rows(bad("n-a"), good("n-b", 30)),
            RELAYS,
            DecisionRule.LEASE_ENDED,
            "n-b",
            "has ended: the path over n-b takes over",
            id="its-lease-has-ended",
        ),
        pytest.param(
            OVER_A,
            rows(good("n-a", 40), good(DIRECT, 5)),
            RELAYS,
            DecisionRule.FASTER,
            DIRECT,
            "gains 45.1 ms: 5.0 ms instead of 50.1 ms",
            id="the-direct-path-is-back",
        ),
        pytest.param(
            OVER_A,
            rows(good("n-a", 40), good(DIRECT, 5, samples=1)),
            RELAYS,
            DecisionRule.NOT_ENOUGH_GAIN,
            "n-a",
            "seen working 1 of the 2 times",
            id="it-was-seen-once",
        ),
        pytest.param(
            replace(OVER_A, decided_at_ms=SEEN_MS),
            rows(good("n-a", 40), good(DIRECT, 5)),
            RELAYS,
            DecisionRule.NOT_ENOUGH_GAIN,
            "n-a",
            "was not walked since the path over n-a was chosen",
            id="it-was-weighed-when-the-path-was-chosen",
        ),
        pytest.param(
            ROUTE,
            rows(good(DIRECT, 30), good("n-a", 15)),
            RELAYS,
            DecisionRule.NOT_ENOUGH_GAIN,
            DIRECT,
            "at least 10.0 ms and a score of at most 2/3",
            id="a-relay-that-is-a-little-better",
        ),
        pytest.param(
            OVER_A,
            rows(good("n-a", 40), good(DIRECT, 5, **HELD_OUT)),
            RELAYS,
            DecisionRule.SUPPRESSED_KEPT,
            "n-a",
            "but flaps: penalty 2498, held out for another 1562 s",
            id="it-is-back-and-flaps",
        ),
        pytest.param(
            OVER_A,
            rows(bad("n-a"), bad("n-b"), good(DIRECT, 5, **HELD_OUT)),
            RELAYS,
            DecisionRule.LAST_USABLE,
            DIRECT,
            "the last way that works is taken. The path over n-a: UNREACHABLE",
            id="only-what-flaps-works",
        ),
        pytest.param(
            OVER_A,
            rows(good("n-a", 9, **HELD_OUT), good(DIRECT, 50)),
            RELAYS,
            DecisionRule.KEPT,
            "n-a",
            "the best",
            id="what-flaps-is-kept-while-it-works",
        ),
        pytest.param(
            replace(OVER_A, enabled=False), rows(bad("n-a")), RELAYS, DecisionRule.ROUTE_DISABLED, "n-a", "", id="off"
        ),
    ],
)
def test_the_rule_of_each_situation(
    route: Route, known: dict[str, Candidate], relays: Sequence[Relay], rule: DecisionRule, relay_id: str, said: str
) -> None:
    decision = decide(route, known, relays, NOW_MS, POLICY)
    assert (decision.rule, decision.relay_id) == (rule, relay_id)
    assert decision.switched == (relay_id != route.relay_id or rule is DecisionRule.FIRST)
    assert said in decision.sentence


@pytest.mark.parametrize(
    ("hampered", "why"),
    [
        pytest.param(relay("n-a", load=10), "it is full: 10 of 10 routes", id="full"),
        pytest.param(relay("n-a", usable=False, why_not="it is offline"), "it is offline", id="offline"),
        pytest.param(relay("n-s"), "it is an end of the route", id="the-source"),
        pytest.param(relay("n-d"), "it is an end of the route", id="the-destination"),
    ],
)
def test_who_cannot_carry_it_is_not_chosen_however_good_and_it_is_said_why(hampered: Relay, why: str) -> None:
    known = rows(bad(DIRECT), good(hampered.node_id, 1), good("n-b", 200))
    decision = decide(ROUTE, known, (hampered, relay("n-b")), NOW_MS, POLICY)
    assert decision.relay_id == "n-b"
    assert {each.relay_id: each.held_out for each in decision.scores}[hampered.node_id] == why


def test_a_full_relay_keeps_what_it_has_even_when_it_was_made_smaller() -> None:
    known = rows(good("n-a", 9), good("n-b", 15))
    decision = decide(OVER_A, known, (relay("n-a", load=10, capacity=4), relay("n-b")), NOW_MS, POLICY)
    assert (decision.rule, decision.relay_id) == (DecisionRule.KEPT, "n-a")


@pytest.mark.parametrize(
    ("direct", "before", "after"),
    [
        pytest.param(bad(DIRECT), False, True, id="broken"),
        pytest.param(good(DIRECT, 5), True, False, id="works"),
        pytest.param(good(DIRECT, 5, observed_at_ms=NOW_MS - 200_000), True, True, id="not-seen-lately-it-waits"),
        pytest.param(bad(DIRECT, observed_at_ms=NOW_MS - 200_000), False, False, id="not-seen-lately-it-does-not"),
    ],
)
def test_a_route_waits_for_a_rendezvous_while_its_ends_do_not_reach_each_other(
    direct: Candidate, before: bool, after: bool
) -> None:
    route = replace(OVER_A, waiting_rendezvous=before)
    assert decide(route, rows(direct, good("n-a", 9)), RELAYS, NOW_MS, POLICY).waiting_rendezvous is after


def test_only_what_became_too_slow_pays_for_being_left() -> None:
    slow = decide(OVER_A, rows(good("n-a", 40), good(DIRECT, 5)), RELAYS, NOW_MS, POLICY)
    assert [(row.relay_id, row.penalty) for row in slow.charged] == [("n-a", POLICY.slower_charge)]
    # What broke was charged when it was found broken.
    assert decide(OVER_A, rows(bad("n-a"), good(DIRECT, 5)), RELAYS, NOW_MS, POLICY).charged == ()


def test_what_was_left_because_nobody_saw_it_does_not_come_back_unseen() -> None:
    known = rows(good("n-a", 9, observed_at_ms=LONG_AGO_MS), good("n-b", 90))
    decision = decide(OVER_A, known, RELAYS, NOW_MS, POLICY)
    assert [(row.relay_id, row.state) for row in decision.charged] == [("n-a", PathState.UNKNOWN)]


def test_a_decision_tells_of_each_way_what_there_is_to_tell() -> None:
    known = rows(good("n-a", 40, loss=0.1), bad(DIRECT, **HELD_OUT), good("n-b", 60))
    decision = decide(OVER_A, known, (*RELAYS, *map(relay, ("n-c", "n-e", "n-f", "n-g"))), NOW_MS, POLICY)
    chosen, second, direct = decision.scores
    assert chosen.parts == {
        "rtt": 40_000, "loss": 40_000, "age": 100, "relay": 10_000, "load": 0, "site": 0, "weight": 100
    }  # fmt: skip
    assert (chosen.relay_id, chosen.score_us, chosen.held_out) == ("n-a", 90_100, "")
    assert (second.relay_id, second.state) == ("n-b", PathState.HEALTHY)
    assert (direct.score_us, direct.stale_since_ms, direct.observed_at_ms) == (None, SEEN_MS, SEEN_MS)
    assert direct.penalty == pytest.approx(2498, abs=1)
    assert direct.suppressed_until_ms > NOW_MS
    assert direct.held_out.startswith("UNREACHABLE for 1.0 s; flaps: penalty 2498, held out for another")
    assert [reason.text for reason in decision.reasons[1:]] == [
        "the ends cannot reach each other: the direct path is UNREACHABLE for 1.0 s",
        "2 more relays of the pool are not walked; they get their turn when candidates stop working",
    ]


def test_it_is_said_that_the_path_itself_flaps() -> None:
    decision = decide(OVER_A, rows(good("n-a", 9, **HELD_OUT)), RELAYS, NOW_MS, POLICY)
    assert "itself flaps (penalty 2498)" in decision.reasons[1].text


def test_relays_that_are_walked_from_now_on_or_cannot_carry_it_do_not_wait_for_a_turn() -> None:
    drained = relay("n-c", usable=False, why_not="it is drained")
    for route in (NEW, ROUTE):
        decision = decide(route, {}, (*RELAYS, drained, relay("n-e", load=10)), NOW_MS, POLICY)
        assert sorted(decision.candidates) == ["n-a", "n-b"]
        assert len(decision.reasons) == 1, decision.reasons
