"""Records of the routes room as messages of the Admin service, with the names of the nodes in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fleet.v1 import admin_route_pb2, route_pb2
from fleet_server.routes import outlook_rules
from fleet_server.routes.model import Candidate, Scored
from fleet_server.routes.record import DecisionRecord, LeaseRecord, ObservationRecord, RouteRecord
from fleet_server.routes.service import Explanation, RelayView, RouteView

Names = Mapping[str, str]
"""Name by node id; a node that is gone has none, and is shown by its id."""


def route_ids(route: RouteRecord) -> Iterator[str]:
    """Nodes that its view names."""
    yield from route.path


def route_view(route: RouteRecord, names: Names) -> admin_route_pb2.RouteView:
    """A route."""
    return admin_route_pb2.RouteView(
        route_id=route.route_id,
        name=route.name,
        source_node_id=route.source_id,
        source_name=_name(route.source_id, names),
        destination_node_id=route.destination_id,
        destination_name=_name(route.destination_id, names),
        relay_node_id=route.relay_id,
        relay_name=_name(route.relay_id, names),
        enabled=route.enabled,
        service_class=route.service_class,
        probe_interval_ms=route.probe_interval_ms,
        generation=route.generation,
        state=route.state,
        rtt_us=route.rtt_us,
        loss_permille=route.loss_permille,
        observed_at_ms=route.observed_at_ms,
        state_since_ms=route.state_since_ms,
        decided_at_ms=route.decided_at_ms,
        waiting_rendezvous=route.waiting_rendezvous,
        created_at_ms=route.created_at_ms,
        created_by=route.created_by,
        quarantined=not route.intact,
    )


def whole_ids(view: RouteView) -> Iterator[str]:
    """Nodes that the view of one route names."""
    yield from route_ids(view.route)
    yield from view.configs
    yield from view.route.members
    if view.lease is not None:
        yield view.lease.relay_id
    yield from observation_ids(view.latest)


def whole_view(view: RouteView, names: Names) -> admin_route_pb2.GetRouteResponse:
    """A route with what belongs to it."""
    return admin_route_pb2.GetRouteResponse(
        route=route_view(view.route, names),
        lease=_lease_view(view.lease, names),
        observations=[observation_view(each, names) for each in view.latest],
        members=sorted(_members(view, names), key=lambda member: member.name),
    )


def explanation_ids(found: Explanation) -> Iterator[str]:
    """Nodes that an explanation names."""
    yield from whole_ids(found.view)
    yield from found.known
    yield from (known.blamed for known in found.known.values())
    yield from (way.relay_id for way in found.live.scores)
    if found.decision is not None:
        yield from decision_ids(found.decision)


def explanation_view(found: Explanation, names: Names) -> admin_route_pb2.ExplainRouteResponse:
    """Why a route takes its path."""
    route = found.view.route
    live = found.live
    return admin_route_pb2.ExplainRouteResponse(
        route=route_view(route, names),
        decision=decision_view(found.decision, names) if found.decision else None,
        candidates=[_way_now(way, found.known, route.relay_id, names) for way in live.scores],
        lease=_lease_view(found.view.lease, names),
        outlook=admin_route_pb2.RouteDecisionView(
            generation=route.generation,
            relay_node_id=live.relay_id,
            relay_name=_name(live.relay_id, names),
            rule=live.rule,
            reasons=[_reason_view(each.text, each.numbers) for each in live.reasons],
            decided_at_ms=found.now_ms,
        ),
        would_switch=outlook_rules.would_switch(
            route.relay_id, (route.source_id, route.destination_id), live, found.policy
        )
        if route.enabled and route.intact
        else (),
        now_ms=found.now_ms,
    )


def decision_ids(made: DecisionRecord) -> Iterator[str]:
    """Nodes that a decision names."""
    yield from made.path
    yield from (str(way.get("relay_id", "")) for way in _objects(made.scores))


def decision_view(made: DecisionRecord, names: Names) -> admin_route_pb2.RouteDecisionView:
    """A decision as it was stored."""
    relay_id = made.path[1] if len(made.path) > 2 else ""
    return admin_route_pb2.RouteDecisionView(
        generation=made.generation,
        relay_node_id=relay_id,
        relay_name=_name(relay_id, names),
        rule=made.rule,
        reasons=[_reason_view(str(each.get("text", "")), each.get("numbers", {})) for each in _objects(made.reasons)],
        decided_at_ms=made.decided_at_ms,
        decided_by=made.decided_by,
        considered=[_way_view(way, relay_id, names) for way in _objects(made.scores)],
    )


def observation_ids(found: Iterable[ObservationRecord]) -> Iterator[str]:
    """Nodes that observations name."""
    for each in found:
        yield from (each.reporter_id, each.blamed_id, *each.expected_hops, *each.observed_hops)


def observation_view(seen: ObservationRecord, names: Names) -> admin_route_pb2.RouteObservationView:
    """An observation."""
    return admin_route_pb2.RouteObservationView(
        observation_type=_word(route_pb2.ObservationType, "OBSERVATION_TYPE_", seen.observation_type),
        reporter_node_id=seen.reporter_id,
        reporter_name=_name(seen.reporter_id, names),
        generation=seen.generation,
        state=_word(route_pb2.RouteState, "ROUTE_STATE_", seen.state),
        expected_hops=[_name(hop, names) for hop in seen.expected_hops],
        observed_hops=[_name(hop, names) for hop in seen.observed_hops],
        rtt_us=seen.rtt_us,
        loss_permille=seen.loss_permille,
        observed_at_ms=seen.observed_at_ms,
        received_at_ms=seen.received_at_ms,
        failure=seen.failure,
        blamed_node_id=seen.blamed_id,
        blamed_name=_name(seen.blamed_id, names),
        failed_hop=seen.failed_hop,
    )


def relay_view(view: RelayView, names: Names) -> admin_route_pb2.RelayView:
    """A node of the relay pool."""
    relay = view.relay
    return admin_route_pb2.RelayView(
        node_id=relay.node_id,
        name=_name(relay.node_id, names),
        site=view.site,
        capacity=relay.capacity,
        weight=relay.weight,
        load=view.load,
        usable=not view.why_not,
        why_not=view.why_not,
        added_at_ms=relay.added_at_ms,
        added_by=relay.added_by,
    )


def _objects(found: Iterable[object]) -> list[Mapping[str, Any]]:
    """What a row holds that may be anything: it has no MAC, since it confers nothing."""
    return [each for each in found if isinstance(each, Mapping)]


def _number(value: object) -> int:
    return int(value) if isinstance(value, int | float) and 0 <= value < 2**53 else 0


def _way_view(way: Mapping[str, Any], chosen: str, names: Names) -> admin_route_pb2.RouteCandidateView:
    """One way as a decision saw it."""
    relay_id = str(way.get("relay_id", ""))
    parts = way.get("parts")
    figures = {str(name): _number(us) for name, us in parts.items()} if isinstance(parts, Mapping) else {}
    weight = figures.pop("weight", 0)
    return admin_route_pb2.RouteCandidateView(
        relay_node_id=relay_id,
        relay_name=_name(relay_id, names),
        effective=relay_id == chosen,
        state=str(way.get("state", "")),
        rtt_us=figures.get("rtt", 0),
        observed_at_ms=_number(way.get("observed_at_ms")),
        scored=way.get("score_us") is not None,
        score_us=_number(way.get("score_us")),
        parts=[admin_route_pb2.RouteScorePart(name=name, us=us) for name, us in figures.items()],
        weight=min(weight, 0xFFFFFFFF),
        penalty=_number(way.get("penalty")),
        suppressed_until_ms=_number(way.get("suppressed_until_ms")),
        stale_since_ms=_number(way.get("stale_since_ms")),
        held_out=str(way.get("held_out", "")),
    )


def _way_now(
    way: Scored, known: Mapping[str, Candidate], chosen: str, names: Names
) -> admin_route_pb2.RouteCandidateView:
    """One way as it would be seen now, and what is remembered of it."""
    view = _way_view(asdict(way), chosen, names)
    memory = known.get(way.relay_id)
    if memory is not None:
        view.rtt_us, view.loss, view.samples = memory.rtt_us, memory.loss, memory.samples
        view.failure, view.blamed_node_id, view.blamed_name = memory.failure, memory.blamed, _name(memory.blamed, names)
    return view


def _lease_view(lease: LeaseRecord | None, names: Names) -> admin_route_pb2.RouteLeaseView | None:
    if lease is None or not lease.intact:
        return None
    return admin_route_pb2.RouteLeaseView(
        lease_id=lease.lease_id,
        relay_node_id=lease.relay_id,
        relay_name=_name(lease.relay_id, names),
        generation=lease.generation,
        issued_at_ms=lease.issued_at_ms,
        expires_at_ms=lease.expires_at_ms,
        acknowledged_at_ms=lease.acked_at_ms if lease.acked_generation == lease.generation else 0,
        withdrawn=lease.withdrawn,
    )


def _members(view: RouteView, names: Names) -> Iterator[admin_route_pb2.RouteMemberView]:
    for node_id in view.route.members:
        config = view.configs.get(node_id)
        member = admin_route_pb2.RouteMemberView(node_id=node_id, name=_name(node_id, names))
        if config is not None:
            member.version, member.applied_version = config.version, config.applied_version
            member.applied, member.reason, member.applied_at_ms = config.applied, config.reason, config.applied_at_ms
        yield member


def _reason_view(text: str, numbers: object) -> admin_route_pb2.RouteReason:
    told = numbers if isinstance(numbers, Mapping) else {}
    return admin_route_pb2.RouteReason(text=text, numbers={str(key): str(value) for key, value in told.items()})


def _name(node_id: str, names: Names) -> str:
    return names.get(node_id, node_id)


def _word(enum: Any, prefix: str, number: int) -> str:
    """An enum value without its prefix; a value that this server does not know is its number."""
    try:
        return str(enum.Name(number)).removeprefix(prefix)
    except ValueError:
        return str(number)


def all_ids(*found: Iterable[str]) -> Sequence[str]:
    """Each node id once."""
    return sorted({node_id for ids in found for node_id in ids if node_id})
