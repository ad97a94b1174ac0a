"""Which observations are believed, and what they say. docs/protocol.md, "Route health". Pure.

A node tells of its own routes alone. What it says of them steers these routes and no others: a lie costs the liar.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from enum import StrEnum

from fleet.v1 import route_pb2
from fleet_server.routes.finding_rules import AHEAD_MS, MAX_RTT_US
from fleet_server.routes.model import BAD, DIRECT, GOOD, Finding, PathState, Policy, Route

KEPT_FOR_MS = 60_000
"""What is no older is believed however short the interval is: a stream may have been slow."""
MAX_GENERATIONS_BEHIND = 2
"""Walks that were under way while the path changed still tell of the ways that they took."""
_STATES = {
    route_pb2.ROUTE_STATE_HEALTHY: PathState.HEALTHY,
    route_pb2.ROUTE_STATE_DEGRADED: PathState.DEGRADED,
    route_pb2.ROUTE_STATE_DRIFT: PathState.DRIFT,
    route_pb2.ROUTE_STATE_UNREACHABLE: PathState.UNREACHABLE,
}
_WALKED = frozenset({route_pb2.OBSERVATION_TYPE_SYNTHETIC_ROUTE_HEALTH, route_pb2.OBSERVATION_TYPE_CANDIDATE_PATH})
_WORD = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


class Doubt(StrEnum):
    """Why an observation is not believed."""

    NOT_ITS_ROUTE = "NOT_ITS_ROUTE"  # the reporter is not the source, nor, where the lease is concerned, the relay
    UNKNOWN_KIND = "UNKNOWN_KIND"  # a type or state that this server does not know
    OTHER_GENERATION = "OTHER_GENERATION"  # one that was never decided, or long ago
    OTHER_PATH = "OTHER_PATH"  # that is no way of this route, or not the one that its generation has
    UNKNOWN_RELAY = "UNKNOWN_RELAY"  # that was never offered to it
    NOT_SANE = "NOT_SANE"  # numbers or hops that contradict themselves
    FROM_THE_FUTURE = "FROM_THE_FUTURE"
    TOO_OLD = "TOO_OLD"  # nothing newer than what is known, or so old that it says nothing


def is_walk(observation: route_pb2.RouteObservation) -> bool:
    """Whether it tells of a way, so that `finding_of` can be folded."""
    return observation.observation_type in _WALKED


def way_of(route: Route, hops: Sequence[str]) -> str | None:
    """The way that a path of node ids is; None when it is no way of this route."""
    if len(hops) not in (2, 3) or hops[0] != route.source_id or hops[-1] != route.destination_id:
        return None
    if len(hops) == 2:
        return DIRECT
    relay_id = hops[1]
    return None if relay_id in ("", route.source_id, route.destination_id) else relay_id


def doubt(
    observation: route_pb2.RouteObservation,
    reporter_id: str,
    route: Route,
    offered: Collection[str],
    newest_at_ms: int,
    now_ms: int,
    policy: Policy,
) -> Doubt | None:
    """Why an observation is not believed; None when it is.

    Args:
        reporter_id: node on whose stream it came.
        offered: ids of relays that were offered to it before, and are in the pool.
        newest_at_ms: when the newest believed one of this type, about the same way, was observed; 0 for none.
        now_ms: server time.
    """
    about_lease = observation.observation_type == route_pb2.OBSERVATION_TYPE_LEASE
    if reporter_id != route.source_id and not (about_lease and reporter_id == route.relay_id != DIRECT):
        return Doubt.NOT_ITS_ROUTE
    if observation.state not in _STATES or observation.observation_type not in _KINDS:
        return Doubt.UNKNOWN_KIND
    if not 0 <= route.generation - observation.generation <= MAX_GENERATIONS_BEHIND:
        return Doubt.OTHER_GENERATION
    if observation.observed_at_ms > now_ms + AHEAD_MS:
        return Doubt.FROM_THE_FUTURE
    oldest_ms = now_ms - max(KEPT_FOR_MS, policy.candidate_interval_ms(route) * policy.stale_after_intervals)
    # What was believed was never ahead of the clock: if the newest is, the clock went back since.
    known_ms = newest_at_ms if newest_at_ms <= now_ms else 0
    if observation.observed_at_ms < oldest_ms or min(observation.observed_at_ms, now_ms) <= known_ms:
        return Doubt.TOO_OLD
    return _doubt_path(observation, route, offered) or _doubt_figures(observation)


def finding_of(observation: route_pb2.RouteObservation, route: Route, now_ms: int) -> Finding:
    """What a believed walk says. What is not evidence in it is left out: a word that is none, a culprit that had no
    part in it.

    Raises:
        ValueError: it is no walk of this route; ask `doubt` first.
    """
    way = way_of(route, observation.expected_hops)
    if way is None or not is_walk(observation):
        raise ValueError("only a believed walk of this route is a finding")
    state = _STATES[observation.state]
    took_part = observation.blamed_node_id in (*observation.expected_hops, *observation.observed_hops)
    return Finding(
        relay_id=way,
        state=state,
        rtt_us=observation.rtt_us,
        loss_permille=observation.loss_permille,
        at_ms=min(observation.observed_at_ms, now_ms),
        failure=_word(observation.failure) if state in BAD else "",
        failed_hop=observation.failed_hop if state in BAD else 0,
        blamed=observation.blamed_node_id if state in BAD and took_part else "",
    )


_KINDS = frozenset({*_WALKED, route_pb2.OBSERVATION_TYPE_PEER_CONNECTION, route_pb2.OBSERVATION_TYPE_LEASE})


def _doubt_path(observation: route_pb2.RouteObservation, route: Route, offered: Collection[str]) -> Doubt | None:
    """Rows are kept of each way and each peer: a source that made some up would fill the tables."""
    hops = list(observation.expected_hops)
    if observation.observation_type == route_pb2.OBSERVATION_TYPE_PEER_CONNECTION:
        if len(hops) != 2 or hops[0] != route.source_id:
            return Doubt.OTHER_PATH
        hops = [*dict.fromkeys((*hops, route.destination_id))]
    way = way_of(route, hops)
    effective = observation.observation_type == route_pb2.OBSERVATION_TYPE_SYNTHETIC_ROUTE_HEALTH
    if way is None or (effective and observation.generation == route.generation and way != route.relay_id):
        return Doubt.OTHER_PATH
    return None if way == DIRECT or way in route.ways or way in offered else Doubt.UNKNOWN_RELAY


def _doubt_figures(observation: route_pb2.RouteObservation) -> Doubt | None:
    answers = is_walk(observation) and _STATES[observation.state] in GOOD
    if answers and (
        not observation.rtt_us or observation.failed_hop or observation.observed_hops != observation.expected_hops
    ):
        return Doubt.NOT_SANE
    sane = (
        observation.rtt_us <= MAX_RTT_US
        and observation.loss_permille <= 1000
        and observation.failed_hop < max(1, len(observation.expected_hops))
    )
    return None if sane else Doubt.NOT_SANE


def _word(text: str) -> str:
    return text if _WORD.fullmatch(text) else ("OTHER" if text else "")
