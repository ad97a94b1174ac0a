"""Nodes as processes that probe each other, each link through a TCP proxy of its own: cut one, and nothing else is."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fleet.v1 import admin_route_pb2
from fleet_node.status.client import ask
from tests.fakes.proxy import FaultProxy
from tests.integration.installation import free_ports
from tests.integration.processes import NodeProcess, ServerProcess
from tests.integration.waiting import eventually

ExplainRouteResponse = admin_route_pb2.ExplainRouteResponse
RouteView = admin_route_pb2.RouteView


class Mesh(ServerProcess):
    """An installation whose nodes reach each other over links that a test holds in its hands."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.members: dict[str, NodeProcess] = {}
        self._ports: dict[str, int] = {}
        self._links: dict[tuple[str, str], FaultProxy] = {}

    async def add_members(self, *names: str) -> None:
        """Nodes that all listen for probes, and call each other over their links."""
        token = await self.join_token()
        self._ports = dict(zip(names, free_ports(len(names)), strict=True))
        enrolled = {name: await self.enroll(name, token) for name in names}
        for name, node in enrolled.items():
            called = {}
            for peer in names:
                if peer != name:
                    link = await self._proxies.enter_async_context(FaultProxy(("127.0.0.1", self._ports[peer])))
                    self._links[name, peer] = link
                    called[enrolled[peer].membership.node_id] = link.address
            node.settings = replace(
                node.settings, probe_listen=f"127.0.0.1:{self._ports[name]}", routes_peer_endpoints=called
            )
            self.members[name] = self.nodes[name] = NodeProcess(node, self._processes)
        for member in self.members.values():
            await member.start()

    def link(self, caller: str, called: str) -> FaultProxy:
        """The link over which one calls the other."""
        return self._links[caller, called]

    def cut(self, caller: str, called: str) -> None:
        """Nobody gets through any more, in one direction."""
        link = self.link(caller, called)
        link.refuse()
        link.cut()

    def heal(self, caller: str, called: str) -> None:
        """As before the cut."""
        self.link(caller, called).heal()

    def lead_to(self, caller: str, called: str, instead: str) -> None:
        """The link leads to another node from now on."""
        link = self.link(caller, called)
        link.target = ("127.0.0.1", self._ports[instead])
        link.cut()

    # -- what an operator does ----------------------------------------------------------------------------------------
    async def create_route(self, source: str, destination: str, *, interval_ms: int) -> RouteView:
        """A route from one member to another, named after both."""
        request = admin_route_pb2.CreateRouteRequest(
            source=source, destination=destination, name=f"{source}-{destination}", probe_interval_ms=interval_ms
        )
        made: admin_route_pb2.CreateRouteResponse = await self.owner.ask("CreateRoute", request)
        return made.route

    async def add_relay(self, name: str, **settings: Any) -> None:
        """Take a member into the pool."""
        await self.owner.ask("AddRelay", admin_route_pb2.AddRelayRequest(node=name, **settings))

    async def remove_relay(self, name: str) -> None:
        """Take it out again."""
        await self.owner.ask("RemoveRelay", admin_route_pb2.RemoveRelayRequest(node=name))

    async def explain(self, route: str) -> ExplainRouteResponse:
        """Which way a route takes, and why."""
        request = admin_route_pb2.ExplainRouteRequest(route=route)
        answer: ExplainRouteResponse = await self.owner.ask("ExplainRoute", request)
        return answer

    async def wait_route(self, route: str, holds: Callable[[RouteView], bool]) -> ExplainRouteResponse:
        """Return once a route is as `holds` says."""

        async def reached() -> ExplainRouteResponse | None:
            explained = await self.explain(route)
            return explained if holds(explained.route) else None

        found: ExplainRouteResponse = await eventually(reached, f"{route} is as it should be")
        return found

    async def observations(self, route: str) -> list[admin_route_pb2.RouteObservationView]:
        """What was found, newest first."""
        answer = await self.owner.ask("RouteHistory", admin_route_pb2.RouteHistoryRequest(route=route))
        return list(answer.observations)

    async def shown(self, member: str) -> dict[str, Any]:
        """What `fleet-node status` shows of the only route."""
        said = await asyncio.to_thread(ask, self.members[member].folder.control_socket, "status")
        (found,) = said["routes"]["routes"]
        return dict(found)
