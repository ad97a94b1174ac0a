"""What the room walks, finds, reports and asks, on a clock that the test moves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fleet.v1 import route_pb2
from fleet_node.routes.walk_rules import WalkState
from tests.unit.fleet_node.routes.room import DIRECT, INTERVAL_S, RELAYED, Room, direct, relayed
from tests.unit.fleet_node.routes.snapshots import NODE, lease, route

LONG = {"issued_at_ms": 1_900_000_000_000, "expires_at_ms": 1_900_000_120_000}
"""A lease of two minutes from where the test's clock begins."""


@asynccontextmanager
async def walking(folder: Path, *, online: bool = True) -> AsyncIterator[Room]:
    room = Room(folder)
    if online:
        room.service.opened(room.uplink)
    running = asyncio.create_task(room.service.run())
    try:
        yield room
    finally:
        running.cancel()
        await asyncio.wait({running})
    assert running.cancelled(), "the prober ended by itself"


async def test_a_path_that_answers_is_healthy_and_its_first_hop_connected(tmp_path: Path) -> None:
    async with walking(tmp_path) as room:
        await room.give(direct())
        await room.clock.advance(INTERVAL_S)
        assert {DIRECT, RELAYED} <= set(room.caller.walked)
        (frame, *_) = room.told()
        found = {each.observation_type: each for each in frame.observations}
        walked = found[route_pb2.OBSERVATION_TYPE_SYNTHETIC_ROUTE_HEALTH]
        assert (walked.state, walked.rtt_us, list(walked.observed_hops)) == (
            route_pb2.ROUTE_STATE_HEALTHY,
            1000,
            list(DIRECT),
        )
        assert 1_900_000_000_000 < walked.observed_at_ms <= room.clock.now_ms()
        assert found[route_pb2.OBSERVATION_TYPE_PEER_CONNECTION].rtt_us == 500
        assert found[route_pb2.OBSERVATION_TYPE_CANDIDATE_PATH].expected_hops == list(RELAYED)
        assert list(frame.refresh_routes) == []
        assert room.uplink.woken
        status = room.service.status()["routes"][0]
        assert (status["role"], status["state"], status["rtt_us"], status["path"]) == (
            "source",
            "HEALTHY",
            1000,
            list(DIRECT),
        )
        room.service.show()
        assert room.metrics.routes.labels("HEALTHY").value == 1


@pytest.mark.parametrize("state", [WalkState.UNREACHABLE, WalkState.DRIFT])
async def test_a_path_that_fails_is_reported_with_every_other_way_and_asked_for_in_one_frame(
    tmp_path: Path, state: WalkState
) -> None:
    async with walking(tmp_path) as room:
        await room.give(direct())
        await room.clock.advance(INTERVAL_S)
        room.told()
        room.caller.broken[DIRECT] = state
        await room.clock.advance(INTERVAL_S * 1.1)
        frames = room.told()
        assert [list(frame.refresh_routes) for frame in frames] == [["rt_1"]]
        observed = {each.observation_type: each for each in frames[0].observations}
        walked = observed[route_pb2.OBSERVATION_TYPE_SYNTHETIC_ROUTE_HEALTH]
        assert route_pb2.RouteState.Name(walked.state) == f"ROUTE_STATE_{state}"
        assert walked.failed_hop == 1
        assert walked.blamed_node_id == ("nd_q" if state is WalkState.DRIFT else "")
        other = observed[route_pb2.OBSERVATION_TYPE_CANDIDATE_PATH]
        assert (list(other.expected_hops), other.state) == (list(RELAYED), route_pb2.ROUTE_STATE_HEALTHY)
        first_hop = observed[route_pb2.OBSERVATION_TYPE_PEER_CONNECTION]
        assert first_hop.state == route_pb2.ROUTE_STATE_UNREACHABLE


async def test_a_replacement_is_walked_at_once_and_what_came_of_the_ask_is_told(tmp_path: Path) -> None:
    async with walking(tmp_path) as room:
        room.caller.broken[DIRECT] = WalkState.UNREACHABLE
        await room.give(direct())
        await room.clock.advance(INTERVAL_S)
        assert room.told()[-1].refresh_routes == ["rt_1"]
        room.caller.walked.clear()
        await room.give(relayed(generation=2), version=2, leases=[lease(**LONG)])
        await room.clock.advance(1.0)
        assert RELAYED in room.caller.walked
        frames = room.told()
        (refresh,) = [each for frame in frames for each in frame.refreshes]
        assert (refresh.route_id, refresh.relay_node_id, refresh.outcome, refresh.config_version) == (
            "rt_1",
            "",
            route_pb2.REFRESH_OUTCOME_REPLACED,
            2,
        )
        walked = [each for frame in frames for each in frame.observations if each.expected_hops == list(RELAYED)]
        assert (walked[0].generation, walked[0].state) == (2, route_pb2.ROUTE_STATE_HEALTHY)
        assert room.metrics.refreshes.labels("REPLACED").value == 1


async def test_an_answer_that_changes_nothing_holds_the_next_asks_back(tmp_path: Path) -> None:
    async with walking(tmp_path) as room:
        room.caller.broken[DIRECT] = WalkState.UNREACHABLE
        await room.give(direct())
        await room.clock.advance(INTERVAL_S)
        assert room.told()[-1].refresh_routes == ["rt_1"]
        await room.give(direct())  # the same version
        await room.clock.advance(INTERVAL_S * 2)
        frames = room.told()
        outcomes = [each.outcome for frame in frames for each in frame.refreshes]
        assert outcomes == [route_pb2.REFRESH_OUTCOME_SAME_VERSION]
        assert [list(frame.refresh_routes) for frame in frames if frame.refresh_routes] == []
        assert sum(frame.refreshes_held_back for frame in frames) >= 1
        assert room.service.status()["refreshes_held_back"] >= 1
        await room.clock.advance(INTERVAL_S * 3)  # the cooldown of half a minute is over
        assert [route_id for frame in room.told() for route_id in frame.refresh_routes] == ["rt_1"]


async def test_an_ask_without_an_answer_is_told_and_another_follows(tmp_path: Path) -> None:
    async with walking(tmp_path) as room:
        room.caller.broken[DIRECT] = WalkState.UNREACHABLE
        await room.give(direct())
        await room.clock.advance(INTERVAL_S)
        room.told()
        await room.clock.advance(INTERVAL_S * 2)
        frames = room.told()
        assert route_pb2.REFRESH_OUTCOME_TIMED_OUT in [each.outcome for frame in frames for each in frame.refreshes]
        assert ["rt_1"] in [list(frame.refresh_routes) for frame in frames]


async def test_an_ask_of_a_slow_route_is_given_up_in_time(tmp_path: Path) -> None:
    async with walking(tmp_path) as room:
        room.caller.broken[DIRECT] = WalkState.UNREACHABLE
        await room.give(route(DIRECT, probe_interval_ms=3_600_000))
        await room.clock.advance(905.0)
        assert room.told()[-1].refresh_routes == ["rt_1"]
        await room.clock.advance(11.0)
        (refresh,) = [each for frame in room.told() for each in frame.refreshes]
        assert (refresh.outcome, refresh.elapsed_ms) == (route_pb2.REFRESH_OUTCOME_TIMED_OUT, 10_000)


async def test_a_refused_answer_is_told(tmp_path: Path) -> None:
    async with walking(tmp_path) as room:
        room.caller.broken[DIRECT] = WalkState.UNREACHABLE
        await room.give(direct(), version=3)
        await room.clock.advance(INTERVAL_S)
        room.told()
        assert not (await room.give(relayed(generation=2), version=2)).applied
        (refresh,) = [each for frame in room.told() for each in frame.refreshes]
        assert (refresh.outcome, refresh.config_version) == (route_pb2.REFRESH_OUTCOME_REFUSED, 3)


async def test_a_lease_that_ends_by_server_time_withdraws_the_path_and_asks(tmp_path: Path) -> None:
    async with walking(tmp_path) as room:
        room.server_time.observe(room.clock.now_ms())
        await room.give(relayed(), leases=[lease(**LONG)])
        await room.clock.advance(115.0)
        assert ("LEASE", "UNREACHABLE", RELAYED) not in room.findings()
        await room.clock.advance(5.0)
        frames = room.told()
        ended = [
            each
            for frame in frames
            for each in frame.observations
            if each.observation_type == route_pb2.OBSERVATION_TYPE_LEASE
        ]
        assert {(each.state, each.failure) for each in ended} == {(route_pb2.ROUTE_STATE_UNREACHABLE, "LEASE_EXPIRED")}
        assert [route_id for frame in frames for route_id in frame.refresh_routes] == ["rt_1"]
        room.caller.walked.clear()
        await room.clock.advance(INTERVAL_S * 2)
        assert set(room.caller.walked) == {DIRECT}
        said = room.service.status()["routes"][0]
        assert (said["state"], said["lease"]["left_ms"]) == ("UNREACHABLE", 0)
        room.told()
        await room.service.take_lease(lease(**LONG | {"expires_at_ms": LONG["expires_at_ms"] + 120_000}))
        await room.clock.advance(1.0)
        assert RELAYED in room.caller.walked
        assert ("LEASE", "HEALTHY", RELAYED) in room.findings()
        assert room.service.status()["routes"][0]["state"] == "HEALTHY"


async def test_a_lease_that_ends_after_its_path_was_left_keeps_nobody_awake(tmp_path: Path) -> None:
    async with walking(tmp_path) as room:
        room.server_time.observe(room.clock.now_ms())
        await room.give(relayed(), leases=[lease(**LONG)])
        await room.give(direct(generation=2), version=2)
        await room.clock.advance(115.0)
        assert room.clock.sleepers == 1
        await room.clock.advance(INTERVAL_S)
        assert room.clock.sleepers == 1


async def test_a_path_that_has_a_lease_again_is_asked_for_at_once_when_it_fails(tmp_path: Path) -> None:
    async with walking(tmp_path) as room:
        await room.give(relayed(), leases=[lease(**LONG)])
        await room.clock.advance(121.0)
        assert [route_id for frame in room.told() for route_id in frame.refresh_routes] == ["rt_1"]
        longer = lease(**LONG | {"expires_at_ms": LONG["expires_at_ms"] + 120_000})
        await room.give(relayed(), leases=[longer])  # no change: the next ask would be held back
        await room.clock.advance(INTERVAL_S)
        room.told()
        room.caller.broken[RELAYED] = WalkState.UNREACHABLE
        await room.clock.advance(INTERVAL_S * 1.1)
        assert [route_id for frame in room.told() for route_id in frame.refresh_routes] == ["rt_1"]


async def test_a_relay_says_that_its_lease_ended_and_asks_nothing(tmp_path: Path) -> None:
    async with walking(tmp_path) as room:
        own = ("nd_b", NODE, "nd_c")
        await room.give(route(own), leases=[lease(relay_node_id=NODE, **LONG)])
        await room.clock.advance(119.0)
        assert room.told() == []
        await room.clock.advance(2.0)
        (frame,) = room.told()
        assert [(each.failure, list(each.expected_hops)) for each in frame.observations] == [
            ("LEASE_EXPIRED", list(own))
        ]
        assert list(frame.refresh_routes) == []
        await room.clock.advance(60.0)
        assert room.told() == []
        assert room.caller.walked == []
        assert room.service.status()["routes"][0]["role"] == "relay"


async def test_while_there_is_no_stream_findings_are_kept_within_bounds_and_nothing_is_asked(tmp_path: Path) -> None:
    async with walking(tmp_path, online=False) as room:
        await room.give(direct())
        await room.clock.advance(INTERVAL_S * 20)
        room.caller.broken[DIRECT] = WalkState.UNREACHABLE
        await room.clock.advance(INTERVAL_S * 20)
        assert room.metrics.refreshes_asked.value == 0
        room.service.opened(room.uplink)
        frames = room.told()
        walked = [
            each
            for frame in frames
            for each in frame.observations
            if each.observation_type == route_pb2.OBSERVATION_TYPE_SYNTHETIC_ROUTE_HEALTH
        ]
        states = [each.state for each in walked]
        healthy, unreachable = route_pb2.ROUTE_STATE_HEALTHY, route_pb2.ROUTE_STATE_UNREACHABLE
        assert states == [healthy, healthy, unreachable, unreachable]  # each change, and what came last before the next
        assert walked[3].observed_at_ms - walked[2].observed_at_ms > INTERVAL_S * 1000 * 10
        assert list(frames[-1].refresh_routes) == ["rt_1"]  # what is bad is asked for at once


async def test_a_stream_that_was_lost_takes_its_ask_along_and_the_next_one_is_asked(tmp_path: Path) -> None:
    async with walking(tmp_path) as room:
        room.caller.broken[DIRECT] = WalkState.UNREACHABLE
        await room.give(direct())
        await room.clock.advance(INTERVAL_S)
        room.service.closed()  # the ask was made, and may not have gone out
        assert [list(frame.refresh_routes) for frame in room.told() if frame.refresh_routes] == []
        await room.clock.advance(INTERVAL_S)
        room.service.opened(room.uplink)
        frames = room.told()
        assert frames[-1].refresh_routes == ["rt_1"]
        assert not any(frame.refreshes for frame in frames)


async def test_of_a_candidate_whose_finding_was_lost_with_its_stream_the_next_walk_is_told(tmp_path: Path) -> None:
    async with walking(tmp_path) as room:
        await room.give(direct())

        async def told_next() -> int:
            for _ in range(20):
                await room.clock.advance(INTERVAL_S)
                for frame in room.told():
                    for found in frame.observations:
                        if found.expected_hops == list(RELAYED):
                            return found.observed_at_ms
            raise AssertionError("nothing is said of the candidate")

        first, second, known, lost = [await told_next() for _ in range(4)]
        assert lost - known > 1.5 * (second - first), "of every other walk by now"
        room.service.closed()  # the stream took the last of it, and was lost with it
        room.service.opened(room.uplink)
        assert await told_next() - known < 18 * INTERVAL_S * 1000 + 1000, "the server takes the candidate for unknown"


async def test_walks_that_say_nothing_are_not_reported_until_three_intervals_have_passed(tmp_path: Path) -> None:
    async with walking(tmp_path) as room:
        room.caller.broken[DIRECT] = WalkState.INCONCLUSIVE
        await room.give(direct())
        await room.clock.advance(INTERVAL_S * 2)
        assert not [each for each in room.findings() if each[2] == DIRECT and each[0] == "SYNTHETIC_ROUTE_HEALTH"]
        assert room.metrics.walks.labels("INCONCLUSIVE").value > 2
        await room.clock.advance(INTERVAL_S * 3)
        assert ("SYNTHETIC_ROUTE_HEALTH", "UNREACHABLE", DIRECT) in room.findings()


async def test_a_route_that_is_withdrawn_is_walked_and_reported_no_more(tmp_path: Path) -> None:
    async with walking(tmp_path) as room:
        await room.give(direct())
        await room.clock.advance(INTERVAL_S)
        await room.give(version=2)
        assert room.told() == []
        room.caller.walked.clear()
        await room.clock.advance(INTERVAL_S * 10)
        assert (room.caller.walked, room.told()) == ([], [])
        assert room.service.status()["routes"] == []


async def test_a_policy_of_other_limits_judges_anew(tmp_path: Path) -> None:
    async with walking(tmp_path) as room:
        await room.give(direct())
        await room.clock.advance(INTERVAL_S)
        room.told()
        await room.give(direct(), version=2, policy=route_pb2.RoutePolicy(degraded_rtt_us=10))
        await room.clock.advance(INTERVAL_S)
        assert ("SYNTHETIC_ROUTE_HEALTH", "DEGRADED", DIRECT) in room.findings()


async def test_routes_from_before_a_restart_are_walked_without_a_server(tmp_path: Path) -> None:
    await Room(tmp_path).give(direct())
    async with walking(tmp_path, online=False) as room:
        await room.clock.advance(INTERVAL_S)
        assert DIRECT in room.caller.walked


async def test_more_than_a_frame_holds_goes_out_in_several_and_the_ask_comes_last(tmp_path: Path) -> None:
    async with walking(tmp_path, online=False) as room:
        routes = [direct(route_id=f"rt_{number:03}") for number in range(300)]
        room.caller.broken[DIRECT] = WalkState.UNREACHABLE
        await room.give(*routes)
        await room.clock.advance(INTERVAL_S * 2)
        room.service.opened(room.uplink)
        frames = room.told()
        assert max(len(frame.observations) for frame in frames) == 512
        assert len(frames) > 1
        assert not any(frame.refresh_routes for frame in frames[:-1])
        assert len(frames[-1].refresh_routes) == 300
