"""Nodes and their routes: those of one node in a line, and what is wrong with the ends of a route."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import TYPE_CHECKING

from fleet_server.cli.failures import Failure
from fleet_server.cli.tables import Cell
from fleet_server.cli.terminal import Styled

if TYPE_CHECKING:
    from fleet.v1 import admin_pb2, admin_route_pb2
    from fleet_server.cli.connection import Admin

_MOST = 1000
_TIMEOUT_S = 5.0  # they stand beside what was asked for
_WORST = (("UNREACHABLE", "red"), ("DRIFT", "magenta"), ("DEGRADED", "yellow"))


def routes_of(admin: Admin, node: admin_pb2.NodeView) -> list[tuple[str, Cell]]:
    """How the routes are that a node is an end or the relay of; nothing when there are none, or none can be told."""
    from fleet.v1 import admin_pb2, admin_route_pb2
    from fleet_server.cli.route_views import state_word

    request = admin_route_pb2.ListRoutesRequest(node=node.node_id, page=admin_pb2.Page(size=_MOST))
    try:
        found = admin.call(admin.stub.ListRoutes, request, timeout_s=_TIMEOUT_S).routes
    except Failure:
        return []  # of an older server, or one that was drained meanwhile: the node itself is shown all the same
    if not found:
        return []
    states = Counter(map(state_word, found))
    told = ", ".join(f"{number} {word}" for word, number in states.most_common())
    over = sum(route.relay_node_id == node.node_id for route in found)
    relayed = f", {over} of them over this node" if over else ""
    colour = next((colour for word, colour in _WORST if states[word]), None)
    return [("routes", Styled(f"{told}{relayed}: `fleetctl routes list {shlex.quote(node.name)}`", colour))]


def troubles_of_ends(admin: Admin, explained: admin_route_pb2.ExplainRouteResponse) -> list[str]:
    """What keeps the ends of a route that does not work from taking part, as the server sees them."""
    from fleet.v1 import admin_pb2
    from fleet_server.cli.route_views import counts, works

    route = explained.route
    if works(route) or not counts(route):
        return []
    request = admin_pb2.ListNodesRequest(
        selector=admin_pb2.Selector(patterns=[route.source_node_id, route.destination_node_id])
    )
    try:
        ends = admin.call(admin.stub.ListNodes, request, timeout_s=_TIMEOUT_S).nodes
    except Failure:
        return []
    told = []
    for node in ends:
        role = "source" if node.node_id == route.source_node_id else "destination"
        if node.state != "ACTIVE" or not node.online:
            why = node.state if node.state != "ACTIVE" else "offline"
            told.append(f"Its {role} {node.name} is {why}: `fleetctl nodes show {shlex.quote(node.name)}`")
    if any("NO_ENDPOINT" in way.held_out for way in explained.candidates if not way.relay_node_id):
        told.append(f"{route.destination_name} has no probe listener: set `probe_listen` there, and restart it")
    return told
