"""Admin calls about routes and relays."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence

from fleet.clock import Clock
from fleet.v1 import admin_route_pb2
from fleet_server.admin.access import Caller
from fleet_server.admin.paging import next_token, page_size
from fleet_server.admin.route_views import (
    Names,
    all_ids,
    decision_ids,
    decision_view,
    explanation_ids,
    explanation_view,
    observation_ids,
    observation_view,
    relay_view,
    route_ids,
    route_view,
    whole_ids,
    whole_view,
)
from fleet_server.database.wakeup import Bell, Wakeup
from fleet_server.nodes.service import NodeService
from fleet_server.routes.record import RouteRecord
from fleet_server.routes.service import RelayView, RouteService

_WATCH_PAGE = 1000
_WATCH_PAUSE_S = 0.25  # changes of many routes are told together
_WATCH_PAUSES = 10  # times as long as the look itself took: thousands of routes change all the time
_WATCH_PAUSE_MOST_S = 3.0
_POLL_S = 1.5  # what happens at other replicas is seen within two seconds, hinted or not
_HISTORY_MOST = 1000
_HISTORY_DEFAULT = 100


class RoutesApi:
    """Routes and relays as operators see them."""

    def __init__(self, routes: RouteService, nodes: NodeService, wakeup: Wakeup, clock: Clock) -> None:
        self._routes = routes
        self._nodes = nodes
        self._wakeup = wakeup
        self._clock = clock

    async def create(
        self, caller: Caller, request: admin_route_pb2.CreateRouteRequest
    ) -> admin_route_pb2.CreateRouteResponse:
        """A route between two nodes."""
        made = await self._routes.create(
            source=request.source,
            destination=request.destination,
            name=request.name,
            probe_interval_ms=request.probe_interval_ms,
            by=caller.name,
        )
        return admin_route_pb2.CreateRouteResponse(route=await self._view(made.route), notes=made.notes)

    async def list_routes(
        self, _: Caller, request: admin_route_pb2.ListRoutesRequest
    ) -> admin_route_pb2.ListRoutesResponse:
        """A page of routes by name; the page token is the last name."""
        limit = page_size(request.page)
        found = await self._routes.page(
            after=request.page.token, limit=limit, node=request.node, relay=request.relay, state=request.state
        )
        names = await self._names(*map(route_ids, found))
        return admin_route_pb2.ListRoutesResponse(
            routes=[route_view(route, names) for route in found], next_page_token=next_token(found, limit)
        )

    async def get(self, _: Caller, request: admin_route_pb2.GetRouteRequest) -> admin_route_pb2.GetRouteResponse:
        """One route with its lease and its latest observations."""
        view = await self._routes.get(request.route)
        return whole_view(view, await self._names(whole_ids(view)))

    async def explain(
        self, _: Caller, request: admin_route_pb2.ExplainRouteRequest
    ) -> admin_route_pb2.ExplainRouteResponse:
        """Why a route takes its path."""
        found = await self._routes.explain(request.route)
        return explanation_view(found, await self._names(explanation_ids(found)))

    async def history(
        self, _: Caller, request: admin_route_pb2.RouteHistoryRequest
    ) -> admin_route_pb2.RouteHistoryResponse:
        """What was decided and observed of a route, newest first."""
        limit = min(request.limit or _HISTORY_DEFAULT, _HISTORY_MOST)
        made = await self._routes.decisions(request.route, limit=limit)
        seen = [each for _, each in await self._routes.history(request.route, limit=limit)]
        names = await self._names(*map(decision_ids, made), observation_ids(seen))
        return admin_route_pb2.RouteHistoryResponse(
            decisions=[decision_view(each, names) for each in made],
            observations=[observation_view(each, names) for each in seen],
        )

    async def watch(
        self, _: Caller, request: admin_route_pb2.WatchRoutesRequest
    ) -> AsyncIterator[admin_route_pb2.WatchRoutesResponse]:
        """All routes first, then those whose view changed, and the ids of those that are gone."""
        known: dict[str, bytes] = {}
        names: dict[str, str] = {}
        changed = Bell(self._clock)
        unsubscribe = self._wakeup.subscribe("routes", changed.ring_nowait)
        first = True
        try:
            while True:
                began_s = self._clock.monotonic()
                news: list[admin_route_pb2.RouteView] = []
                there: set[str] = set()
                async for routes in self._pages(request):
                    await self._learn(names, routes)
                    there.update(route.route_id for route in routes)
                    news += [view for view in (route_view(route, names) for route in routes) if _is_news(known, view)]
                removed = sorted(known.keys() - there)
                for route_id in removed:
                    del known[route_id]
                if news or removed or first:
                    yield admin_route_pb2.WatchRoutesResponse(routes=news, removed=removed)
                    first = False
                took_s = self._clock.monotonic() - began_s
                await self._clock.sleep(min(max(_WATCH_PAUSE_S, _WATCH_PAUSES * took_s), _WATCH_PAUSE_MOST_S))
                await changed.wait(_POLL_S)
        finally:
            unsubscribe()

    async def set_enabled(
        self, caller: Caller, request: admin_route_pb2.SetRouteEnabledRequest
    ) -> admin_route_pb2.SetRouteEnabledResponse:
        """Switch a route off or on."""
        route = await self._routes.set_enabled(request.route, enabled=request.enabled, by=caller.name)
        return admin_route_pb2.SetRouteEnabledResponse(route=await self._view(route))

    async def remove(
        self, caller: Caller, request: admin_route_pb2.RemoveRouteRequest
    ) -> admin_route_pb2.RemoveRouteResponse:
        """End a route."""
        route = await self._routes.remove(request.route, by=caller.name)
        return admin_route_pb2.RemoveRouteResponse(route=await self._view(route))

    async def add_relay(
        self, caller: Caller, request: admin_route_pb2.AddRelayRequest
    ) -> admin_route_pb2.AddRelayResponse:
        """Let a node relay."""
        added = await self._routes.add_relay(
            request.node, capacity=request.capacity, weight=request.weight, site=request.site, by=caller.name
        )
        return admin_route_pb2.AddRelayResponse(relay=await self._relay(added))

    async def remove_relay(
        self, caller: Caller, request: admin_route_pb2.RemoveRelayRequest
    ) -> admin_route_pb2.RemoveRelayResponse:
        """Have a node relay no more."""
        record = await self._routes.remove_relay(request.node, by=caller.name)
        was = RelayView(record, record.site, 0, "it is not in the relay pool any more")
        return admin_route_pb2.RemoveRelayResponse(relay=await self._relay(was))

    async def list_relays(self, _: Caller, __: admin_route_pb2.ListRelaysRequest) -> admin_route_pb2.ListRelaysResponse:
        """The pool, by node name."""
        found = await self._routes.list_relays()
        names = await self._names(view.relay.node_id for view in found)
        views = [relay_view(view, names) for view in found]
        return admin_route_pb2.ListRelaysResponse(relays=sorted(views, key=lambda view: view.name))

    async def _view(self, route: RouteRecord) -> admin_route_pb2.RouteView:
        return route_view(route, await self._names(route_ids(route)))

    async def _relay(self, view: RelayView) -> admin_route_pb2.RelayView:
        return relay_view(view, await self._names([view.relay.node_id]))

    async def _names(self, *node_ids: Iterable[str]) -> Names:
        return await self._nodes.names_of(all_ids(*node_ids))

    async def _learn(self, names: dict[str, str], routes: Sequence[RouteRecord]) -> None:
        """Names do not change while a node is there: each is asked for once."""
        if unknown := [node_id for node_id in all_ids(*map(route_ids, routes)) if node_id not in names]:
            names.update(await self._nodes.names_of(unknown))

    async def _pages(self, request: admin_route_pb2.WatchRoutesRequest) -> AsyncIterator[list[RouteRecord]]:
        after = ""
        while True:
            page = await self._routes.page(after=after, limit=_WATCH_PAGE, node=request.node, relay=request.relay)
            yield page
            if len(page) < _WATCH_PAGE:
                return
            after = page[-1].name


def _is_news(known: dict[str, bytes], view: admin_route_pb2.RouteView) -> bool:
    now = view.SerializeToString(deterministic=True)
    if known.get(view.route_id) == now:
        return False
    known[view.route_id] = now
    return True
