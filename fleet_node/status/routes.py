"""The node's routes as text for people. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

UNREACHABLE = "off, so that no other node reaches this one, which is an end or a relay of routes: set `probe_listen`"
UNSIGNED = "UNSAFE: routes and leases are taken without the authority's signature (routes.authority_required = false)"


def route_fields(said: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Labels and values.

    Args:
        said: what the daemon says under `routes`; None when it has nothing to do with any.
    """
    if said is None:
        return
    yield "probes", _listener(said)
    yield "routes", f"{said['routes_in_all']}, config version {said['config_version'] or 'none'}"
    if not said["authority_required"]:
        yield "", UNSIGNED
    if said["problem"]:
        yield "", said["problem"]
    for route in said["routes"]:
        yield f"route {route['name']}", route_sentence(route)
    if (left_out := said["routes_in_all"] - len(said["routes"])) > 0:
        yield "", f"and {left_out} more: `fleetctl routes list` shows all"
    if said["refreshes_asked"] or said["refreshes_held_back"]:
        yield "asks", f"{said['refreshes_asked']} for another path, {said['refreshes_held_back']} held back"


def is_missed(said: Mapping[str, Any]) -> bool:
    """Whether other nodes would call this one, and it listens nowhere because nobody told it to."""
    return said["listener"] == "off" and any(route["role"] != "source" for route in said["routes"])


def route_sentence(route: Mapping[str, Any]) -> str:
    """One route in a line."""
    parts = [_state(route), " > ".join(route["path_names"]), f"generation {route['generation']}"]
    if route["waiting_rendezvous"]:
        parts.append("its ends do not reach each other")
    return ", ".join(parts) + _lease(route["lease"])


def _listener(said: Mapping[str, Any]) -> str:
    if is_missed(said):
        return UNREACHABLE
    if not said["endpoints"]:
        return str(said["listener"])
    return f"{said['listener']}, others reach it at {', '.join(said['endpoints'])}"


def _state(route: Mapping[str, Any]) -> str:
    if route["role"] != "source":
        return str(route["role"])
    if route["state"] == "UNSPECIFIED":
        return "source, nothing found out yet"
    round_trip = f" {route['rtt_us'] / 1000:.1f} ms" if route["rtt_us"] else ""
    lost = f" with {route['loss_permille'] / 10:.0f} % lost" if route["loss_permille"] else ""
    return f"source, {route['state']}{round_trip}{lost}"


def _lease(lease: Mapping[str, Any] | None) -> str:
    if lease is None:
        return ""
    name = f"lease {lease['lease_id']} (generation {lease['generation']})"
    if lease["withdrawn"]:
        return f"; {name} was taken back"
    return f"; {name} for {lease['left_ms'] // 1000} s" if lease["left_ms"] else f"; {name} HAS ENDED"
