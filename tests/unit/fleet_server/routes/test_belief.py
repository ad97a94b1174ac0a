"""Which observations are believed: of a node's own routes, about ways that it was given, sane and new."""

from collections.abc import Mapping

import pytest

from fleet.v1 import route_pb2
from fleet_server.routes.belief_rules import Doubt, doubt, finding_of, way_of
from fleet_server.routes.rules import DIRECT, Finding, PathState, Policy, Route

NOW_MS = 1_800_000_000_000
POLICY = Policy()
ROUTE = Route("r-1", "n-s", "", "n-d", "", 10_000, generation=7, relay_id="n-a", candidates=(DIRECT, "n-b"))
OFFERED = frozenset({"n-a", "n-b", "n-c"})
SOUND: Mapping[str, object] = {
    "route_id": "r-1",
    "generation": 7,
    "observation_type": route_pb2.OBSERVATION_TYPE_SYNTHETIC_ROUTE_HEALTH,
    "state": route_pb2.ROUTE_STATE_HEALTHY,
    "expected_hops": ["n-s", "n-a", "n-d"],
    "observed_hops": ["n-s", "n-a", "n-d"],
    "rtt_us": 20_000,
    "observed_at_ms": NOW_MS - 100,
}
CANDIDATE = {"observation_type": route_pb2.OBSERVATION_TYPE_CANDIDATE_PATH}
LEASE = {
    "observation_type": route_pb2.OBSERVATION_TYPE_LEASE,
    "state": route_pb2.ROUTE_STATE_UNREACHABLE,
    "failure": "LEASE_EXPIRED",
    "rtt_us": 0,
    "observed_hops": [],
}
PEER = {"observation_type": route_pb2.OBSERVATION_TYPE_PEER_CONNECTION}
BROKEN = {"state": route_pb2.ROUTE_STATE_UNREACHABLE, "rtt_us": 0, "observed_hops": ["n-s"], "failed_hop": 1}


def observation(**changes: object) -> route_pb2.RouteObservation:
    return route_pb2.RouteObservation(**(dict(SOUND) | changes))  # type: ignore[arg-type]


def path(*hops: str) -> dict[str, object]:
    return {"expected_hops": hops, "observed_hops": hops}


@pytest.mark.parametrize(
    ("changes", "reporter", "found"),
    [
        pytest.param({}, "n-s", None, id="sound"),
        pytest.param(BROKEN, "n-s", None, id="broken"),
        pytest.param({}, "n-d", Doubt.NOT_ITS_ROUTE, id="the-destination-tells"),
        pytest.param({}, "n-a", Doubt.NOT_ITS_ROUTE, id="the-relay-tells-of-the-path"),
        pytest.param(LEASE, "n-a", None, id="the-relay-tells-of-its-lease"),
        pytest.param(LEASE, "n-s", None, id="the-source-tells-of-the-lease"),
        pytest.param(LEASE, "n-b", Doubt.NOT_ITS_ROUTE, id="another-relay-tells-of-the-lease"),
        pytest.param({"state": 77}, "n-s", Doubt.UNKNOWN_KIND, id="a-state-of-the-future"),
        pytest.param({"observation_type": 77}, "n-s", Doubt.UNKNOWN_KIND, id="a-type-of-the-future"),
        pytest.param({"state": 0}, "n-s", Doubt.UNKNOWN_KIND, id="no-state"),
        pytest.param({"generation": 8}, "n-s", Doubt.OTHER_GENERATION, id="never-decided"),
        pytest.param({"generation": 5, **path("n-s", "n-c", "n-d")}, "n-s", None, id="under-way-while-it-changed"),
        pytest.param({"generation": 4}, "n-s", Doubt.OTHER_GENERATION, id="long-gone"),
        pytest.param(path("n-s", "n-b", "n-d"), "n-s", Doubt.OTHER_PATH, id="not-the-effective-path"),
        pytest.param(path("n-s", "n-b", "n-d") | CANDIDATE, "n-s", None, id="a-candidate"),
        pytest.param(path("n-s", "n-d") | CANDIDATE, "n-s", None, id="the-direct-one"),
        pytest.param(path("n-s", "n-x", "n-d") | CANDIDATE, "n-s", Doubt.UNKNOWN_RELAY, id="a-relay-made-up"),
        pytest.param(PEER | path("n-s", "n-a"), "n-s", None, id="the-first-hop"),
        pytest.param(PEER | path("n-s", "n-d"), "n-s", None, id="the-first-hop-of-the-direct-one"),
        pytest.param(PEER | path("n-s", "n-x"), "n-s", Doubt.UNKNOWN_RELAY, id="a-peer-made-up"),
        pytest.param(PEER | path("n-x", "n-d"), "n-s", Doubt.OTHER_PATH, id="a-connection-of-another-one"),
        pytest.param(LEASE | path("n-s", "n-x", "n-d"), "n-s", Doubt.UNKNOWN_RELAY, id="a-lease-of-nobody"),
        pytest.param(path("n-s", "n-d", "n-d") | CANDIDATE, "n-s", Doubt.OTHER_PATH, id="an-end-as-relay"),
        pytest.param(path("n-s", "n-a", "n-b", "n-d") | CANDIDATE, "n-s", Doubt.OTHER_PATH, id="two-relays"),
        pytest.param(path("n-x", "n-a", "n-d"), "n-s", Doubt.OTHER_PATH, id="another-source"),
        pytest.param(path(), "n-s", Doubt.OTHER_PATH, id="no-path"),
        pytest.param({"rtt_us": 0}, "n-s", Doubt.NOT_SANE, id="an-answer-in-no-time"),
        pytest.param({"rtt_us": 2**32 - 1}, "n-s", Doubt.NOT_SANE, id="an-answer-after-an-hour"),
        pytest.param({"loss_permille": 1001}, "n-s", Doubt.NOT_SANE, id="more-lost-than-sent"),
        pytest.param({"observed_hops": ["n-s", "n-d"]}, "n-s", Doubt.NOT_SANE, id="healthy-over-other-hops"),
        pytest.param(BROKEN | {"failed_hop": 3}, "n-s", Doubt.NOT_SANE, id="a-hop-that-is-none"),
        pytest.param({"observed_at_ms": NOW_MS + 5_000}, "n-s", None, id="a-clock-a-little-ahead"),
        pytest.param({"observed_at_ms": NOW_MS + 5_001}, "n-s", Doubt.FROM_THE_FUTURE, id="from-the-future"),
        pytest.param({"observed_at_ms": NOW_MS - 200}, "n-s", Doubt.TOO_OLD, id="older-than-what-is-known"),
        pytest.param({"observed_at_ms": 0}, "n-s", Doubt.TOO_OLD, id="from-the-beginning-of-time"),
    ],
)
def test_what_is_believed(changes: Mapping[str, object], reporter: str, found: Doubt | None) -> None:
    newest_at_ms = NOW_MS - 200
    assert doubt(observation(**changes), reporter, ROUTE, OFFERED, newest_at_ms, NOW_MS, POLICY) is found


def test_what_nobody_has_looked_at_is_told_once_only() -> None:
    assert doubt(observation(), "n-s", ROUTE, OFFERED, 0, NOW_MS, POLICY) is None
    assert doubt(observation(), "n-s", ROUTE, OFFERED, NOW_MS - 100, NOW_MS, POLICY) is Doubt.TOO_OLD


def test_after_the_clock_went_back_nodes_are_believed_again() -> None:
    assert doubt(observation(), "n-s", ROUTE, OFFERED, NOW_MS + 60_000, NOW_MS, POLICY) is None


def test_a_clock_ahead_does_not_make_a_finding_newer_than_now() -> None:
    assert finding_of(observation(observed_at_ms=NOW_MS + 3_000), ROUTE, NOW_MS).at_ms == NOW_MS
    ahead = observation(observed_at_ms=NOW_MS + 3_000)
    assert doubt(ahead, "n-s", ROUTE, OFFERED, NOW_MS, NOW_MS, POLICY) is Doubt.TOO_OLD


def test_a_finding_holds_what_is_evidence_alone() -> None:
    told = observation(**BROKEN, failure="WRONG_NODE", blamed_node_id="n-a", loss_permille=300)
    assert finding_of(told, ROUTE, NOW_MS) == Finding(
        "n-a", PathState.UNREACHABLE, 0, 300, NOW_MS - 100, "WRONG_NODE", failed_hop=1, blamed="n-a"
    )
    stranger = finding_of(observation(**BROKEN, failure="<script>", blamed_node_id="n-x"), ROUTE, NOW_MS)
    assert (stranger.failure, stranger.blamed) == ("OTHER", "")
    healthy = finding_of(observation(failure="TIMED_OUT", blamed_node_id="n-a"), ROUTE, NOW_MS)
    assert (healthy.failure, healthy.blamed) == ("", "")


def test_what_is_no_walk_is_no_finding() -> None:
    with pytest.raises(ValueError, match="believed walk"):
        finding_of(observation(**LEASE), ROUTE, NOW_MS)
    assert way_of(ROUTE, ["n-s", "n-d"]) == DIRECT
