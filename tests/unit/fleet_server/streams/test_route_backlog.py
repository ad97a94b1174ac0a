"""Findings that wait: bounded, and what goes first when there are too many."""

from fleet.v1 import route_pb2
from fleet_server.streams.report_lane import HeldReports
from fleet_server.streams.route_backlog import MAX_WAITING, MAX_WAITING_BYTES, RouteBacklog
from fleet_server.streams.route_rules import MAX_OBSERVATIONS

HEALTHY, DRIFT, UNREACHABLE = (
    route_pb2.ROUTE_STATE_HEALTHY,
    route_pb2.ROUTE_STATE_DRIFT,
    route_pb2.ROUTE_STATE_UNREACHABLE,
)


def _found(
    route: str, state: route_pb2.RouteState.ValueType = HEALTHY, *, hops: tuple[str, ...] = ("s", "d"), rtt_us: int = 0
) -> route_pb2.RouteObservation:
    return route_pb2.RouteObservation(
        route_id=route,
        observation_type=route_pb2.OBSERVATION_TYPE_SYNTHETIC_ROUTE_HEALTH,
        state=state,
        expected_hops=hops,
        rtt_us=rtt_us,
    )


def _health(*found: route_pb2.RouteObservation, asks: tuple[str, ...] = ()) -> route_pb2.RouteHealth:
    return route_pb2.RouteHealth(observations=found, refresh_routes=asks)


def _take(backlog: RouteBacklog) -> list[tuple[str, int, int]]:
    taken = backlog.take()
    assert taken is not None
    return [(one.route_id, one.state, one.rtt_us) for one in taken.health.observations]


def test_of_those_alike_the_newest_stays_and_the_order_is_that_of_arrival() -> None:
    backlog = RouteBacklog(HeldReports())
    backlog.add(_health(_found("a", rtt_us=1), _found("b"), _found("a", UNREACHABLE)))
    backlog.add(_health(_found("a", rtt_us=2), _found("a", rtt_us=3, hops=("s", "r", "d"))))
    assert _take(backlog) == [("b", HEALTHY, 0), ("a", UNREACHABLE, 0), ("a", HEALTHY, 2), ("a", HEALTHY, 3)]
    assert backlog.empty
    assert backlog.take() is None


def test_healthy_ones_give_way_and_then_the_oldest() -> None:
    backlog = RouteBacklog(HeldReports())
    backlog.add(_health(_found("bad", DRIFT), _found("good")))
    given_up = sum(backlog.add(_health(_found(f"n{number}", UNREACHABLE))) for number in range(MAX_WAITING))
    assert given_up == 2
    first = _take(backlog)
    assert first[0][0] == "n0"
    assert len(first) == MAX_OBSERVATIONS, "what a frame may hold goes at once"
    assert len(_take(backlog)) == MAX_WAITING - MAX_OBSERVATIONS


def test_bytes_are_bounded_for_one_and_for_all_of_them() -> None:
    held = HeldReports(max_bytes=2 * MAX_WAITING_BYTES)
    one, another = RouteBacklog(held), RouteBacklog(held)
    for backlog in (one, another):
        for number in range(MAX_WAITING):
            backlog.add(_health(_found(f"{number:060}", hops=("h" * 64,) * 5)))
    assert held.held_bytes <= 2 * MAX_WAITING_BYTES
    assert 100 < len(one) < MAX_WAITING
    for backlog in (one, another):
        backlog.clear()
    assert (held.held_bytes, held.holders) == (0, 0)


def test_what_could_not_be_recorded_goes_where_it_stood() -> None:
    backlog = RouteBacklog(HeldReports())
    backlog.add(_health(_found("a", UNREACHABLE), _found("b", rtt_us=1), asks=("a",)))
    first = backlog.take()
    backlog.add(_health(_found("b", rtt_us=2), _found("a"), asks=("b", "a")))
    second = backlog.take()
    assert first is not None
    assert second is not None
    backlog.put_back(second)
    backlog.put_back(first)
    again = backlog.take()
    assert again is not None
    assert [(one.route_id, one.state, one.rtt_us) for one in again.health.observations] == [
        ("a", UNREACHABLE, 0),
        ("b", HEALTHY, 2),
        ("a", HEALTHY, 0),
    ]
    assert list(again.health.refresh_routes) == ["a", "b"]


def test_asks_and_reports_are_bounded_too() -> None:
    backlog = RouteBacklog(HeldReports())
    reports = [route_pb2.RefreshReport(route_id="r")] * MAX_OBSERVATIONS
    for number in range(3):
        asks = [f"{number}-{index}" for index in range(MAX_OBSERVATIONS)]
        health = route_pb2.RouteHealth(refresh_routes=asks, refreshes=reports, refreshes_held_back=2**31)
        backlog.add(health)
    taken = backlog.take()
    assert taken is not None
    assert len(taken.health.refresh_routes) == len(taken.health.refreshes) == MAX_OBSERVATIONS
    assert taken.health.refreshes_held_back == 2**31
