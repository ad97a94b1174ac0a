"""The routes room of one replica over a real database, and nodes in it that have streams and probe listeners."""

from __future__ import annotations

import datetime
import json
import os
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fleet.envelope import Domain, verify_one
from fleet.metrics import Registry
from fleet.secrets import Secret
from fleet.v1 import gateway_pb2, route_pb2
from fleet_server.audit.rules import AuditRow
from fleet_server.audit.service import AuditCursor, AuditService
from fleet_server.database.engine import Database, sql
from fleet_server.database.wakeup import Wakeup
from fleet_server.database.writer import Transaction
from fleet_server.nodes.record import NodeRecord
from fleet_server.nodes.service import NodeService
from fleet_server.observability.route_metrics import RouteMetrics
from fleet_server.routes.record import RouteRecord
from fleet_server.routes.service import RouteService
from fleet_server.trust.secrets import Secrets
from fleet_server.trust.service import TrustService
from tests.fakes.clock import MockClock
from tests.fakes.streams import take_stream

SECRETS = Secrets(Secret(b"\x05" * 32))


@cache
def certificate(name: str = "probe", curve: ec.EllipticCurve | None = None) -> bytes:
    """A self-signed leaf, DER."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begins = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(begins)
        .not_valid_after(begins + datetime.timedelta(days=3650))
    )
    return built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def listener(*endpoints: str, name: str = "probe") -> gateway_pb2.ProbeListener:
    """What a node says of its probe listener."""
    return gateway_pb2.ProbeListener(endpoints=endpoints or ["192.0.2.1:7450"], certificate=certificate(name))


@dataclass
class Mesh:
    """The rooms, and nodes by name."""

    database: Database
    clock: MockClock
    wakeup: Wakeup
    audit: AuditService
    trust: TrustService
    nodes: NodeService
    routes: RouteService
    metrics: RouteMetrics
    ids: dict[str, str] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    woken: list[str] = field(default_factory=list)

    async def add_nodes(self, *names: str, listening: bool = True) -> None:
        """Nodes with a stream, and where they are probed."""
        for name in names:
            node = await self.database.write(lambda tx, name=name: self._create(tx, name))  # type: ignore[misc]
            self.ids[name] = node.node_id
            await self.open_stream(name)
            if listening:
                await self.routes.note_listener(node.node_id, self.epochs[name], listener(f"{name}:7450", name=name))

    async def open_stream(self, name: str) -> None:
        """A newer stream of a node."""
        self.epochs[name] = await self.database.write(
            lambda tx: take_stream(
                self.nodes,
                tx,
                self.ids[name],
                stream_id=f"s{os.urandom(4).hex()}",
                replica_id="r1",
                last_accepted_seq=0,
            )
        )

    async def connect(self, source: str, destination: str, **wanted: Any) -> RouteRecord:
        """A route."""
        return (await self.routes.create(source=source, destination=destination, by="ada", **wanted)).route

    async def content(self, name: str) -> route_pb2.ConfigSnapshotStatement:
        """A node's part as it would be sent, its signature verified."""
        found = await self.routes.snapshot(self.ids[name])
        assert found is not None
        raw = verify_one(found.signed, domain=Domain.CONFIG, public_key=self.trust.authority.public_key)
        statement = route_pb2.ConfigSnapshotStatement.FromString(raw)
        assert (statement.version, statement.node_id) == (found.version, self.ids[name])
        return statement

    async def version(self, name: str) -> int:
        """Version of a node's part; 0 for none."""
        found = await self.routes.snapshot(self.ids[name])
        return 0 if found is None else found.version

    def names(self, *node_ids: str) -> list[str]:
        """Names of nodes, in the order of their ids given."""
        by_id = {node_id: name for name, node_id in self.ids.items()}
        return [by_id[node_id] for node_id in node_ids]

    async def audited(self, *kinds: str) -> list[AuditRow]:
        """What the audit has of these kinds, oldest first."""
        return [row for row in (await self.audit.page(AuditCursor())).rows if row.kind in kinds]

    async def details(self, *kinds: str) -> list[dict[str, Any]]:
        """As `audited`, the details alone."""
        return [json.loads(row.detail) for row in await self.audited(*kinds)]

    async def tamper(self, text: str, *fields: Any) -> None:
        """Change a row around the server."""
        await self.database.write(lambda tx: tx.conn.exec_driver_sql(sql(tx.conn, text), fields))

    async def another_replica(self) -> Mesh:
        """The same rooms in another process, as far as what each keeps in memory goes."""
        other = await build(self.database, self.clock, replica_id="r2")
        other.ids, other.epochs = self.ids, self.epochs
        return other

    def _create(self, tx: Transaction, name: str) -> NodeRecord:
        return self.nodes.create(
            tx,
            cluster_id=self.trust.cluster_id,
            name=name,
            site="",
            identity_key=os.urandom(32),
            sealing_key=os.urandom(32),
            labels={},
        )


async def build(database: Database, clock: MockClock, *, replica_id: str = "r1") -> Mesh:
    """The rooms, without nodes."""
    wakeup = Wakeup()
    audit = AuditService(database=database, clock=clock, wakeup=wakeup, writer=replica_id, row_mac=SECRETS.row_mac)
    trust = TrustService(
        database=database, secrets=SECRETS, clock=clock, audit=audit, wakeup=wakeup, cluster_name="main"
    )
    await trust.create_cluster()
    await trust.load()
    nodes = NodeService(
        database=database,
        clock=clock,
        wakeup=wakeup,
        audit=audit,
        row_mac=SECRETS.row_mac("nodes"),
        replica_id=replica_id,
    )
    metrics = RouteMetrics(Registry())
    routes = RouteService(
        metrics=metrics,
        database=database,
        clock=clock,
        wakeup=wakeup,
        audit=audit,
        nodes=nodes,
        trust=trust,
        row_mac=SECRETS.row_mac,
    )
    nodes.on_revoke(routes.node_ended)
    nodes.on_decided(routes.nodes_decided)
    mesh = Mesh(database, clock, wakeup, audit, trust, nodes, routes, metrics)
    for kind in ("route-config", "route-lease"):
        wakeup.subscribe_kind(kind, mesh.woken.append)
    await routes.load()
    return mesh
