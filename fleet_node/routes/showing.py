"""The node's routes as `fleet-node status` tells them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fleet.v1 import route_pb2
from fleet_node.routes.in_force import InForce
from fleet_node.routes.prober import Prober
from fleet_node.routes.rules import EffectivePath

_NAME = re.compile(r"[\w.-]{1,128}", re.ASCII)
MAX_SHOWN = 200
"""The control socket's answer is bounded."""


def routes_status(in_force: InForce, prober: Prober) -> Mapping[str, Any]:
    """Routes with path, state and lease, as JSON takes it; those that are bad first where there are many."""
    shown = [_route(route, in_force, prober) for route in in_force.routes.values()]
    shown.sort(key=lambda said: (said["state"] in ("HEALTHY", "UNSPECIFIED"), said["name"]))
    return {"routes": shown[:MAX_SHOWN], "routes_in_all": len(shown)}


def _route(route: EffectivePath, in_force: InForce, prober: Prober) -> dict[str, Any]:
    state, rtt_us, loss_permille = prober.state_of(route.route_id)
    lease, now_ms = in_force.lease_of(route.route_id), in_force.server_now_ms()
    if lease is not None and lease.relay_id != route.relay_id:
        lease = None  # of a path that was left
    return {
        "route_id": route.route_id,
        "name": _name(in_force.configs.get(route.route_id)) or route.route_id,
        "role": _role(route, in_force.node_id),
        "generation": route.generation,
        "path": list(route.path),
        "path_names": [_called(node_id, in_force) for node_id in route.path],
        "state": str(state),
        "rtt_us": rtt_us,
        "loss_permille": loss_permille,
        "waiting_rendezvous": route.waiting_rendezvous,
        "lease": None
        if lease is None
        else {
            "lease_id": lease.lease_id,
            "relay_node_id": lease.relay_id,
            "generation": lease.generation,
            "left_ms": max(0, lease.expires_at_ms - now_ms),
            "withdrawn": lease.withdrawn,
        },
    }


def _called(node_id: str, in_force: InForce) -> str:
    if node_id == in_force.node_id:
        return "this node"
    return _name(in_force.peer(node_id)) or node_id


def _name(named: route_pb2.RouteConfig | route_pb2.Peer | None) -> str:
    """Empty when it has none, or one that people had better not be shown."""
    return named.name if named is not None and _NAME.fullmatch(named.name) else ""


def _role(route: EffectivePath, node_id: str) -> str:
    if node_id == route.path[0]:
        return "source"
    if node_id == route.path[-1]:
        return "destination"
    return "relay" if node_id in route.path else "candidate relay"
