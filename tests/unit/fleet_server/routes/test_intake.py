"""What waits to be recorded is checked for form, coalesced and bounded; what could not be stored waits on."""

import asyncio
from collections import Counter

import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import route_pb2
from fleet_server.routes import intake
from fleet_server.routes.intake import Intake
from tests.unit.fleet_server.routes.mesh import Mesh
from tests.unit.fleet_server.routes.walks import HEALTHY, UNREACHABLE, observation, route_of

NOW_MS = 1_900_000_000_000


def walked(route_id: str = "rt_1", state: int = HEALTHY, **more: object) -> route_pb2.RouteObservation:
    fields = {
        "route_id": route_id,
        "generation": 1,
        "observation_type": route_pb2.OBSERVATION_TYPE_SYNTHETIC_ROUTE_HEALTH,
        "state": state,
        "expected_hops": ["nd_a", "nd_b"],
        "observed_at_ms": NOW_MS,
    }
    return route_pb2.RouteObservation(**(fields | more))  # type: ignore[arg-type]


class Waiting:
    """An intake, and what it dropped."""

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()
        self.now_s = 0.0
        self.intake = Intake(self._drop, lambda told: told.rtt_us / 1000, lambda: self.now_s)

    def _drop(self, why: str, count: int) -> None:
        self.dropped[why] += count

    def add(self, *told: route_pb2.RouteObservation, node_id: str = "nd_a", at_ms: int = NOW_MS) -> float | None:
        return self.intake.add(node_id, 1, route_pb2.RouteHealth(observations=told), at_ms)


@pytest.mark.parametrize(
    "bad",
    [
        {"route_id": ""},
        {"route_id": "rt\0"},
        {"expected_hops": ["nd_a"]},
        {"expected_hops": ["nd_a", "nd_b\n"]},
        {"expected_hops": ["a", "b", "c", "d"]},
        {"observed_hops": ["x" * 65]},
        {"blamed_node_id": "nd\0"},
        {"failure": "drop table"},
        {"generation": 2**64 - 1},
        {"observation_type": 99},
        {"state": 0},
    ],
)
def test_what_no_row_could_hold_is_left_out(bad: dict[str, object]) -> None:
    waiting = Waiting()
    fields = {"route_id": "rt_1", "state": HEALTHY} | bad
    assert waiting.add(walked(**fields)) is None  # type: ignore[arg-type]
    assert waiting.dropped == {"malformed": 1}


def test_the_newest_of_what_is_as_it_was_counts_and_changes_are_kept() -> None:
    waiting = Waiting()
    for state, rtt_us in ((HEALTHY, 1), (HEALTHY, 2), (UNREACHABLE, 0), (HEALTHY, 3), (HEALTHY, 4)):
        waiting.add(walked(state=state, rtt_us=rtt_us))
    assert [told.what.rtt_us for told in waiting.intake.take(10)] == [2, 0, 4]
    assert waiting.intake.count == 0


def test_one_node_fills_no_more_than_its_share_and_what_broke_finds_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MAX_OF_NODE", 3)
    monkeypatch.setattr(intake, "MAX_IN_ALL", 5)
    waiting = Waiting()
    for node_id in ("nd_a", "nd_b"):
        waiting.add(*(walked(f"rt_{node_id}{number}") for number in range(4)), node_id=node_id)
    assert (waiting.intake.count, waiting.dropped["full"]) == (5, 3)
    assert waiting.add(walked("rt_x", UNREACHABLE), node_id="nd_c") == 0
    assert (waiting.intake.count, waiting.dropped["full"]) == (5, 4)
    assert "rt_x" in {told.what.route_id for told in waiting.intake.take(10)}


def test_who_is_in_a_hurry_all_the_time_waits_like_others() -> None:
    waiting = Waiting()
    waits_s = [waiting.add(walked(state=UNREACHABLE, rtt_us=500)) for _ in range(intake.MAX_URGENT + 2)]
    assert waits_s == [0] * intake.MAX_URGENT + [0.5] * 2
    waiting.now_s = intake.URGENT_EACH_S
    assert waiting.add(walked(state=UNREACHABLE)) == 0


def test_a_report_waits_no_longer_than_what_in_it_may_wait_least() -> None:
    assert Waiting().add(walked("rt_1", rtt_us=2_000), walked("rt_2", rtt_us=500)) == 0.5


def test_what_could_not_be_stored_gives_way_to_what_came_since_and_is_dropped_once_it_is_old() -> None:
    waiting = Waiting()
    waiting.add(walked("rt_1", rtt_us=1), walked("rt_2", rtt_us=1))
    waiting.add(walked("rt_old"), at_ms=NOW_MS - 10_000)
    batch = waiting.intake.take(10)
    waiting.add(walked("rt_1", rtt_us=2))
    waiting.intake.give_back(batch, NOW_MS - 5_000, "database_away")
    assert {told.what.route_id: told.what.rtt_us for told in waiting.intake.take(10)} == {"rt_1": 2, "rt_2": 1}
    assert waiting.dropped == {"database_away": 1}


async def test_a_report_outlives_a_database_that_was_away(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    route_id = (await mesh.connect("a", "b")).route_id
    health = route_pb2.RouteHealth(observations=[await observation(mesh, route_id)])

    async def away(*_: object, **__: object) -> None:
        raise Refusal(Reason.UNAVAILABLE, "the database is away")

    with monkeypatch.context() as patched:
        patched.setattr(mesh.database, "write", away)
        told = asyncio.ensure_future(mesh.routes.record(mesh.ids["a"], mesh.epochs["a"], health))
        await asyncio.sleep(0)
        with pytest.raises(Refusal):
            await mesh.routes.flush()
        with pytest.raises(Refusal):
            await told
    assert (await route_of(mesh, route_id)).state == "UNKNOWN"
    await mesh.routes.flush()
    assert (await route_of(mesh, route_id)).state == "HEALTHY"
