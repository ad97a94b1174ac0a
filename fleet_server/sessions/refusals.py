"""Refused proofs on their way into the audit: kept in memory and written as one row a batch, so that whoever hammers
at the door with a
stolen credential fills no table."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping

from fleet.errors import Reason, Refusal
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import JSON
from fleet_server.audit.service import AuditService
from fleet_server.database.engine import Database
from fleet_server.database.writer import Transaction
from fleet_server.sessions.rotations import ApiKeyRow

MAX_NAMES = 32
"""Nodes named for one address, rpc and reason: names are a caller's own words, and further ones count as others."""

_MAX_KEPT = 500
_OTHERS = "…"


class RefusalLog:
    """Refusals since the last flush. Belongs to the event loop.

    Args:
        tampered: api_key rows that were found changed; taken from here as they are written.
    """

    def __init__(self, database: Database, audit: AuditService, tampered: deque[ApiKeyRow]) -> None:
        self._tampered = tampered
        self._database = database
        self._audit = audit
        self._kept: dict[tuple[str, str, str, str], int] = {}
        self._names: Counter[tuple[str, str, str]] = Counter()
        self._more = 0

    def note(self, rpc: str, node_id: str, address: str, refusal: Refusal) -> None:
        """Keep one; equal ones are counted. A server that is busy refuses without anybody having done wrong.

        Args:
            address: of the caller; empty when it is on a stream, where its name is proven.
        """
        if refusal.reason in (Reason.UNAVAILABLE, Reason.OVERLOADED):
            return
        caller = (rpc, address, str(refusal.reason))
        named = node_id[:64] if node_id.isprintable() else _OTHERS
        if address and (rpc, named, *caller[1:]) not in self._kept and self._names[caller] >= MAX_NAMES:
            named = _OTHERS
        key = (rpc, named, *caller[1:])
        if key in self._kept:
            self._kept[key] += 1
        elif len(self._kept) < _MAX_KEPT:
            self._kept[key] = 1
            self._names[caller] += 1
        else:
            self._more += 1

    async def flush(self) -> None:
        """Write what was kept as one audit row.

        Raises:
            Refusal: the database is away; nothing is forgotten.
        """
        tampered = [self._tampered.popleft() for _ in range(len(self._tampered))]
        if not self._kept and not tampered:
            return
        kept, more = self._kept, self._more
        self._kept, self._more = {}, 0
        self._names.clear()
        listed: list[Mapping[str, JSON]] = [
            {"rpc": rpc, "node": node_id, "address": address, "reason": reason, "times": times}
            for (rpc, node_id, address, reason), times in kept.items()
        ]

        def work(tx: Transaction) -> None:
            if listed:
                detail: Mapping[str, JSON] = {"refused": listed, "not_listed": more}
                self._audit.append(tx, AuditKind.SESSION_REFUSED, actor="server", subject="sessions", detail=detail)
            for key in tampered:
                subject = f"api_key:{key.key_sha256.hex()[:16]}"
                detail = {"table": "api_keys", "row": key.key_sha256.hex()}
                self._audit.append(tx, AuditKind.API_KEY_QUARANTINED, actor="server", subject=subject, detail=detail)

        try:
            await self._database.write(work)
        except Refusal:
            for key, times in kept.items():
                self._kept[key] = self._kept.get(key, 0) + times
            self._more += more
            self._tampered.extend(tampered)
            raise
