"""Decisions of the link."""

import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import gateway_pb2
from fleet_node.link.rules import (
    MAX_SLOT_MS,
    STOP_S,
    WAIT_S,
    Leave,
    heartbeat_deadline_s,
    other_endpoints,
    plan_goaway,
    stay_away_s,
)

BUNDLE = ("a:1", "b:2")


def goaway(reason: int, **fields: object) -> gateway_pb2.ControlGoaway:
    return gateway_pb2.ControlGoaway(reason=reason, **({"resume": True} | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reason", "leave"),
    [
        (gateway_pb2.GOAWAY_REASON_DRAIN, Leave.TAKEOVER),
        (gateway_pb2.GOAWAY_REASON_UPGRADE, Leave.TAKEOVER),
        (gateway_pb2.GOAWAY_REASON_REBALANCE, Leave.TAKEOVER),
        (gateway_pb2.GOAWAY_REASON_RESTART, Leave.RETURN),
        (gateway_pb2.GOAWAY_REASON_SUPERSEDED, Leave.RETURN),
        (99, Leave.RETURN),  # of a later version
    ],
)
def test_the_reason_of_a_goaway_decides_how_to_leave(reason: int, leave: Leave) -> None:
    assert plan_goaway(goaway(reason), BUNDLE).leave is leave


@pytest.mark.parametrize("reason", [gateway_pb2.GOAWAY_REASON_SUSPENDED, gateway_pb2.GOAWAY_REASON_DRAIN])
def test_without_resume_a_node_stays_away(reason: int) -> None:
    assert plan_goaway(goaway(reason, resume=False), BUNDLE).leave is Leave.STAY_AWAY


def test_a_superseded_stream_returns_even_without_resume() -> None:
    plan = plan_goaway(goaway(gateway_pb2.GOAWAY_REASON_SUPERSEDED, resume=False), BUNDLE)
    assert plan.leave is Leave.RETURN


def test_a_goaway_sends_nobody_to_strangers() -> None:
    named = goaway(gateway_pb2.GOAWAY_REASON_DRAIN, endpoints=["evil:1", "b:2"])
    assert plan_goaway(named, BUNDLE).endpoints == ("b:2",)
    only_strangers = goaway(gateway_pb2.GOAWAY_REASON_DRAIN, endpoints=["evil:1"])
    assert plan_goaway(only_strangers, BUNDLE).endpoints == BUNDLE


def test_a_goaway_cannot_send_a_node_away_for_days() -> None:
    long = goaway(gateway_pb2.GOAWAY_REASON_RESTART, reconnect_after_ms=2**32 - 1, window_ms=2**32 - 1)
    plan = plan_goaway(long, BUNDLE)
    assert (plan.delay_s, plan.window_s) == (MAX_SLOT_MS / 1000, MAX_SLOT_MS / 1000)


def test_the_shortest_delay_is_the_nodes() -> None:
    at_once = goaway(gateway_pb2.GOAWAY_REASON_DRAIN)
    assert plan_goaway(at_once, BUNDLE).delay_s == 0
    assert plan_goaway(at_once, BUNDLE, at_least_s=0.25).delay_s == 0.25
    assert plan_goaway(goaway(gateway_pb2.GOAWAY_REASON_DRAIN, reconnect_after_ms=900), BUNDLE).delay_s == 0.9


@pytest.mark.parametrize(
    ("reason", "asked_s", "away_s"),
    [
        (Reason.UNAVAILABLE, None, None),
        (Reason.OVERLOADED, 7.5, 7.5),
        (Reason.SUSPENDED, None, WAIT_S),
        (Reason.REVOKED, None, STOP_S),
        (Reason.REVOKED, 3.0, 3.0),
    ],
)
def test_a_refusal_delays_and_never_strands(reason: Reason, asked_s: float | None, away_s: float | None) -> None:
    assert stay_away_s(reason, asked_s) == away_s


def test_three_missed_pings_and_a_half_end_a_stream() -> None:
    assert heartbeat_deadline_s(15_000) == 52.5
    assert heartbeat_deadline_s(1) == 1.0  # a tiny interval does not make a node flap
    assert heartbeat_deadline_s(2**32 - 1) == 2100.0  # nor does a huge one tie a node to a dead server for months


def test_only_who_does_not_serve_and_asks_for_no_delay_is_passed_over() -> None:
    assert other_endpoints(Refusal(Reason.UNAVAILABLE, "nobody"), BUNDLE, "a:1") == ("b:2",)
    assert other_endpoints(Refusal(Reason.UNAVAILABLE, "nobody"), ("b:2",), "b:2") == ()
    assert other_endpoints(Refusal(Reason.UNAVAILABLE, "soon", retry_after_s=2.0), BUNDLE, "a:1") == ()
    for reason in (Reason.OVERLOADED, Reason.SUSPENDED, Reason.BAD_PROOF, Reason.WRONG_CERTIFICATE):
        assert other_endpoints(Refusal(reason, "no"), BUNDLE, "a:1") == ()
    assert other_endpoints(RuntimeError(), BUNDLE, "a:1") == ()
