"""The cluster's own row, made once on a new installation."""

from __future__ import annotations

import uuid
from dataclasses import replace

from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.service import AuditService
from fleet_server.database.writer import Transaction
from fleet_server.trust import store
from fleet_server.trust.keyring import TrustSetupError
from fleet_server.trust.secrets import RowMac


def create_cluster(tx: Transaction, audit: AuditService, mac: RowMac, name: str, now_ms: int) -> str:
    """Make the cluster on a new installation and answer its id; the one that is there already otherwise.

    Raises:
        TrustSetupError: the database holds a cluster of another name.
    """
    found = store.cluster(tx.conn, name)
    if found is not None:
        return found.cluster_id
    others = store.cluster_names(tx.conn)
    if others:
        raise TrustSetupError(
            f"this database belongs to cluster {', '.join(others)}: name that one, or use another database"
        )
    row = store.ClusterRow(_new_id("c"), _new_id("i"), name, now_ms)
    row = replace(row, mac=mac.compute(*row.authority_fields()))
    store.insert_cluster(tx.conn, row)
    audit.checkpoints.begin(tx.conn, row.cluster_id)
    audit.spent.begin(tx.conn)
    detail = {"name": row.name, "installation_id": row.installation_id}
    audit.append(tx, AuditKind.CLUSTER_CREATED, actor="server", subject=row.cluster_id, detail=detail)
    return row.cluster_id


def _new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"
