"""What the use cases of the trust room are built from."""

from __future__ import annotations

from dataclasses import dataclass

from fleet.clock import Clock
from fleet_server.audit.service import AuditService
from fleet_server.database.engine import Database
from fleet_server.trust.keys import KeyVault
from fleet_server.trust.tls_keys import TlsVault


@dataclass(frozen=True, slots=True)
class TrustParts:
    """Shared by all of them.

    Args:
        database: where keys and bundles rest.
        vault: what seals and opens them.
        clock: for statements and renewal.
        audit: told of every key event.
        tls_vault: as `vault`, for the server's TLS.
    """

    database: Database
    vault: KeyVault
    clock: Clock
    audit: AuditService
    tls_vault: TlsVault
