"""Routes on one stream: what is sent when, and what a node that finds, asks or lies without end costs."""

import asyncio

import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import gateway_pb2, lease_pb2, route_pb2, session_pb2, trust_pb2
from fleet_server.streams import route_lane
from fleet_server.streams.route_lane import RouteLane
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.streams.many import World
from tests.unit.fleet_server.streams.wire import FakeRoutes, Wire

HEALTHY, UNREACHABLE = route_pb2.ROUTE_STATE_HEALTHY, route_pb2.ROUTE_STATE_UNREACHABLE


def found(
    state: route_pb2.RouteState.ValueType = HEALTHY, route_id: str = "r", *, rtt_us: int = 0
) -> route_pb2.RouteObservation:
    return route_pb2.RouteObservation(
        route_id=route_id,
        observation_type=route_pb2.OBSERVATION_TYPE_SYNTHETIC_ROUTE_HEALTH,
        state=state,
        expected_hops=["s", "d"],
        rtt_us=rtt_us,
    )


def ask(*route_ids: str) -> route_pb2.RouteHealth:
    return route_pb2.RouteHealth(observations=[found(UNREACHABLE)], refresh_routes=route_ids or ["r"])


async def opened(clock: MockClock, routes: FakeRoutes, **hello: object) -> Wire:
    wire = Wire(clock, routes=routes, hello=gateway_pb2.HelloBody(**hello))  # type: ignore[arg-type]
    await wire.settle()
    assert wire.kinds()[0] == "welcome"
    return wire


async def test_a_node_without_routes_costs_no_question_and_no_lane(wire: Wire) -> None:
    assert wire.routes.asked == 0
    assert wire.stream._routes is None


@pytest.mark.parametrize(("held", "heard"), [(0, ["config"]), (6, ["config"]), (7, ["lease"])])
async def test_a_stream_that_opens_is_sent_what_its_node_lacks(clock: MockClock, held: int, heard: list[str]) -> None:
    routes = FakeRoutes(version=7, concerned=True, leases=[trust_pb2.Signed(statement=b"lease")])
    wire = Wire(clock, routes=routes, hello=gateway_pb2.HelloBody(config_version=held))
    await wire.settle()
    assert wire.kinds() == ["welcome", *heard]
    assert routes.noted == [None], "a node that has no listener is none that peers reach"


async def test_a_node_that_has_more_than_this_database_ever_gave_is_sent_what_is_above(clock: MockClock) -> None:
    """The database went back; an older snapshot would be refused for ever."""
    wire = Wire(clock, routes=FakeRoutes(version=7), hello=gateway_pb2.HelloBody(config_version=50))
    await wire.settle()
    _, config = wire.heard()
    assert config.config.statement.strip() == b"51"


async def test_a_listener_reaches_the_room_before_the_node_is_sent_anything(clock: MockClock) -> None:
    listener = gateway_pb2.ProbeListener(endpoints=["127.0.0.1:1"], certificate=b"der")
    wire = await opened(clock, FakeRoutes(), probe_listener=listener)
    assert wire.routes.noted == [listener]


async def test_a_change_is_sent_once_and_a_wake_up_for_nothing_says_nothing(wire: Wire) -> None:
    for version, heard in ((1, ["config"]), (1, []), (2, ["config"])):
        wire.routes.version = version
        wire.stream.about_routes(RouteLane.wake_config)
        await wire.settle()
        assert wire.kinds() == heard


async def test_a_renewed_lease_is_sent_alone_and_once(wire: Wire) -> None:
    for statements, heard in (([b"one"], [b"one"]), ([b"one", b"two"], [b"two"]), ([b"one", b"two"], [])):
        wire.routes.leases = [trust_pb2.Signed(statement=statement) for statement in statements]
        wire.stream.about_routes(RouteLane.wake_leases)
        await wire.settle()
        assert [control.lease.statement for control in wire.heard()] == heard


async def test_only_the_node_whose_part_changed_is_sent_it(clock: MockClock) -> None:
    world = World(clock)
    wires = {name: await world.open(name) for name in ("a", "b")}
    wires["a"].routes.version = wires["b"].routes.version = 1
    world.wakeup.wake_nowait(["route-config:a"])
    await wires["a"].settle()
    assert [wire.kinds() for wire in wires.values()] == [["config"], []]
    assert wires["b"].routes.asked == 0


async def test_an_ask_is_answered_once_what_was_found_is_decided_and_also_with_the_same_version(wire: Wire) -> None:
    wire.routes.version = 3
    wire.routes.open.clear()
    await wire.say(route_health=ask())
    wire.routes.version = 4
    wire.stream.about_routes(RouteLane.wake_config)
    await wire.settle()
    assert wire.kinds() == [], "the answer says it all"
    wire.routes.open.set()
    await wire.settle()
    assert [control.config.statement.strip() for control in wire.heard()] == [b"4"]
    await wire.say(route_health=ask())
    assert [control.config.statement.strip() for control in wire.heard()] == [b"4"]


async def test_a_flood_of_asks_is_answered_as_one_a_second(wire: Wire, clock: MockClock) -> None:
    wire.routes.version = 1
    for _ in range(200):
        await wire.say(route_health=ask())
    assert wire.kinds() == ["config"] * 4, "as many as may come together"
    assert len(wire.routes.recorded) == 8
    for _ in range(3):
        await clock.advance(1.0)
        await wire.settle()
        assert len(wire.kinds()) <= 1
    assert len(wire.routes.recorded) < 16
    assert not wire.running.done()


async def test_news_of_a_failure_waits_for_no_call_that_is_under_way(wire: Wire) -> None:
    wire.routes.open.clear()
    await wire.say(route_health=route_pb2.RouteHealth(observations=[found(rtt_us=1)]))
    await wire.say(route_health=route_pb2.RouteHealth(observations=[found(rtt_us=2)]))
    assert wire.routes.asked == 1
    await wire.say(route_health=route_pb2.RouteHealth(observations=[found(UNREACHABLE)]))
    assert wire.routes.asked == 2
    wire.routes.open.set()
    await wire.settle()
    assert [[one.state for one in health.observations] for health in wire.routes.recorded] == [
        [HEALTHY],
        [HEALTHY, UNREACHABLE],
    ]


async def test_while_the_database_is_away_nothing_is_held_back_and_nothing_that_failed_is_forgotten(
    wire: Wire, clock: MockClock
) -> None:
    wire.routes.away = [Refusal(Reason.UNAVAILABLE, "away")] * 6
    await wire.say(route_health=ask())
    for number in range(50):
        await wire.say(route_health=route_pb2.RouteHealth(observations=[found(rtt_us=number)]))
    wire.stream.send(gateway_pb2.ServerControl(ping=gateway_pb2.Ping(number=1)))
    await wire.say(pong=gateway_pb2.Pong(number=1))
    assert wire.transport.incoming.empty()
    assert wire.kinds() == ["ping"]
    while wire.routes.away or not wire.routes.recorded:
        await clock.advance(0.5)
        await wire.settle()
    states = [(one.state, one.rtt_us) for health in wire.routes.recorded for one in health.observations]
    assert states == [(UNREACHABLE, 0), (HEALTHY, 49)], "the newest of those alike, in the order in which they came"
    assert [list(health.refresh_routes) for health in wire.routes.recorded] == [["r"]]


async def test_a_stream_that_was_overtaken_says_and_takes_nothing_more(clock: MockClock) -> None:
    world = World(clock)
    older = await world.open("n", 1)
    newer = await world.open("n", 2, older.stream.stream_id)
    for wire in (older, newer):
        wire.routes.version = 1
    world.wakeup.wake_nowait(["route-config:n", "route-lease:n"])
    await older.settle()
    await older.say(route_health=ask())
    assert (older.kinds(), newer.kinds()) == ([], ["config"])
    assert older.routes.asked == 0


async def test_a_stream_that_ends_while_its_database_is_away_leaves_nothing_running(
    wire: Wire, clock: MockClock
) -> None:
    wire.routes.away = [Refusal(Reason.UNAVAILABLE, "away")] * 3
    await wire.say(route_health=ask())
    await wire.raw(None)
    await asyncio.wait_for(wire.running, 5)
    await clock.advance(60.0)
    await wire.settle()
    assert len(wire.routes.away) == 2


async def test_answers_of_the_node_reach_the_room_in_order_and_at_a_pace(wire: Wire, clock: MockClock) -> None:
    said = [route_pb2.ConfigApplied(version=number, applied=True) for number in range(1, 200)]
    for applied in said:
        await wire.say(config_applied=applied)
    assert wire.routes.noted == said[:16]
    for _ in range(20):
        await clock.advance(1.0)
        await wire.settle()
    assert wire.routes.noted[-1] == said[-1]
    assert len(wire.routes.noted) <= 16 + route_lane.MAX_ANSWERS_WAITING
    await wire.say(lease_ack=lease_pb2.LeaseAck(lease_id="l", generation=2, applied=True))
    assert wire.routes.noted[-1].lease_id == "l"


async def test_a_part_that_no_frame_holds_is_not_sent_and_breaks_no_stream(wire: Wire) -> None:
    wire.routes.version, wire.routes.config_bytes = 1, route_lane.MAX_CONFIG_BYTES
    wire.stream.about_routes(RouteLane.wake_config)
    await wire.settle()
    assert wire.kinds() == []
    assert not wire.running.done()


async def test_a_frame_that_is_none_ends_the_stream(wire: Wire) -> None:
    await wire.say(route_health=route_pb2.RouteHealth())
    assert (await wire.wait_refusal()).reason is Reason.MALFORMED


async def test_what_an_authority_before_this_one_signed_is_sent_again(wire: Wire) -> None:
    wire.routes.version = 5
    wire.stream.about_routes(RouteLane.wake_config)
    await wire.settle()
    assert wire.kinds() == ["config"]
    for version, heard in (((1, 2), ["trust_bundle"]), ((2, 1), ["trust_bundle", "config"])):
        wire.trust.bundle.version = version
        wire.stream.offer_bundle()
        await wire.settle()
        assert wire.kinds() == heard


async def test_a_node_that_is_not_under_this_authority_yet_is_sent_its_part_whatever_the_version(
    clock: MockClock,
) -> None:
    held = session_pb2.BundleVersion(generation=2)
    hello = gateway_pb2.HelloBody(config_version=7, bundle_version=held)
    wire = Wire(clock, routes=FakeRoutes(version=7), hello=hello)
    await wire.settle()
    assert wire.kinds() == ["welcome", "config"]


async def test_what_a_node_refused_is_sent_again_once_it_holds_another_bundle(wire: Wire) -> None:
    """Its authority is in a part of the chain that had not come yet."""
    wire.routes.version = 5
    wire.stream.about_routes(RouteLane.wake_config)
    await wire.settle()
    wire.heard()
    await wire.say(config_applied=route_pb2.ConfigApplied(version=0, reason="WRONG_SIGNER"))
    taken = gateway_pb2.BundleApplied(version=session_pb2.BundleVersion(generation=1, number=1), applied=True)
    for heard in (["config"], []):
        await wire.say(bundle_applied=taken)
        assert wire.kinds() == heard


async def test_refusals_without_end_are_told_as_few_are(wire: Wire, clock: MockClock) -> None:
    """Each is a row of the audit."""
    for number in range(100):
        await wire.say(
            config_applied=route_pb2.ConfigApplied(version=number, reason="OLDER", withdrawn_routes=["r" * 64] * 4_000)
        )
    await clock.advance(60.0)
    await wire.say(config_applied=route_pb2.ConfigApplied(version=1_000, reason="OLDER"))
    assert [applied.version for applied in wire.routes.noted] == [*range(8), 1_000]
    assert not any(applied.withdrawn_routes for applied in wire.routes.noted)
