"""Rows of this room that were written or edited around the server: left out where they are read, and told once.

Readers cannot write, so whoever reads such a row notes it here, and the next flush audits it.
"""

from __future__ import annotations

import threading
from functools import partial

from fleet.logs import get_logger
from fleet_server.audit.kinds import TABLE_OF_QUARANTINE, AuditKind
from fleet_server.audit.service import AuditService
from fleet_server.database.engine import Database
from fleet_server.database.writer import Transaction

log = get_logger(__name__)

_MOST_HELD = 10_000
_SUBJECTS = {
    AuditKind.ROUTE_QUARANTINED: "route",
    AuditKind.ROUTE_LEASE_QUARANTINED: "route",
    AuditKind.RELAY_QUARANTINED: "node",
    AuditKind.PROBE_LISTENER_QUARANTINED: "node",
}


class Quarantine:
    """What was found so. Any thread may note; the event loop flushes."""

    def __init__(self, database: Database, audit: AuditService) -> None:
        self._database = database
        self._audit = audit
        self._lock = threading.Lock()
        self._found: set[tuple[AuditKind, str]] = set()
        self._told: set[tuple[AuditKind, str]] = set()

    def note(self, kind: AuditKind, row: str) -> None:
        """A row's MAC does not fit.

        Args:
            row: its key.
        """
        with self._lock:
            news = (kind, row) not in self._told and len(self._told) < _MOST_HELD
            if news:
                self._told.add((kind, row))
                self._found.add((kind, row))
        if news:
            log.error("row_tampered", table=TABLE_OF_QUARANTINE[kind], row=row)

    async def flush(self) -> None:
        """Audit what was noted.

        Raises:
            Refusal: the database is away; the next flush tries again.
        """
        with self._lock:
            found, self._found = self._found, set()
        if not found:
            return
        try:
            await self._database.write(partial(self._tell, sorted(found)))
        except BaseException:
            with self._lock:
                self._found |= found
            raise

    def _tell(self, found: list[tuple[AuditKind, str]], tx: Transaction) -> None:
        for kind, row in found:
            detail = {"table": TABLE_OF_QUARANTINE[kind], "row": row[:200]}
            subject = f"{_SUBJECTS[kind]}:{row[:150]}"
            self._audit.append(tx, kind, actor="server", subject=subject, detail=detail)
