"""Routes and relays as operators reach them: the real admin service over the real rooms."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from typing import Any

import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2, admin_route_pb2
from tests.integration.installation import Installation, free_ports
from tests.integration.operator import Operator
from tests.integration.waiting import eventually


async def refused(operator: Operator, method: str, request: Any) -> Refusal:
    """What the server says to a request that it refuses."""
    with pytest.raises(Refusal) as caught:
        await operator.ask(method, request)
    return caught.value


async def route(operator: Operator, source: str, destination: str, **fields: Any) -> admin_route_pb2.RouteView:
    request = admin_route_pb2.CreateRouteRequest(source=source, destination=destination, **fields)
    return (await operator.ask("CreateRoute", request)).route


@pytest.fixture
async def fleet(installation: Installation) -> Installation:
    """A server that three nodes have joined; none is connected."""
    token = await installation.join_token()
    for name in ("n-1", "n-2", "n-3"):
        await installation.enroll(name, token)
    return installation


async def test_an_operators_day_with_routes(fleet: Installation) -> None:
    ada = await fleet.operator("ada", "operator")
    made = await ada.ask(
        "CreateRoute", admin_route_pb2.CreateRouteRequest(source="n-1", destination="n-2", probe_interval_ms=500)
    )
    assert (made.route.name, made.route.source_name, made.route.destination_name) == ("n-1-to-n-2", "n-1", "n-2")
    assert (made.route.state, made.route.generation, made.route.relay_node_id) == ("UNKNOWN", 1, "")
    assert any("probe listener" in note for note in made.notes), "what keeps it from working is said at once"
    await route(ada, "n-2", "n-1")

    added = (await ada.ask("AddRelay", admin_route_pb2.AddRelayRequest(node="n-3", weight=200))).relay
    assert (added.name, added.capacity, added.weight, added.load, added.usable) == ("n-3", 50, 200, 0, False)
    assert added.why_not

    pages: list[str] = []
    token = ""
    while True:
        page = admin_pb2.Page(size=1, token=token)
        answer = await ada.ask("ListRoutes", admin_route_pb2.ListRoutesRequest(node="n-1", page=page))
        pages += [each.name for each in answer.routes]
        token = answer.next_page_token
        if not token:
            break
    assert pages == ["n-1-to-n-2", "n-2-to-n-1"]
    over = await ada.ask("ListRoutes", admin_route_pb2.ListRoutesRequest(relay="n-3"))
    assert not over.routes

    why = await ada.ask("ExplainRoute", admin_route_pb2.ExplainRouteRequest(route="n-1-to-n-2"))
    assert why.decision.rule == "FIRST"
    assert why.decision.decided_by == "ada"
    assert why.decision.reasons[0].text
    assert [way.relay_name for way in why.candidates if way.effective] == [""]
    assert not any(way.scored for way in why.candidates), "nobody has walked any way yet"
    assert why.would_switch

    off = await ada.ask("SetRouteEnabled", admin_route_pb2.SetRouteEnabledRequest(route="n-1-to-n-2", enabled=False))
    assert not off.route.enabled
    disabled = await ada.ask("ListRoutes", admin_route_pb2.ListRoutesRequest(state="DISABLED"))
    assert [each.name for each in disabled.routes] == ["n-1-to-n-2"]
    on = await ada.ask("SetRouteEnabled", admin_route_pb2.SetRouteEnabledRequest(route="n-1-to-n-2", enabled=True))
    assert on.route.generation > off.route.generation > made.route.generation
    history = await ada.ask("RouteHistory", admin_route_pb2.RouteHistoryRequest(route="n-1-to-n-2"))
    assert [each.generation for each in history.decisions] == [3, 2, 1]

    removed = await ada.ask("RemoveRoute", admin_route_pb2.RemoveRouteRequest(route=made.route.route_id))
    assert removed.route.name == "n-1-to-n-2"
    assert (await ada.ask("RemoveRelay", admin_route_pb2.RemoveRelayRequest(node="n-3"))).relay.name == "n-3"
    assert not (await ada.ask("ListRelays", admin_route_pb2.ListRelaysRequest())).relays
    for kind in ("route.created", "route.changed", "route.removed", "relay.added", "relay.removed"):
        assert {row.actor for row in await fleet.owner.audit(kind)} == {"ada"}, kind
    await ada.close()


async def test_what_nodes_find_is_explained(installation: Installation) -> None:
    """One route between nodes that run: before anything was found, while it works, and once its end has gone."""
    owner = installation.owner
    ports = dict(zip(("n-1", "n-2", "n-3"), free_ports(3), strict=True))
    for name, port in ports.items():
        await installation.add_node(name, probe_listen=f"127.0.0.1:{port}", probe_endpoints=(f"127.0.0.1:{port}",))
    made = await route(owner, "n-1", "n-2", probe_interval_ms=200)
    relay = (await owner.ask("AddRelay", admin_route_pb2.AddRelayRequest(node="n-3"))).relay
    assert (relay.usable, relay.why_not) == (True, "")

    async def explained(state: str) -> admin_route_pb2.ExplainRouteResponse | None:
        why = await owner.ask("ExplainRoute", admin_route_pb2.ExplainRouteRequest(route=made.route_id))
        ways = {way.relay_name: way.state for way in why.candidates}
        return why if why.route.state == state and ways == {"": state, "n-3": state} else None

    well = await eventually(lambda: explained("HEALTHY"), "both ways are walked")
    assert well.outlook.rule in ("KEPT", "NOT_ENOUGH_GAIN")
    for way in well.candidates:
        assert way.scored
        assert way.score_us == sum(part.us for part in way.parts), "at a weight of 100 % it is the sum of its parts"
    shown = await owner.ask("GetRoute", admin_route_pb2.GetRouteRequest(route=made.route_id))
    kinds = {seen.observation_type for seen in shown.observations}
    assert {"SYNTHETIC_ROUTE_HEALTH", "CANDIDATE_PATH", "PEER_CONNECTION"} <= kinds
    assert {tuple(seen.expected_hops) for seen in shown.observations} == {("n-1", "n-2"), ("n-1", "n-3", "n-2")}

    await installation.nodes["n-2"].stop()
    lost = await eventually(lambda: explained("UNREACHABLE"), "nothing answers any more")
    assert lost.outlook.rule == "NO_USABLE_PATH"
    assert any("works again" in each for each in lost.would_switch)
    past = await owner.ask("RouteHistory", admin_route_pb2.RouteHistoryRequest(route=made.route_id))
    states = [seen.state for seen in past.observations if seen.observation_type == "SYNTHETIC_ROUTE_HEALTH"]
    assert (states[0], states[-1]) == ("UNREACHABLE", "HEALTHY"), "the newest first"


async def test_a_watch_tells_all_and_then_what_changes(fleet: Installation) -> None:
    ada = fleet.owner
    first = await route(ada, "n-1", "n-2")
    watch = ada.follow("WatchRoutes", admin_route_pb2.WatchRoutesRequest(node="n-1"))
    assert [each.name for each in (await anext(watch)).routes] == ["n-1-to-n-2"]
    await route(ada, "n-2", "n-3")
    await route(ada, "n-3", "n-1")
    assert [each.name for each in (await anext(watch)).routes] == ["n-3-to-n-1"], "only what has n-1 in it"
    await ada.ask("SetRouteEnabled", admin_route_pb2.SetRouteEnabledRequest(route=first.route_id))
    assert [each.enabled for each in (await anext(watch)).routes] == [False]
    await ada.ask("RemoveRoute", admin_route_pb2.RemoveRouteRequest(route=first.route_id))
    gone = await anext(watch)
    assert (list(gone.routes), list(gone.removed)) == ([], [first.route_id])
    await watch.aclose()


async def test_a_watch_of_nothing_begins_with_nothing(installation: Installation) -> None:
    watch = installation.owner.follow("WatchRoutes", admin_route_pb2.WatchRoutesRequest())
    async with asyncio.timeout(10):
        assert not (await anext(watch)).routes
    await watch.aclose()


async def test_what_cannot_be_is_refused_with_the_next_step(fleet: Installation) -> None:
    owner = fleet.owner
    await route(owner, "n-1", "n-2")
    create, relay = admin_route_pb2.CreateRouteRequest, admin_route_pb2.AddRelayRequest
    ref = {"route": "no-such"}
    for method, request, reason, told in (
        ("CreateRoute", create(source="n-1", destination="n-1"), Reason.INVALID_ARGUMENT, "not to itself"),
        ("CreateRoute", create(source="n-1", destination="n-9"), Reason.NOT_FOUND, "fleetctl nodes list"),
        ("CreateRoute", create(), Reason.NOT_FOUND, "fleetctl nodes list"),
        ("CreateRoute", create(source="n-1", destination="n-2"), Reason.CONFLICT, "'n-1-to-n-2'"),
        ("CreateRoute", create(source="n-2", destination="n-1", name="n-1-to-n-2"), Reason.CONFLICT, "--name"),
        ("CreateRoute", create(source="n-2", destination="n-1", name="N 1"), Reason.INVALID_ARGUMENT, "a-z"),
        ("CreateRoute", create(source="n-2", destination="n-1", probe_interval_ms=5), Reason.INVALID_ARGUMENT, "200"),
        ("AddRelay", relay(node="n-9"), Reason.NOT_FOUND, "fleetctl nodes list"),
        ("AddRelay", relay(node="n-3", capacity=99_999), Reason.INVALID_ARGUMENT, "capacity"),
        ("AddRelay", relay(node="n-3", weight=99_999), Reason.INVALID_ARGUMENT, "weight"),
        ("AddRelay", relay(node="n-3", site="<hall>"), Reason.INVALID_ARGUMENT, "site"),
        ("RemoveRelay", admin_route_pb2.RemoveRelayRequest(node="n-3"), Reason.NOT_FOUND, "fleetctl relays list"),
        ("GetRoute", admin_route_pb2.GetRouteRequest(**ref), Reason.NOT_FOUND, "fleetctl routes list"),
        ("ExplainRoute", admin_route_pb2.ExplainRouteRequest(**ref), Reason.NOT_FOUND, "fleetctl routes list"),
        ("RouteHistory", admin_route_pb2.RouteHistoryRequest(**ref), Reason.NOT_FOUND, "fleetctl routes list"),
        ("SetRouteEnabled", admin_route_pb2.SetRouteEnabledRequest(**ref), Reason.NOT_FOUND, "fleetctl routes list"),
        ("RemoveRoute", admin_route_pb2.RemoveRouteRequest(**ref), Reason.NOT_FOUND, "fleetctl routes list"),
        ("ListRoutes", admin_route_pb2.ListRoutesRequest(state="FINE"), Reason.INVALID_ARGUMENT, "HEALTHY"),
        ("ListRoutes", admin_route_pb2.ListRoutesRequest(node="n-9"), Reason.NOT_FOUND, "fleetctl nodes list"),
    ):
        refusal = await refused(owner, method, request)
        assert (refusal.reason, told in refusal.detail) == (reason, True), (method, request, refusal)


async def test_nodes_that_are_out_take_no_part(fleet: Installation) -> None:
    await fleet.owner.set_state("n-2", "SUSPENDED", "water")
    create = admin_route_pb2.CreateRouteRequest(source="n-1", destination="n-2")
    assert (await refused(fleet.owner, "CreateRoute", create)).reason is Reason.SUSPENDED
    relay = admin_route_pb2.AddRelayRequest(node="n-2")
    assert (await refused(fleet.owner, "AddRelay", relay)).reason is Reason.SUSPENDED


async def test_a_relay_that_is_an_end_of_a_route_is_none_for_that_one(fleet: Installation) -> None:
    await route(fleet.owner, "n-1", "n-2")
    await fleet.owner.ask("AddRelay", admin_route_pb2.AddRelayRequest(node="n-2"))
    why = await fleet.owner.ask("ExplainRoute", admin_route_pb2.ExplainRouteRequest(route="n-1-to-n-2"))
    (end,) = [way for way in why.candidates if way.relay_name == "n-2"]
    assert "an end of the route" in end.held_out
    assert not any(end.relay_node_id in each for each in why.would_switch)


async def test_a_stored_decision_that_somebody_spoilt_is_shown_as_far_as_it_goes(fleet: Installation) -> None:
    await route(fleet.owner, "n-1", "n-2")
    with contextlib.closing(sqlite3.connect(fleet.database_file)) as database:
        spoilt = '[1, {"relay_id": 7, "parts": 3, "score_us": "x", "penalty": -1, "observed_at_ms": 1e300}]'
        database.execute(
            'UPDATE route_decisions SET reasons = \'[null, {"text": 5, "numbers": 1}]\', scores = ?', (spoilt,)
        )
        database.commit()
    why = await fleet.owner.ask("ExplainRoute", admin_route_pb2.ExplainRouteRequest(route="n-1-to-n-2"))
    assert [reason.text for reason in why.decision.reasons] == ["5"]
    assert [(way.relay_name, way.score_us, way.observed_at_ms) for way in why.decision.considered] == [("7", 0, 0)]
    assert why.outlook.reasons, "what would be decided now does not come from there"


async def test_viewers_see_and_do_not_touch(fleet: Installation) -> None:
    await route(fleet.owner, "n-1", "n-2")
    eve = await fleet.operator("eve", "viewer")
    refusal = await refused(eve, "RemoveRoute", admin_route_pb2.RemoveRouteRequest(route="n-1-to-n-2"))
    assert (refusal.reason, refusal.metadata["needed_role"]) == (Reason.PERMISSION_DENIED, "operator")
    shown = await eve.ask("GetRoute", admin_route_pb2.GetRouteRequest(route="n-1-to-n-2"))
    assert [member.name for member in shown.members] == ["n-1", "n-2"]
    assert all(member.version and not member.applied_version for member in shown.members)
    await eve.close()
