"""What operators do with the relay pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from fleet.errors import Reason, Refusal
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import JSON
from fleet_server.database.engine import Connection, IntegrityError
from fleet_server.database.writer import Transaction
from fleet_server.nodes import rules as node_rules
from fleet_server.routes import operator_rules
from fleet_server.routes.operating import RouteOperations
from fleet_server.routes.parts import SWEEP_TOPIC
from fleet_server.routes.record import RelayRecord

MAX_RELAYS = 1_000


class RelayView(NamedTuple):
    """A node of the relay pool, and how it is.

    Args:
        site: its own, or its node's.
        load: routes that lead over it now.
        why_not: what keeps it from relaying, in words; empty when nothing does.
    """

    relay: RelayRecord
    site: str
    load: int
    why_not: str


class PoolOperations(RouteOperations):
    """Operators' use cases around the relay pool."""

    async def add_relay(self, ref: str, *, capacity: int = 0, weight: int = 0, site: str = "", by: str) -> RelayView:
        """Let a node relay, or give one that may another capacity, weight or site.

        Args:
            ref: name or id of the node.
            capacity: routes that it may carry; 0 for the default.
            weight: percent; 0 for the default.
            site: empty for its node's.
            by: operator's name.

        Raises:
            Refusal: NOT_FOUND; INVALID_ARGUMENT; SUSPENDED, REVOKED or QUARANTINED as the node is; QUEUE_FULL when
                there are too many.
        """
        node_id = (await self.nodes.get(ref)).node_id
        wanted = RelayRecord(
            node_id=node_id,
            cluster_id=self.trust.cluster_id,
            site=operator_rules.checked_site(site),
            capacity=operator_rules.checked_capacity(capacity),
            weight=operator_rules.checked_weight(weight),
            added_at_ms=self.now_ms(),
            added_by=by,
        )

        def work(tx: Transaction) -> RelayView | Refusal:
            self.nodes.hold(tx, [node_id])
            node = self.nodes.load_all(tx.conn, [node_id])[node_id]
            if refusal := node_rules.refuse_inactive(node):
                return refusal
            there = self.relays.by_id(tx.conn, node_id, lock=True)
            if there is None and self.relays.count(tx.conn) >= MAX_RELAYS:
                return Refusal(Reason.QUEUE_FULL, f"there are {MAX_RELAYS} relays already: remove some")
            if there is None:
                self.relays.insert(tx.conn, wanted)
            elif not _same(there, wanted):
                self.relays.update(tx.conn, wanted)
            if there is None or not _same(there, wanted):
                kind = AuditKind.RELAY_ADDED if there is None else AuditKind.RELAY_CHANGED
                detail: Mapping[str, JSON] = {"capacity": wanted.capacity, "weight": wanted.weight, "site": wanted.site}
                self.audit.append(tx, kind, actor=by, subject=f"node:{node_id}", detail=detail)
                self.wake(tx, [SWEEP_TOPIC, "routes"])
            return self._view(tx.conn, node_id)

        try:
            answer = await self.database.write(work)
        except IntegrityError:  # another replica added it at this moment
            answer = await self.database.write(work)
        if isinstance(answer, Refusal):
            raise answer
        return answer

    async def remove_relay(self, ref: str, *, by: str) -> RelayRecord:
        """Have a node relay no more: its leases are withdrawn at once, and its routes get another way. The record as
        it was.

        Args:
            ref: name or id of the node.

        Raises:
            Refusal: NOT_FOUND for the node, or one that is no relay.
        """
        node = await self.nodes.get(ref)

        def work(tx: Transaction) -> RelayRecord | Refusal:
            there = self.relays.by_id(tx.conn, node.node_id, lock=True)
            if there is None:
                return Refusal(
                    Reason.NOT_FOUND, f"node {node.name} is no relay: `fleetctl relays list` shows those that are"
                )
            self.relays.delete(tx.conn, node.node_id)
            self.audit.append(
                tx, AuditKind.RELAY_REMOVED, actor=by, subject=f"node:{node.node_id}", detail={"node": node.name}
            )
            self._take_leases(tx, node.node_id)
            self.wake(tx, ["routes"])
            return there

        answer = await self.database.write(work)
        if isinstance(answer, Refusal):
            raise answer
        return answer

    async def list_relays(self) -> Sequence[RelayView]:
        """The relay pool with its load, by id.

        Raises:
            Refusal: the database is away.
        """
        return await self.database.read(self._views)

    def _view(self, conn: Connection, node_id: str) -> RelayView:
        return next(view for view in self._views(conn) if view.relay.node_id == node_id)

    def _views(self, conn: Connection) -> list[RelayView]:
        seen = {relay.node_id: relay for relay in self.pool(conn)}
        found = []
        for record in self.relays.every(conn):
            relay = seen.get(record.node_id)
            if relay is None:
                why_not = "its record was changed outside the server: remove it, and add it anew"
                found.append(RelayView(record, "", 0, why_not))
            else:
                found.append(RelayView(record, relay.site, relay.load, relay.why_not))
        return found


def _same(there: RelayRecord, wanted: RelayRecord) -> bool:
    return replace(wanted, added_at_ms=there.added_at_ms, added_by=there.added_by) == there
