"""`fleet-server db restored`: the database went back to a backup, so nodes are ahead of what it remembers of them.

Each node has moved its ratchet on since the backup was made, and would be taken for a clone. Whoever restores the
database says so once, and every node may show anything, once: from then on it is held to the ratchet again. Where a
backup was made piece by piece, heads of audit chains and the newest checkpoint do not stand: they are taken as they
are. Generations of routes and leases, of which nodes hold newer ones, are raised. Nothing else needs to be said: seqs,
bundle numbers and versions of nodes' parts rise at each node's hello, and what was forgotten is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from fleet.clock import Clock
from fleet.envelope import Domain, EnvelopeError, key_id, verify
from fleet.v1 import trust_pb2
from fleet_server.audit.acceptance import Accepted, accept
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rewinds import settle
from fleet_server.audit.rules import JSON
from fleet_server.audit.service import AuditService
from fleet_server.database.engine import Database
from fleet_server.database.wakeup import Wakeup
from fleet_server.database.writer import Transaction
from fleet_server.nodes.record import NodeRecord
from fleet_server.nodes.service import NodeService
from fleet_server.routes.restoring import GenerationRaise
from fleet_server.sessions.ratchet import Ratchets
from fleet_server.trust.master_keys import MasterKeys
from fleet_server.trust.secrets import Secrets
from fleet_server.trust.service import TrustService
from fleet_server.trust.succession import AuthorityRotation

_WRITER = "restored-"
_BATCH_NODES = 500


@dataclass(frozen=True, slots=True)
class Restored:
    """What was noted: how many nodes may come as they are, what of the audit is taken as it is, whether the record of
    what was revoked did not stand, and names of nodes that may not come so: their record was changed around the
    server."""

    nodes: int
    audit: Accepted
    spent_written_again: bool
    left: tuple[str, ...]


async def note_restored(url: str, secrets: Secrets, clock: Clock, reason: str, *, cluster_name: str) -> Restored:
    """Let every node show any ratchet once, and take the audit as it stands. Running it twice does no harm.

    Args:
        url: of the database.
        secrets: the installation's.
        reason: for the audit.
        cluster_name: which cluster.

    Raises:
        Refusal: the database is away.
        SealError, TrustSetupError: the cluster's keys cannot be used.
    """
    database, wakeup = Database(url, readers=1), Wakeup()
    writer = _WRITER + os.urandom(4).hex()  # its own chain: it may run twice at once, on two machines
    audit = AuditService(database=database, clock=clock, wakeup=wakeup, writer=writer, row_mac=secrets.row_mac)
    nodes = NodeService(
        database=database,
        clock=clock,
        wakeup=wakeup,
        audit=audit,
        row_mac=secrets.row_mac("nodes"),
        replica_id=writer,
    )
    trust = TrustService(
        database=database, secrets=secrets, clock=clock, audit=audit, wakeup=wakeup, cluster_name=cluster_name
    )
    ratchets = Ratchets(secrets.box, secrets.row_mac("node_ratchets"))
    database.start()
    try:
        await MasterKeys(database=database, secrets=secrets, clock=clock).load()
        await trust.load()
        succession = await AuthorityRotation(trust).succession()
        authorities = {key_id(record.public_key): record.public_key for record in succession.records}
        count, after, left = 0, "", list[str]()
        while batch := await nodes.select([], after=after, limit=_BATCH_NODES):
            left += await database.write(lambda tx, batch=batch: _expect(tx, ratchets, batch, clock.now_ms()))  # type: ignore[misc]
            count, after = count + len(batch), batch[-1].name
        count -= len(left)
        routes = await _raise_routes(database, secrets, clock)

        def tell(tx: Transaction) -> Restored:
            spent = audit.spent.accept(tx.conn)  # first: what was signed of it ends with the next
            accepted = accept(
                tx.conn, audit.heads, audit.checkpoints, trust.cluster_id, lambda raw: _is_signed(raw, authorities)
            )
            detail: Mapping[str, JSON] = {
                "nodes": count,
                "routes": routes,
                "reason": reason,
                "audit_chains": accepted.chains,
                "audit_unvouched": accepted.unvouched,
                "audit_checkpoint": accepted.checkpoint,
                "spent_written_again": spent,
                "audit_checkpoints_removed": accepted.removed,
            }
            settle(tx.conn, clock.now_ms())
            audit.append(tx, AuditKind.DATABASE_RESTORED, actor="server", subject="database", detail=detail)
            return Restored(count, accepted, spent, tuple(left))

        return await database.write(tell)
    finally:
        await database.close()


async def _raise_routes(database: Database, secrets: Secrets, clock: Clock) -> int:
    """How many there are."""
    raising, count, after = GenerationRaise(secrets.row_mac), 0, ""
    while True:
        raised = await database.write(
            lambda tx, after=after: raising.raise_some(tx.conn, after, clock.now_ms())  # type: ignore[misc]
        )
        count, after = count + raised.routes, raised.after
        if not after:
            return count


def _is_signed(raw: bytes, authorities: Mapping[bytes, bytes]) -> bool:
    try:
        verify(trust_pb2.Signed.FromString(raw), domain=Domain.AUDIT_CHECKPOINT, keys=authorities)
    except (EnvelopeError, DecodeError):
        return False
    return True


def _expect(tx: Transaction, ratchets: Ratchets, nodes: list[NodeRecord], now_ms: int) -> list[str]:
    return [node.name for node in nodes if not ratchets.expect_any(tx.conn, node.node_id, now_ms=now_ms)]
