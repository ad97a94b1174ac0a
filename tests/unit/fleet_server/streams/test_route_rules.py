"""Frames about routes: what is refused, and what is passed over."""

import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import lease_pb2, route_pb2
from fleet_server.streams.route_rules import MAX_OBSERVATIONS, check_applied, check_health, check_lease_ack


def _found(**changes: object) -> route_pb2.RouteObservation:
    return route_pb2.RouteObservation(
        **{  # type: ignore[arg-type]
            "route_id": "r",
            "observation_type": route_pb2.OBSERVATION_TYPE_CANDIDATE_PATH,
            "state": route_pb2.ROUTE_STATE_HEALTHY,
            **changes,
        }
    )


def _health(**changes: object) -> route_pb2.RouteHealth:
    return route_pb2.RouteHealth(observations=[_found(**changes)])


@pytest.mark.parametrize(
    "health",
    [
        route_pb2.RouteHealth(),
        route_pb2.RouteHealth(observations=[_found()] * (MAX_OBSERVATIONS + 1)),
        route_pb2.RouteHealth(refresh_routes=["r"] * (MAX_OBSERVATIONS + 1)),
        route_pb2.RouteHealth(refreshes=[route_pb2.RefreshReport(route_id="r")] * (MAX_OBSERVATIONS + 1)),
        route_pb2.RouteHealth(refresh_routes=[""]),
        route_pb2.RouteHealth(refreshes=[route_pb2.RefreshReport(route_id="r", relay_node_id="n" * 65)]),
        _health(route_id=""),
        _health(route_id="r" * 65),
        _health(expected_hops=["n"] * 6),
        _health(observed_hops=["n", ""]),
        _health(blamed_node_id="n" * 65),
        _health(failure="F" * 65),
    ],
)
def test_a_frame_that_is_none_is_malformed(health: route_pb2.RouteHealth) -> None:
    with pytest.raises(Refusal) as refused:
        check_health(health)
    assert refused.value.reason is Reason.MALFORMED


def test_what_a_newer_node_says_is_passed_over() -> None:
    health = route_pb2.RouteHealth(
        observations=[_found(), _found(state=99), _found(state=0), _found(observation_type=99)],
        refresh_routes=["r"],
        refreshes=[
            route_pb2.RefreshReport(route_id="r", outcome=99),  # type: ignore[arg-type]
            route_pb2.RefreshReport(route_id="r", outcome=route_pb2.REFRESH_OUTCOME_REPLACED),
        ],
        refreshes_held_back=3,
    )
    known = check_health(health)
    assert list(known.observations) == [_found()]
    assert [report.outcome for report in known.refreshes] == [route_pb2.REFRESH_OUTCOME_REPLACED]
    assert (list(known.refresh_routes), known.refreshes_held_back) == (["r"], 3)


@pytest.mark.parametrize(
    "applied",
    [
        route_pb2.ConfigApplied(reason="R" * 65),
        route_pb2.ConfigApplied(withdrawn_routes=["r"] * 5_000),
        route_pb2.ConfigApplied(withdrawn_routes=[""]),
    ],
)
def test_an_answer_to_a_snapshot_that_is_none_is_malformed(applied: route_pb2.ConfigApplied) -> None:
    with pytest.raises(Refusal, match=r"characters|withdraws"):
        check_applied(applied)


@pytest.mark.parametrize("ack", [lease_pb2.LeaseAck(), lease_pb2.LeaseAck(lease_id="l", reason="R" * 65)])
def test_an_answer_to_a_lease_that_is_none_is_malformed(ack: lease_pb2.LeaseAck) -> None:
    with pytest.raises(Refusal, match="characters"):
        check_lease_ack(ack)
