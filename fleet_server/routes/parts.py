"""What this room consists of: its stores, what it needs of others, and what decisions and changes have in common.

Mental model
    A route's row, its lease and its members change together, in one transaction that holds the route's row; several are
    taken as their ids grow. Nodes' rows are taken before routes', routes' before leases', and versions of nodes' parts
    come last, so that nobody waits in a circle. Whoever changes what a node's part shows raises its version in that
    transaction, and wakes its stream after the commit; other replicas hear of it by hint, or find it when they look.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial

from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.service import AuditService
from fleet_server.database.engine import Connection, Database
from fleet_server.database.wakeup import Wakeup
from fleet_server.database.writer import Transaction
from fleet_server.nodes.record import DrainState, NodeRecord, NodeState
from fleet_server.nodes.service import NodeService
from fleet_server.routes import config_store, decision_store
from fleet_server.routes.leasing import Times
from fleet_server.routes.model import Decision, HeldLease, Policy, Relay, Route
from fleet_server.routes.pool import Absences
from fleet_server.routes.quarantine import Quarantine
from fleet_server.routes.record import DecisionRecord, LeaseRecord, RouteRecord
from fleet_server.routes.relay_store import LeaseStore, PeerStore, RelayStore
from fleet_server.routes.route_store import RouteStore
from fleet_server.trust.secrets import RowMac
from fleet_server.trust.service import TrustService

TOPIC = "routes"
CONFIG_KIND = "route-config"
LEASE_KIND = "route-lease"
RELAY_LOSS_MS = 15_000
RETENTION_MS = 7 * 86_400_000
SWEEP_TOPIC = "route-sweep"
"""Woken when something was decided that routes have to follow at once: a relay left, a node was suspended."""


class RouteParts:
    """What everything of this room works with.

    Args:
        row_mac: MAC of a table by its name.
        policy: constants of decisions.
        relay_loss_ms: a relay that has been offline for longer is gone.
        retention_ms: how long history is kept.
    """

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        wakeup: Wakeup,
        audit: AuditService,
        nodes: NodeService,
        trust: TrustService,
        row_mac: Callable[[str], RowMac],
        policy: Policy | None = None,
        relay_loss_ms: int = RELAY_LOSS_MS,
        retention_ms: int = RETENTION_MS,
    ) -> None:
        self.database = database
        self.clock = clock
        self.wakeup = wakeup
        self.audit = audit
        self.nodes = nodes
        self.trust = trust
        self.policy = policy or Policy()
        self._absences = Absences(relay_loss_ms, clock.monotonic)
        self.retention_ms = retention_ms
        self.quarantine = Quarantine(database, audit)
        note = self.quarantine.note
        self.routes = RouteStore(row_mac("routes"), partial(note, AuditKind.ROUTE_QUARANTINED))
        self.relays = RelayStore(row_mac("relays"), partial(note, AuditKind.RELAY_QUARANTINED))
        self.leases = LeaseStore(row_mac("route_leases"), partial(note, AuditKind.ROUTE_LEASE_QUARANTINED))
        self.peers = PeerStore(row_mac("route_peers"), partial(note, AuditKind.PROBE_LISTENER_QUARANTINED))
        self.concerned: set[str] = set()
        """Nodes that have, or had, a part of the configuration. Belongs to the event loop."""

    def now_ms(self) -> int:
        """Unix milliseconds that replicas agree on."""
        return self.nodes.now_ms()

    def past_ms(self) -> int:
        """Unix milliseconds: what lies before is past by this machine's clock and by the one that replicas agree on."""
        return self.database.clock.past_ms(self.clock)

    def times(self) -> Times:
        """This moment by each clock."""
        return Times(self.database.clock.now_ms(self.clock), self.clock.now_ms(), self.past_ms())

    # -- what a decision sees -------------------------------------------------------------------------------------
    def pool(self, conn: Connection) -> list[Relay]:
        """The relay pool as decisions see it, by id. Any thread."""
        past_ms = self.database.clock.past_ms(self.clock)
        members = [relay for relay in self.relays.every(conn) if relay.intact]
        ids = [relay.node_id for relay in members]
        nodes, peers, loads = self.nodes.load_all(conn, ids), self.peers.by_ids(conn, ids), self.routes.loads(conn)
        self._absences.keep_only(ids)
        found = []
        for relay in members:
            node = nodes.get(relay.node_id)
            why_not = self._why_not(node, relay.node_id in peers, past_ms)
            found.append(
                Relay(
                    node_id=relay.node_id,
                    site=relay.site or (node.site if node else ""),
                    capacity=relay.capacity,
                    weight=relay.weight,
                    load=loads.get(relay.node_id, 0),
                    usable=not why_not,
                    why_not=why_not,
                )
            )
        return found

    def as_decided(
        self,
        record: RouteRecord,
        nodes: Mapping[str, NodeRecord],
        lease: HeldLease | None,
    ) -> Route:
        """A route as decisions see it.

        Args:
            nodes: its ends, by id.
            lease: its newest one (`leasing.shown`).
        """
        source, destination = nodes.get(record.source_id), nodes.get(record.destination_id)
        return Route(
            route_id=record.route_id,
            source_id=record.source_id,
            source_site=source.site if source else "",
            destination_id=record.destination_id,
            destination_site=destination.site if destination else "",
            probe_interval_ms=record.probe_interval_ms,
            generation=record.generation,
            relay_id=record.relay_id,
            candidates=record.candidates,
            waiting_rendezvous=record.waiting_rendezvous,
            lease=lease,
            decided_at_ms=record.decided_at_ms,
            enabled=record.enabled,
        )

    def _why_not(self, node: NodeRecord | None, listens: bool, past_ms: int) -> str:
        if node is None:
            return "there is no such node"
        if node.state is not NodeState.ACTIVE:
            return f"the node is {node.state}"
        if node.drain_state is not DrainState.NONE:
            return "the node is drained"
        if not listens:
            return "it has no probe listener: set probe_listen on the node"
        if self._absences.is_lost(node, past_ms):
            return "the node is offline"
        return ""

    # -- changes --------------------------------------------------------------------------------------------------
    def adopt(
        self, tx: Transaction, record: RouteRecord, decision: Decision, *, now_ms: int, by: str
    ) -> tuple[RouteRecord, frozenset[str]]:
        """Store a decision that changes what nodes do, for a route that the transaction holds: the next generation.

        Returns:
            The route as it is now, and the nodes that have to hear of it (`tell`).
        """
        changed = replace(
            record,
            generation=record.generation + 1,
            relay_id=decision.relay_id,
            candidates=decision.candidates,
            waiting_rendezvous=decision.waiting_rendezvous,
            decided_at_ms=now_ms,
        )
        members = self.routes.save(tx.conn, changed)
        decision_store.save(tx.conn, [decision_record(changed, decision, now_ms=now_ms, by=by)])
        return changed, members

    def withdraw_lease(self, tx: Transaction, lease: LeaseRecord, now_ms: int) -> LeaseRecord:
        """Take a lease back, of a route that the transaction holds; its time of expiry stays, so that whoever holds it
        is told for as long as it would hold."""
        withdrawn = replace(lease, withdrawn=True, issued_at_ms=max(now_ms, lease.issued_at_ms + 1))
        self.leases.save(tx.conn, withdrawn)
        return withdrawn

    def tell(self, tx: Transaction, node_ids: Iterable[str]) -> None:
        """Raise the versions of nodes' parts, last in the transaction, and wake their streams after the commit."""
        told = sorted(set(node_ids))
        if told:
            config_store.bump(tx.conn, told, self.now_ms())
        self.wake_parts(tx, told)

    def wake_parts(self, tx: Transaction, node_ids: Sequence[str]) -> None:
        """Wake the streams of nodes whose parts have new versions."""
        tx.after_commit(lambda: self.concerned.update(node_ids))
        self.wake(tx, [*(f"{CONFIG_KIND}:{node_id}" for node_id in node_ids), TOPIC])

    def tell_leases(self, tx: Transaction, node_ids: Iterable[str]) -> None:
        """Wake the streams of nodes whose leases were renewed or withdrawn."""
        self.wake(tx, [f"{LEASE_KIND}:{node_id}" for node_id in sorted(set(node_ids))])

    def wake(self, tx: Transaction, topics: Sequence[str]) -> None:
        """Wake topics here after the commit, and hint at them elsewhere."""
        if topics:
            tx.after_commit(lambda: self.wakeup.spread_nowait(topics))

    def nodes_decided(self, tx: Transaction, node_ids: Sequence[str]) -> None:
        """Something was decided about nodes, in that transaction: whoever has one of them in its part is told, and
        routes follow at once."""
        concerned = self.routes.neighbours(tx.conn, node_ids)
        if concerned:
            self.tell(tx, concerned)
            self.wake(tx, [SWEEP_TOPIC])

    # -- finding --------------------------------------------------------------------------------------------------
    def find(self, conn: Connection, ref: str, *, lock: bool = False) -> RouteRecord:
        """A route by name or id.

        Raises:
            Refusal: NOT_FOUND.
        """
        found = self.routes.by_ref(conn, ref, lock=lock)
        if found is None:
            raise Refusal(Reason.NOT_FOUND, f"no route is called {ref[:80]!r}: `fleetctl routes list` shows them all")
        return found


def decision_record(route: RouteRecord, decision: Decision, *, now_ms: int, by: str) -> DecisionRecord:
    """A decision as it is kept, for the generation that `route` has."""
    return DecisionRecord(
        route_id=route.route_id,
        generation=route.generation,
        path=route.way(decision.relay_id),
        rule=str(decision.rule),
        reasons=[{"text": reason.text, "numbers": dict(reason.numbers)} for reason in decision.reasons],
        scores=[{**asdict(each), "parts": dict(each.parts), "state": str(each.state)} for each in decision.scores],
        decided_at_ms=now_ms,
        decided_by=by,
    )


def new_id(prefix: str) -> str:
    """An id that nobody can guess, and that is no name: an underscore is in none."""
    return f"{prefix}_" + base64.b32encode(secrets.token_bytes(15)).decode().lower()
