"""Deciding in a transaction: load under row locks, fold what was found, decide, and write all that follows.

Mental model
    `hold` locks the rows of routes that nobody else holds, in the order of their ids, and reads what is known of their
    ways, their leases and the pool. `settle` decides about each of them and writes everything of that in the same
    transaction: what is remembered, the route, its decision with reasons, its lease, the versions of the snapshots that
    show it, one audit row for all.
    No replica leads. Of two that decide about one route at once the second passes it over, and reads what the first one
    decided when it comes back to it: each generation is made once.
    A route over a relay that holds no lease gets one with the next generation, whatever became of the one before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import JSON
from fleet_server.database.writer import Transaction
from fleet_server.nodes.record import NodeRecord
from fleet_server.observability.route_metrics import RouteMetrics
from fleet_server.routes import config_store, decision_store, due_store, finding_store, leasing, waiting_rules
from fleet_server.routes.lease_rules import LeaseStep
from fleet_server.routes.leasing import Times
from fleet_server.routes.model import Candidate, Decision, Finding, PathState, Route
from fleet_server.routes.parts import CONFIG_KIND, LEASE_KIND, TOPIC, RouteParts, decision_record
from fleet_server.routes.pool import Pool
from fleet_server.routes.record import DecisionRecord, LeaseRecord, RouteHealth, RouteRecord
from fleet_server.routes.rules import decide, fold, state_now
from fleet_server.routes.turn_rules import Turns
from fleet_server.routes.waiting_rules import Looked

MAX_ROUTES = 256
"""Decided in one transaction: the writer, and every other replica that wants one of these rows, waits for it."""
_MAX_ENDS = 50_000
_MAX_LOOKED = 50_000  # routes that are made and removed for ever would fill memory
_OUTCOMES = {LeaseStep.GRANT: "granted", LeaseStep.RENEW: "renewed", LeaseStep.WITHDRAW: "withdrawn"}


@dataclass(slots=True)
class Held:
    """Routes whose rows a transaction holds, and what it read about them.

    Args:
        known: what is remembered of each way, by route and relay.
        leases: the newest of each route.
        views: the routes as rules see them.
        busy: routes that were asked for, and whose rows somebody else holds.
    """

    routes: dict[str, RouteRecord]
    known: dict[str, dict[str, Candidate]]
    leases: dict[str, LeaseRecord]
    views: dict[str, Route]
    pool: Pool
    times: Times
    busy: Set[str]


@dataclass(slots=True)
class _Writes:
    """What follows from the decisions of one transaction."""

    candidates: list[tuple[str, Candidate]] = field(default_factory=list)
    health: list[RouteHealth] = field(default_factory=list)
    routes: list[RouteRecord] = field(default_factory=list)
    leases: list[LeaseRecord] = field(default_factory=list)
    renewed_for: set[str] = field(default_factory=set)
    decisions: list[DecisionRecord] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    looked: dict[str, Looked] = field(default_factory=dict)
    turns: list[tuple[str, int, int]] = field(default_factory=list)


class Deciding:
    """Decides about routes; jobs of the writer call it.

    Args:
        parts: of the room.
        metrics: told of what is committed.
    """

    def __init__(self, parts: RouteParts, metrics: RouteMetrics) -> None:
        self._parts = parts
        self._metrics = metrics
        self._ends: dict[str, NodeRecord] = {}
        self._looked: dict[str, Looked] = {}
        self._turns = Turns()

    def hold(self, tx: Transaction, route_ids: Iterable[str]) -> Held:
        """Lock routes and read what a decision about them needs. Those that are gone, and rows that do not verify, are
        missing, and so are those that somebody else holds: a replica that froze in the middle of one holds up the
        routes that it was at, and no others.
        """
        parts = self._parts
        times = parts.times()
        asked = set(route_ids)
        free = due_store.hold_free(tx.conn, asked)
        left = asked.difference(free)
        found = parts.routes.by_ids(tx.conn, free)
        routes = {route_id: route for route_id, route in sorted(found.items()) if route.intact}
        self._learn_ends(tx, routes.values())
        known = finding_store.candidates_of(tx.conn, routes)
        leases = parts.leases.of_routes(tx.conn, routes)
        views = {route_id: self._view(route, leases.get(route_id), times) for route_id, route in routes.items()}
        busy = due_store.existing(tx.conn, left) if left else frozenset()
        return Held(routes, known, leases, views, Pool(parts.pool(tx.conn)), times, busy)

    def _view(self, route: RouteRecord, lease: LeaseRecord | None, times: Times) -> Route:
        return self._parts.as_decided(route, self._ends, leasing.shown(lease, times))

    def settle(self, tx: Transaction, held: Held, findings: Mapping[str, Sequence[Finding]] | None = None) -> None:
        """Decide about every route that is held, and write what follows.

        Args:
            findings: by route id; None when it is not for what nodes told that these routes are looked at.
        """
        writes, parts = _Writes(), self._parts
        told = findings is not None
        findings = findings or {}
        for route_id, route in held.routes.items():
            self._decide(writes, held, route, findings.get(route_id, ()), told=told)
        finding_store.save_candidates(tx.conn, writes.candidates)
        parts.routes.save_health(tx.conn, writes.health)
        touched: set[str] = set()
        for route in writes.routes:
            touched |= parts.routes.save(tx.conn, route)
        for lease in writes.leases:
            parts.leases.save(tx.conn, lease)
        decision_store.save(tx.conn, writes.decisions)
        config_store.bump(tx.conn, touched, held.times.now_ms)
        self._audit(tx, writes.decisions, held)
        tx.after_commit(lambda: self._remember(writes))  # a job that is run again has decided nothing before
        self._announce(tx, writes, touched)

    def _remember(self, writes: _Writes) -> None:
        if len(self._looked) + len(writes.looked) > _MAX_LOOKED:
            self._looked.clear()
            self._turns.clear()
        self._looked |= writes.looked
        for turn in writes.turns:
            self._turns.take(*turn)

    def _decide(
        self, writes: _Writes, held: Held, route: RouteRecord, findings: Sequence[Finding], *, told: bool
    ) -> None:
        policy, times = self._parts.policy, held.times
        before = held.known.get(route.route_id, {})
        view = held.views[route.route_id]
        known = fold(before, findings, policy, view.ways) if findings else before
        after = route
        turn = route.route_id, view.probe_interval_ms, times.now_ms
        usable = held.pool.is_usable(route.relay_id)
        last = self._looked.get(route.route_id)
        as_it_was = findings and waiting_rules.may_wait(
            view, before, known, last, times.now_ms, policy, relay_usable=usable
        )
        if not (as_it_was or (told and not self._turns.may(*turn))):
            writes.looked[route.route_id] = waiting_rules.looked(known, times.now_ms, policy)
            decision = decide(view, known, held.pool.listed(), times.now_ms, policy)
            if decision.charged:
                known = {**known, **{row.relay_id: row for row in decision.charged}}
            after = self._follow(writes, held, route, decision)
            if told and decision.switched:
                writes.turns.append(turn)
        writes.candidates += [(route.route_id, row) for way, row in known.items() if before.get(way) is not row]
        if after is not route:
            view = replace(view, relay_id=after.relay_id, decided_at_ms=after.decided_at_ms)
        row = known.get(after.relay_id)
        state = state_now(row, view, times.now_ms, policy) if route.enabled else PathState.UNKNOWN
        health = _health(after, row, state, times.now_ms)
        if health is not None:
            writes.health.append(health)

    def _follow(self, writes: _Writes, held: Held, route: RouteRecord, decision: Decision) -> RouteRecord:
        """The route as it was decided; what that changes is added to `writes`."""
        lease = held.leases.get(route.route_id)
        step, lent = leasing.step(
            route,
            decision.relay_id,
            lease,
            renewable=held.pool.is_usable(decision.relay_id),
            times=held.times,
            ttl_ms=self._parts.policy.lease_ttl_ms,
        )
        self._note_lease(writes, held, route, lease, step, lent)
        if decision.switched:
            held.pool.moved(route.relay_id, decision.relay_id)
        moved = decision.switched or step is LeaseStep.GRANT
        beside = (decision.candidates, decision.waiting_rendezvous)
        if not moved and beside == (route.candidates, route.waiting_rendezvous):
            return route
        # What its source walks beside the path is no decision about the path.
        after = replace(
            route,
            generation=route.generation + moved,
            relay_id=decision.relay_id,
            candidates=decision.candidates,
            waiting_rendezvous=decision.waiting_rendezvous,
            decided_at_ms=held.times.now_ms if moved else route.decided_at_ms,
        )
        writes.routes.append(after)
        if moved:
            writes.decisions.append(decision_record(after, decision, now_ms=held.times.now_ms, by="server"))
        return after

    def _note_lease(
        self,
        writes: _Writes,
        held: Held,
        route: RouteRecord,
        before: LeaseRecord | None,
        step: LeaseStep,
        after: LeaseRecord | None,
    ) -> None:
        if after is not None:
            writes.leases.append(after)
            writes.outcomes[_OUTCOMES[step]] += 1
        if before is None or not before.intact or before.withdrawn:
            return
        if not before.holds(held.times.past_ms):
            writes.outcomes["expired"] += step is LeaseStep.GRANT
        elif step is LeaseStep.GRANT:
            writes.outcomes["withdrawn"] += 1
        elif step is LeaseStep.RENEW:
            writes.renewed_for |= {before.relay_id, route.source_id}

    def _learn_ends(self, tx: Transaction, routes: Iterable[RouteRecord]) -> None:
        """A node's site is given to it when it joins, and stays: it is looked up once."""
        ends = {node_id for route in routes for node_id in (route.source_id, route.destination_id)}
        unknown = ends.difference(self._ends)
        if not unknown:
            return
        if len(self._ends) + len(unknown) > _MAX_ENDS:
            self._ends.clear()
            unknown = ends
        self._ends |= self._parts.nodes.load_all(tx.conn, sorted(unknown))

    def _audit(self, tx: Transaction, decisions: Sequence[DecisionRecord], held: Held) -> None:
        if not decisions:
            return
        told: list[JSON] = [
            {
                "route": each.route_id,
                "generation": each.generation,
                "relay": each.path[1] if len(each.path) > 2 else "",
                "rule": each.rule,
            }
            for each in decisions
        ]
        subject = f"route:{decisions[0].route_id}" if len(decisions) == 1 else f"routes:{len(decisions)}"
        detail: Mapping[str, JSON] = {"decisions": told}
        self._parts.audit.append(tx, AuditKind.ROUTE_DECIDED, actor="server", subject=subject, detail=detail)

    def _announce(self, tx: Transaction, writes: _Writes, touched: set[str]) -> None:
        parts = self._parts
        topics = [f"{CONFIG_KIND}:{node_id}" for node_id in sorted(touched)]
        topics += [f"{LEASE_KIND}:{node_id}" for node_id in sorted(writes.renewed_for - touched)]
        if topics:
            tx.after_commit(lambda: parts.concerned.update(touched))
            tx.first_after_commit(lambda: parts.wakeup.spread_nowait([*topics, TOPIC]))
        elif writes.health:
            tx.after_commit(lambda: parts.wakeup.wake_nowait([TOPIC]))
        rules = Counter(each.rule for each in writes.decisions)
        if rules or writes.outcomes:
            tx.after_commit(lambda: self._metrics.decided(rules, writes.outcomes))


def _health(route: RouteRecord, row: Candidate | None, state: PathState, now_ms: int) -> RouteHealth | None:
    """What is known of the way that a route takes; None when that is no news."""
    seen_ms, rtt_us, loss = (row.observed_at_ms, round(row.rtt_us), round(row.loss * 1000)) if row else (0, 0, 0)
    known = (route.state, route.observed_at_ms, route.rtt_us, route.loss_permille)
    if known == (state.value, seen_ms, rtt_us, loss):
        return None
    since_ms = route.state_since_ms if state.value == route.state else now_ms
    return RouteHealth(state.value, since_ms, seen_ms, rtt_us, loss, route.route_id)
