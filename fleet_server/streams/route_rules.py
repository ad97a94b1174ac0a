"""What a node may say about routes on its stream: pure. What it means is the routes room's."""

from __future__ import annotations

from collections.abc import Collection

from fleet.errors import Reason, Refusal
from fleet.v1 import lease_pb2, route_pb2

MAX_OBSERVATIONS = 512
"""Of a frame; so many asks, and so many reports of earlier ones, too."""
MAX_HOPS = 5
MAX_ID_CHARS = 64
MAX_WORD_CHARS = 64
"""Of a reason or a failure: a stable word, no sentence."""
MAX_WITHDRAWN = 4096

_STATES = frozenset(route_pb2.RouteState.values()) - {route_pb2.ROUTE_STATE_UNSPECIFIED}
_TYPES = frozenset(route_pb2.ObservationType.values()) - {route_pb2.OBSERVATION_TYPE_UNSPECIFIED}
_OUTCOMES = frozenset(route_pb2.RefreshOutcome.values()) - {route_pb2.REFRESH_OUTCOME_UNSPECIFIED}


def check_health(health: route_pb2.RouteHealth) -> route_pb2.RouteHealth:
    """What this server knows of a frame of route health: states, types and outcomes of a newer node are passed over
    (docs/protocol.md, "Route health").

    Raises:
        Refusal: MALFORMED for a frame that says nothing, holds more than a frame may, or ids and words that are none.
    """
    if not (health.observations or health.refresh_routes or health.refreshes or health.refreshes_held_back):
        raise _malformed("a frame of route health that says nothing")
    if max(len(health.observations), len(health.refresh_routes), len(health.refreshes)) > MAX_OBSERVATIONS:
        raise _malformed(f"a frame of route health holds at most {MAX_OBSERVATIONS} of anything: send several")
    _check_ids(health.refresh_routes)
    known = True
    for found in health.observations:
        _check_observation(found)
        known &= _is_known(found)
    for report in health.refreshes:
        _check_ids([report.route_id])
        _check_words(report.relay_node_id)
        known &= report.outcome in _OUTCOMES
    if known:
        return health
    return route_pb2.RouteHealth(
        observations=[found for found in health.observations if _is_known(found)],
        refresh_routes=health.refresh_routes,
        refreshes=[report for report in health.refreshes if report.outcome in _OUTCOMES],
        refreshes_held_back=health.refreshes_held_back,
    )


def check_applied(applied: route_pb2.ConfigApplied) -> None:
    """Whether a node says in order which snapshot it runs.

    Raises:
        Refusal: MALFORMED.
    """
    if len(applied.withdrawn_routes) > MAX_WITHDRAWN:
        raise _malformed(f"a snapshot withdraws at most {MAX_WITHDRAWN} routes")
    _check_ids(applied.withdrawn_routes)
    _check_words(applied.reason)


def check_lease_ack(ack: lease_pb2.LeaseAck) -> None:
    """Whether a node says in order which lease it holds.

    Raises:
        Refusal: MALFORMED.
    """
    _check_ids([ack.lease_id])
    _check_words(ack.reason)


def is_urgent(found: route_pb2.RouteObservation) -> bool:
    """Whether a finding calls for a decision now."""
    return (
        found.state in (route_pb2.ROUTE_STATE_DRIFT, route_pb2.ROUTE_STATE_UNREACHABLE)
        or found.observation_type == route_pb2.OBSERVATION_TYPE_LEASE
    )


def _is_known(found: route_pb2.RouteObservation) -> bool:
    return found.state in _STATES and found.observation_type in _TYPES


def _check_observation(found: route_pb2.RouteObservation) -> None:
    expected, observed = found.expected_hops, found.observed_hops
    if len(expected) > MAX_HOPS or len(observed) > MAX_HOPS:
        raise _malformed(f"a path has at most {MAX_HOPS} nodes")
    _check_ids((found.route_id, *expected, *observed))
    _check_words(found.blamed_node_id, found.failure)


def _check_ids(ids: Collection[str]) -> None:
    if ids and not 0 < min(map(len, ids)) <= max(map(len, ids)) <= MAX_ID_CHARS:
        raise _malformed(f"an id has 1 to {MAX_ID_CHARS} characters")


def _check_words(*words: str) -> None:
    if max(map(len, words)) > MAX_WORD_CHARS:
        raise _malformed(f"a reason, a failure or a node that is blamed has at most {MAX_WORD_CHARS} characters")


def _malformed(detail: str) -> Refusal:
    return Refusal(Reason.MALFORMED, detail)
