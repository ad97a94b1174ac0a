"""What of a node's findings goes out at once, and what waits for others."""

from typing import Any

import pytest

from fleet.v1 import route_pb2
from fleet_node.routes.health_rules import Finding, ObservationType, RouteState
from fleet_node.routes.in_force import effective_path
from fleet_node.routes.outbox import MAX_GATHER_MS, Outbox, gather_ms
from fleet_node.routes.schedule_rules import NEVER_MS
from tests.unit.fleet_node.routes.snapshots import NODE, route

WAYS = ((NODE, "nd_b"), (NODE, "nd_r", "nd_b"))


class Box(Outbox):
    """One that counts how often there was something to take."""

    def __init__(self) -> None:
        super().__init__(lambda at_ms: at_ms, self._count)
        self.times = 0

    def _count(self) -> None:
        self.times += 1

    def taken(self) -> list[tuple[tuple[str, ...], int]]:
        """Paths and states of the next frame."""
        health = self.next()
        return [] if health is None else [(tuple(each.expected_hops), each.state) for each in health.observations]


def found(state: RouteState = RouteState.HEALTHY, path: tuple[str, ...] = WAYS[0], **changed: Any) -> Finding:
    return Finding("rt_1", 1, ObservationType.SYNTHETIC_ROUTE_HEALTH, state, path, **changed)


def test_what_was_said_before_waits_for_others_and_then_goes_out_with_them() -> None:
    box = Box()
    box.put([found(path=way) for way in WAYS], wait_until_ms=100)
    assert len(box.taken()) == 2  # nobody was told yet
    box.put([found()], wait_until_ms=5_000)
    box.put([found(path=WAYS[1])], wait_until_ms=4_000)
    assert (box.taken(), box.due_ms, box.times) == ([], 4_000, 1)
    box.release()
    healthy = route_pb2.ROUTE_STATE_HEALTHY
    assert box.taken() == [(WAYS[0], healthy), (WAYS[1], healthy)]
    assert (box.taken(), box.due_ms) == ([], NEVER_MS)


@pytest.mark.parametrize("state", [RouteState.DEGRADED, RouteState.DRIFT, RouteState.UNREACHABLE])
def test_news_goes_out_at_once_and_takes_along_what_waits(state: RouteState) -> None:
    box = Box()
    for _ in range(2):
        box.put([found(path=WAYS[1]), found(RouteState.UNREACHABLE)], wait_until_ms=100)
        box.taken()
    box.put([found(path=WAYS[1])], wait_until_ms=100)
    box.put([found(state)], wait_until_ms=100)
    assert len(box.taken()) == 2
    assert box.due_ms == NEVER_MS


def test_an_ask_goes_out_at_once_with_what_waits() -> None:
    box = Box()
    box.put([found()])
    box.taken()
    box.put([found()], wait_until_ms=100)
    box.ask(["rt_1"])
    health = box.next()
    assert health is not None
    assert (len(health.observations), list(health.refresh_routes)) == (1, ["rt_1"])


def test_a_route_that_comes_back_is_news() -> None:
    box = Box()
    box.put([found()])
    box.taken()
    box.forget(["rt_1"])
    box.put([found()], wait_until_ms=100)
    assert box.taken()


@pytest.mark.parametrize(("interval_ms", "waits_ms"), [(200, 150), (4_000, 3_000), (10_000, 7_500), (600_000, 8_000)])
def test_nothing_waits_longer_than_the_server_can_do_without(interval_ms: int, waits_ms: int) -> None:
    assert gather_ms(effective_path(route(probe_interval_ms=interval_ms))) == waits_ms <= MAX_GATHER_MS
