"""Routes and relays as the server would show them, made for tests."""

from __future__ import annotations

from typing import Any

from fleet.v1 import admin_route_pb2
from tests.unit.fleet_server.cli.conftest import NOW_MS

RELAY_ID = "nd_" + "r" * 24


def route(number: int = 1, **changes: Any) -> admin_route_pb2.RouteView:
    values: dict[str, Any] = {
        "route_id": f"rt_{number}",
        "name": f"press-{number}-to-oven",
        "source_node_id": f"n_{number}",
        "source_name": f"press-{number}",
        "destination_node_id": "n_oven",
        "destination_name": "oven",
        "enabled": True,
        "service_class": "synthetic",
        "probe_interval_ms": 10_000,
        "generation": 3,
        "state": "HEALTHY",
        "rtt_us": 18_400,
        "observed_at_ms": NOW_MS - 4000,
        "state_since_ms": NOW_MS - 192_000,
        "decided_at_ms": NOW_MS - 192_000,
        "created_at_ms": NOW_MS - 86_400_000,
        "created_by": "ada",
    }
    return admin_route_pb2.RouteView(**{**values, **changes})


def relayed(number: int = 1, **changes: Any) -> admin_route_pb2.RouteView:
    return route(number, **{"relay_node_id": RELAY_ID, "relay_name": "relay-a", **changes})


def way(relay: str = "", **changes: Any) -> admin_route_pb2.RouteCandidateView:
    values: dict[str, Any] = {
        "relay_node_id": relay and RELAY_ID,
        "relay_name": relay,
        "state": "HEALTHY",
        "rtt_us": 18_400.0,
        "samples": 7,
        "observed_at_ms": NOW_MS - 4000,
        "scored": True,
        "score_us": 29_400,
        "parts": [
            admin_route_pb2.RouteScorePart(name="rtt", us=18_400),
            admin_route_pb2.RouteScorePart(name="loss", us=0),
            admin_route_pb2.RouteScorePart(name="relay", us=10_000 if relay else 0),
        ],
        "weight": 100 if relay else 0,
    }
    return admin_route_pb2.RouteCandidateView(**{**values, **changes})


def decision(*reasons: str, **changes: Any) -> admin_route_pb2.RouteDecisionView:
    values: dict[str, Any] = {
        "generation": 3,
        "relay_node_id": RELAY_ID,
        "relay_name": "relay-a",
        "rule": "UNHEALTHY",
        "reasons": [admin_route_pb2.RouteReason(text=text) for text in reasons],
        "decided_at_ms": NOW_MS - 192_000,
        "decided_by": "server",
    }
    return admin_route_pb2.RouteDecisionView(**{**values, **changes})


def observation(**changes: Any) -> admin_route_pb2.RouteObservationView:
    values: dict[str, Any] = {
        "observation_type": "SYNTHETIC_ROUTE_HEALTH",
        "reporter_name": "press-1",
        "generation": 3,
        "state": "HEALTHY",
        "expected_hops": ["press-1", "relay-a", "oven"],
        "observed_hops": ["press-1", "relay-a", "oven"],
        "rtt_us": 18_400,
        "received_at_ms": NOW_MS - 4000,
    }
    return admin_route_pb2.RouteObservationView(**{**values, **changes})


def relay(**changes: Any) -> admin_route_pb2.RelayView:
    values: dict[str, Any] = {
        "node_id": RELAY_ID,
        "name": "relay-a",
        "site": "berlin",
        "capacity": 50,
        "weight": 100,
        "load": 2,
        "usable": True,
        "added_at_ms": NOW_MS,
        "added_by": "ada",
    }
    return admin_route_pb2.RelayView(**{**values, **changes})


def lease(**changes: Any) -> admin_route_pb2.RouteLeaseView:
    values: dict[str, Any] = {
        "lease_id": "le_1",
        "relay_node_id": RELAY_ID,
        "relay_name": "relay-a",
        "generation": 2,
        "issued_at_ms": NOW_MS - 30_000,
        "expires_at_ms": NOW_MS + 90_000,
        "acknowledged_at_ms": NOW_MS - 29_000,
    }
    return admin_route_pb2.RouteLeaseView(**{**values, **changes})
