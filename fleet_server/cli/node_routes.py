"""The routes of one node in a line, for `fleetctl nodes show`."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import TYPE_CHECKING

from fleet_server.cli.failures import Failure
from fleet_server.cli.tables import Cell
from fleet_server.cli.terminal import Styled

if TYPE_CHECKING:
    from fleet.v1 import admin_pb2
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
