"""Checks of what routes need: a probe listener that others reach, and a signature under what this node is told."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from fleet.tls import certificate_sha256, fetch_unverified_leaf
from fleet_node.config import Settings
from fleet_node.doctor.finding import Finding, fail, ok, warn
from fleet_node.status.routes import UNREACHABLE, UNSIGNED, is_missed

_TIMEOUT_S = 5.0
_BAD = ("DRIFT", "UNREACHABLE")


def check_settings(settings: Settings) -> Iterator[Finding]:
    """What the settings alone tell."""
    if not settings.routes_authority_required:
        yield warn("routes", UNSIGNED, "remove `authority_required` from `[routes]`, and restart the node")


async def check_daemon(settings: Settings, said: Mapping[str, Any]) -> AsyncIterator[Finding]:
    """What the running daemon tells.

    Args:
        settings: as they are now; the daemon may have been started with others.
        said: its answer to `status`; one of another version tells nothing here.
    """
    routes = said.get("routes")
    if not isinstance(routes, dict):
        if settings.probe_listen:
            yield warn("probe listener", "the daemon does not know of `probe_listen`", "restart it")
        return
    if routes["problem"]:
        yield warn("routes", routes["problem"], "let the node reach a gateway: it brings them again")
    for route in routes["routes"]:
        if route["role"] == "source" and route["state"] in _BAD:
            detail = f"{route['route_id']} is {route['state']} over {' > '.join(route['path'])}"
            yield warn("routes", detail, f"`fleetctl routes explain {route['route_id']}` tells why it takes that way")
    if settings.probe_listen:
        async for finding in _listener(routes):
            yield finding
    elif is_missed(routes):
        yield warn("probe listener", UNREACHABLE, "set `probe_listen`, such as 10.1.2.3:9470, and restart the node")


async def _listener(said: Mapping[str, Any]) -> AsyncIterator[Finding]:
    if not said["endpoints"]:
        detail = said["listener"]
        yield fail("probe listener", detail, "correct `probe_listen` as the line says, and restart the node")
        return
    yield ok("probe listener", f"listens on {said['listener']}")
    for endpoint in said["endpoints"]:
        yield await _reach(endpoint, said["certificate_sha256"])


async def _reach(endpoint: str, wanted: str) -> Finding:
    remedy = "other nodes dial it: correct `probe_endpoints`, or open the way (unless only this machine is kept out)"
    try:
        leaf = await fetch_unverified_leaf(endpoint, _TIMEOUT_S)
    except (ssl.SSLError, OSError, TimeoutError, ValueError) as error:
        return warn("probe listener", f"nobody answers there from this machine: {error}", remedy, endpoint=endpoint)
    if certificate_sha256(leaf).hex() != wanted:
        return fail("probe listener", "another node or program answers there", remedy, endpoint=endpoint)
    return ok("probe listener", "this node's own answers there", endpoint=endpoint)
