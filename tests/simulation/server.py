"""The simulated control plane: the rules of fleet_server/routes with dictionaries in place of tables.

As in the product: what arrives is batched (what is urgent not at all, news for half a second, the rest for longer), a
batch is folded and decided route by route with the load counted anew after each, whoever shows a changed part gets its
snapshot, and a sweep looks after leases, lost relays and what nobody has seen lately.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from fleet_node.routes.health_rules import Finding as Observation
from fleet_node.routes.health_rules import ObservationType, RouteState
from fleet_node.routes.rules import EffectivePath
from fleet_node.routes.rules import HeldLease as NodeLease
from fleet_node.routes.schedule_rules import NEVER_MS
from fleet_server.routes.recording import MAX_WAIT_S, NEWS_WAIT_S
from fleet_server.routes.rules import (
    BAD,
    DIRECT,
    Candidate,
    Decision,
    Finding,
    HeldLease,
    PathState,
    Policy,
    Relay,
    Route,
    fold,
    state_now,
)
from fleet_server.routes.waiting_rules import Looked, looked, may_wait
from tests.simulation.node import Frame, Snapshot
from tests.simulation.timeline import Timeline
from tests.simulation.trace import Decided, Plan

NEWS_WAIT_MS = round(NEWS_WAIT_S * 1000)
MAX_WAIT_MS = round(MAX_WAIT_S * 1000)
SWEEP_MS = 1_000
COMMIT_MS = 20
RELAY_LOSS_MS = 15_000

Decide = Callable[[Route, dict[str, Candidate], Sequence[Relay], int, Policy], Decision]
_WALKED = (ObservationType.SYNTHETIC_ROUTE_HEALTH, ObservationType.CANDIDATE_PATH)


class Server:
    """`send_snapshot` and `send_lease` deliver after the node's own delay."""

    def __init__(
        self,
        plan: Plan,
        timeline: Timeline,
        decide: Decide,
        policy: Policy,
        send_snapshot: Callable[[str, Snapshot], None],
        send_lease: Callable[[str, NodeLease], None],
    ) -> None:
        self.decisions: list[Decided] = []
        self.busiest: Counter[str] = Counter()
        self._timeline, self._decide_one, self._policy = timeline, decide, policy
        self._send_snapshot, self._send_lease = send_snapshot, send_lease
        sites = {node.node_id: node.site for node in plan.nodes}
        self._routes = {
            route.route_id: Route(
                route.route_id,
                route.source,
                sites[route.source],
                route.destination,
                sites[route.destination],
                plan.interval_ms,
            )
            for route in plan.routes
        }
        self._known: dict[str, dict[str, Candidate]] = {route_id: {} for route_id in self._routes}
        self._pool = {
            each.node_id: Relay(each.node_id, sites[each.node_id], each.capacity, each.weight, 0, True)
            for each in plan.relays
        }
        self._looked: dict[str, Looked] = {}
        self._offline_ms: dict[str, int] = {}
        self._arrived: list[Frame] = []
        self._asking: set[str] = set()
        self._flush_ms = NEVER_MS
        self._stored: dict[tuple[str, str, tuple[str, ...]], RouteState] = {}
        self._versions: Counter[str] = Counter()
        self._waking: set[str] = set()
        self._part_of: dict[str, set[str]] = {}
        for route_id in sorted(self._routes):
            self._decide(route_id)
        timeline.after(SWEEP_MS, self._sweep)

    # --- streams ------------------------------------------------------------------------------------------------------

    def received(self, node_id: str, frame: Frame) -> None:
        if node_id in self._offline_ms:
            return
        self._arrived.append(frame)
        if frame.refresh:
            self._asking.add(node_id)
        if any(finding.state.bad for finding in frame.findings):
            self._flush(self._timeline.now_ms)
            return
        due_ms = self._timeline.now_ms + min(map(self._may_wait_ms, frame.findings), default=NEWS_WAIT_MS)
        if frame.refresh:
            due_ms = min(due_ms, self._timeline.now_ms + NEWS_WAIT_MS)
        if due_ms < self._flush_ms:
            self._flush_ms = due_ms
            self._timeline.at(due_ms, self._flush, due_ms)

    def _may_wait_ms(self, finding: Observation) -> int:
        if self._stored.get((finding.route_id, finding.type, finding.path)) is not finding.state:
            return NEWS_WAIT_MS
        return max(NEWS_WAIT_MS, min(MAX_WAIT_MS, self._routes[finding.route_id].probe_interval_ms // 5))

    def stream_ended(self, node_id: str) -> None:
        self._offline_ms[node_id] = self._timeline.now_ms

    def stream_opened(self, node_id: str) -> None:
        self._offline_ms.pop(node_id, None)
        if node_id in self._pool and not self._pool[node_id].usable:
            self._pool[node_id] = replace(self._pool[node_id], usable=True, why_not="")
        self._wake(node_id)

    # --- deciding -----------------------------------------------------------------------------------------------------

    def _flush(self, due_ms: int) -> None:
        if due_ms > self._flush_ms:
            return  # that one was brought forward
        self._flush_ms = NEVER_MS
        frames, self._arrived = self._arrived, []
        by_route: dict[str, list[Finding]] = {}
        for observation in (each for frame in frames for each in frame.findings):
            by_route.setdefault(observation.route_id, []).extend(self._findings(observation))
            self._stored[observation.route_id, observation.type, observation.path] = observation.state
        for route_id in sorted(by_route):
            route = self._routes[route_id]
            before = self._known[route_id]
            self._known[route_id] = fold(before, by_route[route_id], self._policy, route.ways)
            if not self._may_wait(route, before):
                self._decide(route_id)
        asking, self._asking = self._asking, set()
        for node_id in sorted(asking):
            self._wake(node_id)

    def _may_wait(self, route: Route, before: dict[str, Candidate]) -> bool:
        known, last = self._known[route.route_id], self._looked[route.route_id]
        usable = not route.relay_id or self._pool[route.relay_id].usable
        return may_wait(route, before, known, last, self._timeline.now_ms, self._policy, relay_usable=usable)

    @staticmethod
    def _findings(observation: Observation) -> list[Finding]:
        if observation.type not in _WALKED:
            return []
        return [
            Finding(
                observation.path[1] if len(observation.path) > 2 else DIRECT,
                PathState(observation.state.value),
                observation.rtt_us,
                observation.loss_permille,
                observation.at_ms,
                observation.failure,
                observation.failed_hop,
                observation.blamed,
            )
        ]

    def _decide(self, route_id: str) -> None:
        route, now_ms = self._routes[route_id], self._timeline.now_ms
        self._looked[route_id] = looked(self._known[route_id], now_ms, self._policy)
        decision = self._decide_one(route, self._known[route_id], list(self._pool.values()), now_ms, self._policy)
        for row in decision.charged:
            self._known[route_id][row.relay_id] = row
        lease = self._lease_for(route, decision.relay_id, now_ms)
        moved = decision.switched or lease is not route.lease
        after = replace(
            route,
            generation=route.generation + moved,
            relay_id=decision.relay_id,
            candidates=decision.candidates,
            waiting_rendezvous=decision.waiting_rendezvous,
            lease=lease,
            decided_at_ms=now_ms if moved else route.decided_at_ms,
        )
        if after == route:
            return
        self._routes[route_id] = after
        if decision.switched:
            self._count(route.relay_id, -1 if route.generation else 0)
            self._count(after.relay_id, 1)
            self.decisions.append(Decided(now_ms, route_id, after.generation, after.relay_id, str(decision.rule)))
        ends = {route.source_id, route.destination_id}
        shown = ends | ({*route.ways, *after.ways} - {DIRECT})
        for node_id in shown:
            shows = node_id in ends or node_id in after.ways
            (self._part_of.setdefault(node_id, set()).add if shows else self._part_of[node_id].discard)(route_id)
        for node_id in sorted(shown):
            self._versions[node_id] += 1
            self._wake(node_id)

    def _lease_for(self, route: Route, relay_id: str, now_ms: int) -> HeldLease | None:
        lease = route.lease
        if relay_id == DIRECT or (lease and lease.relay_id == relay_id and now_ms < lease.expires_at_ms):
            return lease
        generation = lease.generation + 1 if lease else 1
        return HeldLease(relay_id, generation, now_ms + self._policy.lease_ttl_ms)

    def _count(self, relay_id: str, change: int) -> None:
        if relay_id in self._pool:
            relay = self._pool[relay_id]
            self._pool[relay_id] = replace(relay, load=relay.load + change)
            self.busiest[relay_id] = max(self.busiest[relay_id], relay.load + change)

    # --- sweep --------------------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        now_ms = self._timeline.now_ms
        for relay_id in self._pool.keys() & self._offline_ms.keys():
            if self._pool[relay_id].usable and now_ms - self._offline_ms[relay_id] > RELAY_LOSS_MS:
                self._pool[relay_id] = replace(self._pool[relay_id], usable=False, why_not="it is offline")
        for route_id, route in sorted(self._routes.items()):
            known = self._known[route_id].get(route.relay_id)
            if route.relay_id != DIRECT:
                if not self._pool[route.relay_id].usable:
                    self._decide(route_id)
                    continue
                self._renew(route_id, now_ms)
            if known and known.state not in BAD and state_now(known, route, now_ms, self._policy) is PathState.UNKNOWN:
                self._decide(route_id)
        self._timeline.after(SWEEP_MS, self._sweep)

    def _renew(self, route_id: str, now_ms: int) -> None:
        """When a third of its life is over."""
        route, ttl_ms = self._routes[route_id], self._policy.lease_ttl_ms
        lease = route.lease
        if lease is None or route.relay_id in self._offline_ms or lease.expires_at_ms - now_ms > ttl_ms * 2 // 3:
            return
        if now_ms >= lease.expires_at_ms:
            self._decide(route_id)
            return
        renewed = replace(lease, expires_at_ms=now_ms + ttl_ms)
        self._routes[route_id] = replace(route, lease=renewed)
        for node_id in (route.source_id, route.relay_id):
            self._send_lease(node_id, self._node_lease(route_id, renewed))

    # --- snapshots ----------------------------------------------------------------------------------------------------

    def _wake(self, node_id: str) -> None:
        if node_id not in self._waking and node_id not in self._offline_ms:
            self._waking.add(node_id)
            self._timeline.after(COMMIT_MS, self._send, node_id)

    def _send(self, node_id: str) -> None:
        self._waking.discard(node_id)
        routes = [self._routes[route_id] for route_id in sorted(self._part_of.get(node_id, ()))]
        leases = [self._node_lease(each.route_id, each.lease) for each in routes if each.lease and each.relay_id]
        self._send_snapshot(
            node_id, Snapshot(self._versions[node_id], tuple(self._config(route) for route in routes), tuple(leases))
        )

    def _config(self, route: Route) -> EffectivePath:
        def path(way: str) -> tuple[str, ...]:
            return (route.source_id, way, route.destination_id) if way else (route.source_id, route.destination_id)

        return EffectivePath(
            route.route_id,
            route.generation,
            path(route.relay_id),
            tuple(path(way) for way in route.candidates),
            route.probe_interval_ms,
            self._policy.candidate_interval_ms(route),
            route.waiting_rendezvous,
        )

    def _node_lease(self, route_id: str, lease: HeldLease) -> NodeLease:
        return NodeLease(route_id, route_id, lease.relay_id, lease.generation, lease.expires_at_ms)
