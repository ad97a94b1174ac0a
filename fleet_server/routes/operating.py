"""What operators do with routes: make, switch on and off, remove."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from fleet.errors import Reason, Refusal
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import JSON
from fleet_server.database.engine import IntegrityError
from fleet_server.database.writer import Transaction
from fleet_server.nodes import rules as node_rules
from fleet_server.nodes.checklist import ChecklistItem
from fleet_server.nodes.record import NodeRecord, NodeState
from fleet_server.routes import decision_store, finding_store, operator_rules
from fleet_server.routes.model import DIRECT, Decision, DecisionRule
from fleet_server.routes.model import Reason as Because
from fleet_server.routes.parts import SWEEP_TOPIC, RouteParts, new_id
from fleet_server.routes.record import SYNTHETIC, RouteRecord
from fleet_server.routes.rules import decide

MAX_ROUTES = 10_000
MAX_ROUTES_OF_END = 500
"""Its part of the configuration has to fit into one frame."""


class Created(NamedTuple):
    """A new route, and what its maker should know."""

    route: RouteRecord
    notes: tuple[str, ...]


class RouteOperations(RouteParts):
    """Operators' use cases around routes."""

    async def create(
        self, *, source: str, destination: str, name: str = "", probe_interval_ms: int = 0, by: str
    ) -> Created:
        """Make a route between two nodes.

        Args:
            source: name or id of the node that probes.
            destination: name or id of the other end.
            name: empty for one made of those of its ends.
            probe_interval_ms: 0 for the default.
            by: operator's name.

        Raises:
            Refusal: NOT_FOUND for a node; INVALID_ARGUMENT; SUSPENDED, REVOKED or QUARANTINED as an end is; CONFLICT
                when there is such a route, or its name is taken; QUEUE_FULL when there are too many.
        """
        ends = (await self.nodes.get(source), await self.nodes.get(destination))
        operator_rules.check_ends(ends[0].node_id, ends[1].node_id)
        chosen = operator_rules.checked_name(name, ends[0].name, ends[1].name)
        interval_ms = operator_rules.checked_interval_ms(probe_interval_ms)

        def work(tx: Transaction) -> Created | Refusal:
            self.nodes.hold(tx, [end.node_id for end in ends])
            found = self.nodes.load_all(tx.conn, [end.node_id for end in ends])
            pair = [found[end.node_id] for end in ends]
            for node in pair:
                if refusal := node_rules.refuse_inactive(node):
                    return Refusal(
                        refusal.reason,
                        f"node {node.name} takes no part in routes: {refusal.detail}",
                        metadata=refusal.metadata,
                    )
            if conflict := self._conflict(tx, chosen, pair):
                return conflict
            return self._created(tx, chosen, pair, interval_ms, by)

        try:
            answer = await self.database.write(work)
        except IntegrityError:  # another replica made it at this moment: it is there now, and named
            answer = await self.database.write(work)
        if isinstance(answer, Refusal):
            raise answer
        return answer

    async def set_enabled(self, ref: str, *, enabled: bool, by: str) -> RouteRecord:
        """Switch a route on or off. One that is off is in nobody's snapshot, and has no lease; its history stays.

        Raises:
            Refusal: NOT_FOUND; QUARANTINED for a row that was changed outside the server; as `create` when an end of
                one to be switched on may not take part.
        """

        def work(tx: Transaction) -> RouteRecord | Refusal:
            seen = self.routes.by_ref(tx.conn, ref)
            if seen is None:
                return _unknown(ref)
            self.nodes.hold(tx, [seen.source_id, seen.destination_id])
            route = self.routes.by_ids(tx.conn, [seen.route_id], lock=True).get(seen.route_id)
            if route is None:
                return _unknown(ref)
            if not route.intact:
                return _tampered(route)
            if route.enabled == enabled:
                return route
            if enabled:
                for node in self.nodes.load_all(tx.conn, [route.source_id, route.destination_id]).values():
                    if refusal := node_rules.refuse_inactive(node):
                        return refusal
            return self._switch(tx, route, enabled=enabled, by=by, why="")

        answer = await self.database.write(work)
        if isinstance(answer, Refusal):
            raise answer
        return answer

    async def remove(self, ref: str, *, by: str) -> RouteRecord:
        """Remove a route with its lease and its history; the audit keeps that it was. The route as it was.

        Raises:
            Refusal: NOT_FOUND.
        """

        def work(tx: Transaction) -> RouteRecord | Refusal:
            route = self.routes.by_ref(tx.conn, ref, lock=True)
            if route is None:
                return _unknown(ref)
            holder = self.leases.of_routes(tx.conn, [route.route_id]).get(route.route_id)
            members = self.routes.delete(tx.conn, route.route_id)
            self.leases.delete(tx.conn, route.route_id)
            finding_store.delete_route(tx.conn, route.route_id)
            decision_store.delete_route(tx.conn, route.route_id)
            self._audit_route(tx, AuditKind.ROUTE_REMOVED, by, route, {})
            self.tell(tx, members | ({holder.relay_id} if holder else set()))
            return route

        answer = await self.database.write(work)
        if isinstance(answer, Refusal):
            raise answer
        return answer

    # -- when nodes change ----------------------------------------------------------------------------------------
    def node_ended(self, tx: Transaction, node_id: str) -> Sequence[ChecklistItem]:
        """A node's machine is revoked, or another one takes its place, in the transaction that does it: where it
        listened is forgotten, and its leases are withdrawn. One that was revoked relays no more, and routes that it is
        an end of are switched off; another machine goes on where that one was."""
        self.peers.delete(tx.conn, node_id)
        node = self.nodes.load(tx.conn, node_id)
        revoked = node is None or node.state is NodeState.REVOKED
        if revoked and self.relays.delete(tx.conn, node_id):
            subject, detail = f"node:{node_id}", {"why": "the node was revoked"}
            self.audit.append(tx, AuditKind.RELAY_REMOVED, actor="server", subject=subject, detail=detail)
        # All at once, behind the pool's row and before any lease and any version: others take them in that order.
        held = [lease.route_id for lease in self.leases.of_relays(tx.conn, [node_id])]
        touched = {*held, *self.routes.ids_touching(tx.conn, node_id)}
        for route in self.routes.by_ids(tx.conn, touched, lock=True).values():
            ends = (route.source_id, route.destination_id)
            if revoked and route.enabled and route.intact and node_id in ends:
                self._switch(tx, route, enabled=False, by="server", why=f"node {node_id} was revoked")
        self._take_leases(tx, node_id)
        return ()

    # -- shared with the pool -------------------------------------------------------------------------------------
    def _take_leases(self, tx: Transaction, node_id: str) -> None:
        """Withdraw what a node holds; its routes get another way with the next sweep, which is woken."""
        now_ms = self.now_ms()
        held = [lease.route_id for lease in self.leases.of_relays(tx.conn, [node_id])]
        routes = self.routes.by_ids(tx.conn, held, lock=True)
        told = {node_id}
        for lease in self.leases.of_routes(tx.conn, held, lock=True).values():
            if lease.relay_id == node_id and lease.intact and not lease.withdrawn:
                self.withdraw_lease(tx, lease, now_ms)
                told.add(routes[lease.route_id].source_id if lease.route_id in routes else node_id)
        if len(told) > 1:
            self.tell_leases(tx, told)
        self.wake(tx, [SWEEP_TOPIC])

    def _switch(self, tx: Transaction, route: RouteRecord, *, enabled: bool, by: str, why: str) -> RouteRecord:
        now_ms = self.now_ms()
        if enabled:
            route = replace(route, enabled=True, relay_id=DIRECT, state="UNKNOWN", state_since_ms=now_ms)
            decision = self._first(tx, route, now_ms)
        else:
            lease = self.leases.of_routes(tx.conn, [route.route_id], lock=True).get(route.route_id)
            if lease is not None and lease.intact and not lease.withdrawn:
                self.withdraw_lease(tx, lease, now_ms)
                self.tell_leases(tx, [lease.relay_id, route.source_id])
            route = replace(route, enabled=False)
            because = Because(why or f"switched off by {by}")
            decision = Decision(route.relay_id, False, DecisionRule.ROUTE_DISABLED, (because,), (), (), False)
        changed, members = self.adopt(tx, route, decision, now_ms=now_ms, by=by)
        self.routes.save_health(tx.conn, [changed.health])
        detail: Mapping[str, JSON] = {"enabled": enabled, "generation": changed.generation, "why": why}
        self._audit_route(tx, AuditKind.ROUTE_CHANGED, by, changed, detail)
        self.tell(tx, members)
        return changed

    def _first(self, tx: Transaction, route: RouteRecord, now_ms: int) -> Decision:
        """A decision as if nothing were known: what was found before is old, and no relay has a lease yet."""
        nodes = self.nodes.load_all(tx.conn, [route.source_id, route.destination_id])
        fresh = replace(self.as_decided(route, nodes, None), generation=0)
        return decide(fresh, {}, self.pool(tx.conn), now_ms, self.policy)

    def _created(self, tx: Transaction, name: str, ends: Sequence[NodeRecord], interval_ms: int, by: str) -> Created:
        now_ms = self.now_ms()
        source, destination = ends
        route = RouteRecord(
            route_id=new_id("rt"),
            cluster_id=self.trust.cluster_id,
            name=name,
            source_id=source.node_id,
            destination_id=destination.node_id,
            service_class=SYNTHETIC,
            probe_interval_ms=interval_ms,
            enabled=True,
            created_at_ms=now_ms,
            created_by=by,
            generation=0,
            relay_id=DIRECT,
            candidates=(),
            waiting_rendezvous=False,
            decided_at_ms=0,
            state_since_ms=now_ms,
        )
        self.routes.insert(tx.conn, route)
        changed, members = self.adopt(tx, route, self._first(tx, route, now_ms), now_ms=now_ms, by=by)
        detail: Mapping[str, JSON] = {
            "source": source.node_id,
            "destination": destination.node_id,
            "probe_interval_ms": interval_ms,
        }
        self._audit_route(tx, AuditKind.ROUTE_CREATED, by, changed, detail)
        self.tell(tx, members)
        self.wake(tx, [SWEEP_TOPIC])
        listening = self.peers.by_ids(tx.conn, [destination.node_id])
        notes = (
            [f"node {destination.name} has no probe listener, so nobody can reach it: set probe_listen there"]
            if destination.node_id not in listening
            else []
        )
        notes += [f"node {node.name} is offline" for node in ends if not node.online]
        return Created(changed, tuple(notes))

    def _conflict(self, tx: Transaction, name: str, ends: Sequence[NodeRecord]) -> Refusal | None:
        source, destination = ends
        there = self.routes.between(tx.conn, source.node_id, destination.node_id, SYNTHETIC)
        if there is not None:
            return Refusal(
                Reason.CONFLICT,
                f"route {there.name!r} leads from {source.name} to {destination.name} already:"
                f" `fleetctl routes show {there.name}`",
                metadata={"route": there.name},
            )
        if self.routes.by_ref(tx.conn, name) is not None:
            return Refusal(Reason.CONFLICT, f"another route is called {name!r} already: choose another name (--name)")
        if self.routes.count(tx.conn) >= MAX_ROUTES:
            return Refusal(Reason.QUEUE_FULL, f"there are {MAX_ROUTES} routes already: remove some")
        for node in ends:
            if self.routes.count(tx.conn, node.node_id) >= MAX_ROUTES_OF_END:
                sentence = f"node {node.name} is an end of {MAX_ROUTES_OF_END} routes already: remove some"
                return Refusal(Reason.QUEUE_FULL, sentence)
        return None

    def _audit_route(
        self, tx: Transaction, kind: AuditKind, by: str, route: RouteRecord, detail: Mapping[str, JSON]
    ) -> None:
        self.audit.append(tx, kind, actor=by, subject=f"route:{route.route_id}", detail={"name": route.name, **detail})


def _unknown(ref: str) -> Refusal:
    return Refusal(Reason.NOT_FOUND, f"no route is called {ref[:80]!r}: `fleetctl routes list` shows them all")


def _tampered(route: RouteRecord) -> Refusal:
    return Refusal(
        Reason.QUARANTINED,
        f"the record of route {route.name!r} was changed outside the server: remove the route and make it anew",
    )
