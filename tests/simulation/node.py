"""A simulated node: the rules of fleet_node/routes with a mesh for probes and a timeline for a clock."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fleet_node.routes.feedback_rules import Feedback, Refresh
from fleet_node.routes.health_rules import Finding, RouteState
from fleet_node.routes.outbox import gather_ms
from fleet_node.routes.rules import EffectivePath, HeldLease, Policy, accept_lease, apply, may_use
from fleet_node.routes.schedule_rules import LEASE_EXPIRED, NEVER_MS, Report, RouteWalks, Walk
from fleet_node.routes.walk_rules import WalkResult, WalkState
from tests.simulation.mesh import Mesh
from tests.simulation.timeline import Timeline

GRACE_INTERVALS = 2


@dataclass(frozen=True, slots=True)
class Snapshot:
    version: int
    routes: tuple[EffectivePath, ...]
    leases: tuple[HeldLease, ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """RouteHealth."""

    findings: tuple[Finding, ...]
    refresh: tuple[str, ...]


class Node:
    """One node. `uplink` takes what it reports, `in_force` hears of each path a route of it takes (None: withdrawn)."""

    def __init__(
        self,
        node_id: str,
        timeline: Timeline,
        mesh: Mesh,
        policy: Policy,
        uplink: Callable[[Frame], None],
        in_force: Callable[[str, tuple[str, ...] | None], None],
        seed: int,
    ) -> None:
        self.node_id = node_id
        self.refreshes: list[Refresh] = []
        self.asked: list[tuple[int, str]] = []
        self.feedback = Feedback(policy, random.Random(f"{seed}{node_id}ask").random)
        self._timeline, self._mesh, self._policy, self._uplink = timeline, mesh, policy, uplink
        self._in_force = in_force
        self._chance = random.Random(f"{seed}{node_id}").random
        self._peers: dict[str, Node] = {}
        self._version = 0
        self._routes: dict[str, EffectivePath] = {}
        self._held: list[Finding] = []
        self._said: dict[tuple[str, str, tuple[str, ...]], RouteState] = {}
        self._say_planned = False
        self._before: dict[str, tuple[EffectivePath, int]] = {}
        self._leases: dict[str, HeldLease] = {}
        self._walks: dict[str, RouteWalks] = {}
        self._timers: dict[str, int] = {}
        self._life = 0

    def meet(self, peers: dict[str, Node]) -> None:
        self._peers = peers

    # --- what the control plane sends ---------------------------------------------------------------------------------

    def snapshot(self, snapshot: Snapshot) -> None:
        if not self._mesh.node_up(self.node_id) or snapshot.version < self._version:
            return
        now_ms = self._timeline.now_ms
        self._version = snapshot.version
        held = self._routes
        applied = apply(held, snapshot.routes)
        for lease in snapshot.leases:
            self._leases[lease.route_id], _ = accept_lease(self._leases.get(lease.route_id), lease)
        self._routes = dict(applied.routes)
        for route_id, route in self._routes.items():
            if route_id in held and held[route_id] != route:
                self._before[route_id] = held[route_id], now_ms + GRACE_INTERVALS * route.probe_interval_ms
        for route_id in applied.withdrawn:
            self._walks.pop(route_id, None)
            self._leases.pop(route_id, None)
        self.refreshes += self.feedback.answered(snapshot.version, self._routes, now_ms)
        for route_id in applied.replaced:
            self.feedback.clear(route_id)
        self.feedback.keep([route_id for route_id, route in self._routes.items() if self._is_source(route)])
        for route_id, route in self._routes.items():
            if self._is_source(route):
                self._take_over(route, now_ms)
                if route_id in applied.replaced:
                    self._tell(route_id)

    def lease(self, lease: HeldLease) -> None:
        if lease.route_id in self._routes and self._mesh.node_up(self.node_id):
            self._leases[lease.route_id], _ = accept_lease(self._leases.get(lease.route_id), lease)
            if lease.route_id in self._walks:
                self._check_lease(lease.route_id)

    # --- what peers ask -----------------------------------------------------------------------------------------------

    def admits(self, walk: Walk, hop: int) -> str:
        """Why this node refuses a walk; empty: it takes it."""
        now_ms = self._timeline.now_ms
        configs = [self._routes[walk.route_id]] if walk.route_id in self._routes else []
        before = self._before.get(walk.route_id)
        if configs and before and now_ms <= before[1]:
            configs.append(before[0])
        fitting = [
            config
            for config in configs
            if config.generation == walk.generation and walk.path in (config.path, *config.candidates)
        ]
        if not fitting:
            return "UNKNOWN_GENERATION" if configs else "UNKNOWN_ROUTE"
        relays_effective = hop < len(walk.path) - 1 and walk.path == fitting[0].path
        if relays_effective and not may_use(fitting[0], self._leases.get(walk.route_id), now_ms):
            return LEASE_EXPIRED
        return ""

    # --- life ---------------------------------------------------------------------------------------------------------

    def died(self) -> None:
        self._life += 1
        self._walks.clear()
        self._timers.clear()
        self._held, self._said, self._say_planned = [], {}, False
        self.feedback.disconnected()

    def returned(self) -> None:
        """The snapshot has survived in its file; a newer one comes with the stream."""
        for route in self._routes.values():
            if self._is_source(route):
                self._take_over(route, self._timeline.now_ms)

    # --- its own walks ------------------------------------------------------------------------------------------------

    def _is_source(self, route: EffectivePath) -> bool:
        return route.path[0] == self.node_id

    def _take_over(self, route: EffectivePath, now_ms: int) -> None:
        walks = self._walks.get(route.route_id)
        if walks is None:
            self._walks[route.route_id] = RouteWalks(route, self._policy, now_ms, self._chance)
        else:
            walks.replace(route, now_ms)
        self._check_lease(route.route_id)

    def _check_lease(self, route_id: str) -> None:
        walks, lease, now_ms = self._walks[route_id], self._leases.get(route_id), self._timeline.now_ms
        was_lost = walks.lease_lost
        covered = may_use(walks.route, lease, now_ms)
        self._report(walks.lease_changed(covered, now_ms))
        if walks.lease_lost != was_lost:
            self._tell(route_id)
        if lease and lease.covers(walks.route, now_ms) and walks.route.relay_id:
            self._timeline.at(lease.expires_at_ms, self._lease_ends, self._life, route_id, lease.expires_at_ms)
        self._wake(route_id)

    def _lease_ends(self, life: int, route_id: str, expires_at_ms: int) -> None:
        lease = self._leases.get(route_id)
        if life == self._life and route_id in self._walks and lease and lease.expires_at_ms == expires_at_ms:
            self._check_lease(route_id)

    def _tell(self, route_id: str) -> None:
        walks = self._walks[route_id]
        self._in_force(route_id, None if walks.lease_lost else walks.route.path)

    def _wake(self, route_id: str) -> None:
        """Plans the next tick; one that was planned for later falls silent."""
        at_ms = self._walks[route_id].next_ms
        if at_ms < NEVER_MS and self._timers.get(route_id) != at_ms:
            self._timers[route_id] = at_ms
            self._timeline.at(at_ms, self._tick, self._life, route_id, at_ms)

    def _tick(self, life: int, route_id: str, planned_ms: int) -> None:
        if life != self._life or self._timers.get(route_id) != planned_ms or route_id not in self._walks:
            return
        del self._timers[route_id]
        for walk in self._walks[route_id].due(self._timeline.now_ms):
            took_ms, result = self._walked(walk)
            self._timeline.after(took_ms, self._finished, life, walk, result)
        self._wake(route_id)

    def _walked(self, walk: Walk) -> tuple[int, WalkResult]:
        path, now_ms = walk.path, self._timeline.now_ms
        unanswered = WalkResult(path, path[:1], 0, 0, WalkState.UNREACHABLE, "TIMED_OUT", 1)
        for hop in range(1, len(path)):
            if not self._mesh.link_up(path[hop - 1], path[hop]):
                return walk.timeout_ms, replace(unanswered, observed=path[:hop], failed_hop=hop)
            if refusal := self._peers[path[hop]].admits(walk, hop):
                state = WalkState.UNREACHABLE if refusal == LEASE_EXPIRED else WalkState.INCONCLUSIVE
                took_ms = self._mesh.rtt_us(path[: hop + 1], now_ms) // 1000 + 1
                return took_ms, WalkResult(path, path[:hop], 0, 0, state, refusal, hop)
        rtt_us = self._mesh.rtt_us(path, now_ms)
        if self._mesh.is_lost(path, now_ms) or rtt_us > walk.timeout_ms * 1000:
            return walk.timeout_ms, unanswered
        first_us = min(rtt_us, self._mesh.rtt_us(path[:2], now_ms))
        return rtt_us // 1000 + 1, WalkResult(path, path, rtt_us, first_us, WalkState.ANSWERED)

    def _finished(self, life: int, walk: Walk, result: WalkResult) -> None:
        walks = self._walks.get(walk.route_id)
        if life != self._life or walks is None:
            return
        self._report(walks.finished(walk, result, self._timeline.now_ms))
        self._wake(walk.route_id)

    def _report(self, report: Report | None) -> None:
        if report is None:
            return
        now_ms = self._timeline.now_ms
        if report.healed:
            self.feedback.clear(report.route_id)
        self.refreshes += self.feedback.expire(now_ms)
        wanted: Sequence[EffectivePath] = [self._routes[report.route_id]] if report.ask else []
        asked = self.feedback.ask(wanted, self._version, now_ms)
        self.asked += [(now_ms, route_id) for route_id in asked]
        news = any(each.state.bad or self._said.get(_key(each)) is not each.state for each in report.findings)
        self._held += report.findings
        if news or asked:
            self._say(self._life, asked)
        elif not self._say_planned:
            self._say_planned = True
            self._timeline.after(gather_ms(self._routes[report.route_id]), self._say, self._life)

    def _say(self, life: int, asked: tuple[str, ...] = ()) -> None:
        """As outbox.py has it: what is no news waits for others."""
        if life != self._life:
            return
        findings, self._held, self._say_planned = tuple(self._held), [], False
        if findings or asked:
            self._said |= {_key(each): each.state for each in findings}
            self._uplink(Frame(findings, asked))


def _key(finding: Finding) -> tuple[str, str, tuple[str, ...]]:
    return finding.route_id, finding.type, finding.path
