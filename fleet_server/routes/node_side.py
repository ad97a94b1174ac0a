"""What streams ask and tell of routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fleet.logs import get_logger
from fleet.v1 import gateway_pb2, lease_pb2, route_pb2, trust_pb2
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import JSON
from fleet_server.database.engine import Connection
from fleet_server.database.together import Together
from fleet_server.database.writer import Transaction
from fleet_server.nodes.ownership import write_as_newest
from fleet_server.routes import config_store, listener_rules
from fleet_server.routes.parts import RouteParts
from fleet_server.routes.record import PeerRecord
from fleet_server.routes.snapshots import PartsOfNodes, Snapshot

log = get_logger(__name__)

_MAX_REASON_CHARS = 200


class NodeSide(RouteParts):
    """The part of the room that streams call. What many ask at one moment (a relay is gone, everybody returns) is read
    together."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        built = PartsOfNodes(self)
        self._parts_asked: Together[Connection, str, Snapshot | None] = Together(self.database.read, built.build)
        self._leases_asked: Together[Connection, str, list[trust_pb2.Signed]] = Together(
            self.database.read, built.leases_of
        )
        self._listeners_asked: Together[Connection, str, PeerRecord | None] = Together(
            self.database.read, self._listeners
        )

    async def snapshot(self, node_id: str) -> Snapshot | None:
        """A node's part of the configuration, signed; None for one that has none.

        Raises:
            Refusal: the database is away.
        """
        return await self._parts_asked.ask(node_id)

    async def leases_of(self, node_id: str) -> list[trust_pb2.Signed]:
        """Leases that concern a node, those among them that were taken back, signed.

        Raises:
            Refusal: the database is away.
        """
        return await self._leases_asked.ask(node_id)

    async def note_listener(self, node_id: str, epoch: int, listener: gateway_pb2.ProbeListener | None) -> None:
        """A node said at its hello where its probe listener is, or that it has none. What changed is audited, and told
        to whoever probes it.

        Raises:
            Refusal: MALFORMED for a listener that nobody could use; SUPERSEDED, or the database is away.
        """
        if listener is None and node_id not in self.concerned:
            return
        if listener is not None:
            listener_rules.checked_listener(listener)
        wanted = None if listener is None else (tuple(listener.endpoints), listener.certificate)
        known = await self._listeners_asked.ask(node_id)
        if wanted == (None if known is None else (known.endpoints, known.certificate)):
            return
        await write_as_newest(
            self.database, self.nodes, node_id, epoch, partial(self._save_listener, node_id, listener)
        )

    async def note_shown(self, node_id: str, epoch: int, version: int) -> None:
        """A node showed at its hello which version of its part it runs. One above ours means a restored database: ours
        is raised above it, and the node is sent its part again.

        Raises:
            Refusal: SUPERSEDED, or the database is away.
        """
        if version <= 0:
            return
        configs = await self.database.read(lambda conn: config_store.by_ids(conn, [node_id]))
        if node_id not in configs or configs[node_id].version < version:
            await write_as_newest(
                self.database, self.nodes, node_id, epoch, lambda tx: self._raise(tx, node_id, version)
            )

    async def note_applied(self, node_id: str, epoch: int, applied: route_pb2.ConfigApplied) -> None:
        """A node told which version of its part it runs, or that it refused one; that is audited.

        Raises:
            Refusal: SUPERSEDED, or the database is away.
        """
        version = min(applied.version, config_store.MAX_VERSION)
        reason = "".join(char for char in applied.reason if char.isprintable())[:_MAX_REASON_CHARS]

        def work(tx: Transaction) -> None:
            now_ms, ok = self.now_ms(), applied.applied
            config_store.note_applied(tx.conn, node_id, version, now_ms, applied=ok, reason=reason)
            self._raise(tx, node_id, version)
            if not ok:
                detail: Mapping[str, JSON] = {"held": version, "reason": reason}
                subject = f"node:{node_id}"
                self.audit.append(tx, AuditKind.ROUTE_CONFIG_REFUSED, actor=subject, subject=subject, detail=detail)
            self.wake(tx, ["routes"])

        if not applied.applied:
            log.warning("config_refused", node_id=node_id, held=version, reason=reason)
        await write_as_newest(self.database, self.nodes, node_id, epoch, work)

    async def note_lease(self, node_id: str, epoch: int, ack: lease_pb2.LeaseAck) -> None:
        """A relay told which generation of a lease it holds, or that it refused it.

        Raises:
            Refusal: SUPERSEDED, or the database is away.
        """
        if not ack.applied:
            log.warning("lease_refused", node_id=node_id, lease_id=ack.lease_id[:64], reason=ack.reason[:200])
            return
        generation = min(ack.generation, config_store.MAX_VERSION)
        await write_as_newest(
            self.database,
            self.nodes,
            node_id,
            epoch,
            lambda tx: self.leases.note_ack(tx.conn, ack.lease_id[:64], node_id, generation, self.now_ms()),
        )

    def _listeners(self, conn: Connection, node_ids: Sequence[str]) -> list[PeerRecord | None]:
        found = self.peers.by_ids(conn, node_ids)
        return [found.get(node_id) for node_id in node_ids]

    def _save_listener(self, node_id: str, listener: gateway_pb2.ProbeListener | None, tx: Transaction) -> None:
        endpoints = [] if listener is None else list(listener.endpoints)
        if listener is None:
            self.peers.delete(tx.conn, node_id)
        else:
            self.peers.save(tx.conn, PeerRecord(node_id, tuple(endpoints), listener.certificate, self.now_ms()))
        subject = f"node:{node_id}"
        kind = AuditKind.PROBE_LISTENER_CHANGED
        self.audit.append(tx, kind, actor=subject, subject=subject, detail={"endpoints": endpoints})
        self.nodes_decided(tx, [node_id])

    def _raise(self, tx: Transaction, node_id: str, shown: int) -> None:
        if config_store.raise_above(tx.conn, node_id, shown, self.now_ms()):
            log.error("node_holds_newer_config", node_id=node_id, shown=shown)
            self.wake_parts(tx, [node_id])
