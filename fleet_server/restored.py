"""`fleet-server db restored`: the database went back to a backup, so nodes are ahead of what it remembers of them.

Each node has moved its ratchet on since the backup was made, and would be taken for a clone. Whoever restores the
database says so once, and every node may show anything, once: from then on it is held to the ratchet again. Nothing
else needs to be said: seqs and bundle numbers rise at each node's hello, and what was forgotten is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from fleet.clock import Clock
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import JSON
from fleet_server.audit.service import AuditService
from fleet_server.database.engine import Database
from fleet_server.database.wakeup import Wakeup
from fleet_server.database.writer import Transaction
from fleet_server.nodes.record import NodeRecord
from fleet_server.nodes.service import NodeService
from fleet_server.sessions.ratchet import Ratchets
from fleet_server.trust.secrets import Secrets

_WRITER = "restored-"
_BATCH_NODES = 500


async def note_restored(url: str, secrets: Secrets, clock: Clock, reason: str) -> int:
    """Let every node show any ratchet once; how many there are. Servers may run; running it twice does no harm.

    Args:
        url: of the database.
        secrets: the installation's.
        reason: for the audit.

    Raises:
        Refusal: the database is away.
    """
    database, wakeup = Database(url, readers=1), Wakeup()
    writer = _WRITER + os.urandom(4).hex()  # its own chain: it may run twice at once, on two machines
    audit = AuditService(database=database, clock=clock, wakeup=wakeup, writer=writer)
    nodes = NodeService(
        database=database,
        clock=clock,
        wakeup=wakeup,
        audit=audit,
        row_mac=secrets.row_mac("nodes"),
        replica_id=writer,
    )
    ratchets = Ratchets(secrets.box, secrets.row_mac("node_ratchets"))
    database.start()
    try:
        count, after = 0, ""
        while batch := await nodes.select([], after=after, limit=_BATCH_NODES):
            await database.write(lambda tx, batch=batch: _expect(tx, ratchets, batch))  # type: ignore[misc]
            count, after = count + len(batch), batch[-1].name

        def tell(tx: Transaction) -> None:
            detail: Mapping[str, JSON] = {"nodes": count, "reason": reason}
            audit.append(tx, AuditKind.DATABASE_RESTORED, actor="server", subject="database", detail=detail)

        await database.write(tell)
        return count
    finally:
        await database.close()


def _expect(tx: Transaction, ratchets: Ratchets, nodes: list[NodeRecord]) -> None:
    for node in nodes:
        ratchets.expect_any(tx.conn, node.node_id)
