"""Calls about routes and relays, at a replica that holds no stream."""

import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import admin_route_pb2 as pb
from tests.integration.anywhere import Case, Matrix

ROUTE = "n-1-to-n-2"


async def routes(m: Matrix) -> None:
    made = (await m.call("CreateRoute", pb.CreateRouteRequest(source="n-1", destination="n-2"))).route
    assert (made.name, made.enabled) == (ROUTE, True)
    (listed,) = (await m.same("ListRoutes", pb.ListRoutesRequest())).routes
    assert listed.route_id == made.route_id
    await m.same("GetRoute", pb.GetRouteRequest(route=ROUTE))
    await m.same("RouteHistory", pb.RouteHistoryRequest(route=ROUTE))
    assert (await m.call("ExplainRoute", pb.ExplainRouteRequest(route=ROUTE))).route.name == ROUTE
    async for seen in m.follow("WatchRoutes", pb.WatchRoutesRequest()):
        assert [route.name for route in seen.routes] == [ROUTE]
        break
    await m.call("SetRouteEnabled", pb.SetRouteEnabledRequest(route=ROUTE, enabled=False))
    assert not (await m.here.owner.ask("GetRoute", pb.GetRouteRequest(route=ROUTE))).route.enabled
    await m.call("AddRelay", pb.AddRelayRequest(node="n-1"))
    (relay,) = (await m.same("ListRelays", pb.ListRelaysRequest())).relays
    assert relay.name == "n-1"
    await m.call("RemoveRelay", pb.RemoveRelayRequest(node="n-1"))
    await m.call("RemoveRoute", pb.RemoveRouteRequest(route=ROUTE))
    with pytest.raises(Refusal) as gone:
        await m.here.owner.ask("GetRoute", pb.GetRouteRequest(route=ROUTE))
    assert gone.value.reason is Reason.NOT_FOUND


ROUTES: tuple[Case, ...] = (routes,)
