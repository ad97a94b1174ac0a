"""When the node signs its audit chain, and with what: the row that does is made on the journal's thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fleet.clock import Clock, ServerTime
from fleet.identity import NodeKeys
from fleet.node_audit import NodeAuditKind
from fleet.node_signatures import SIGN_EVERY_ROWS, SIGN_EVERY_S, signature_detail
from fleet_node.commands import audit_rows
from fleet_node.commands.audit_rows import AuditEvent


class AuditSigner:
    """Signs at most once a minute, or once in 1,024 rows, and behind the row that says that other keys are in force: so
    each key is named by the one before, and seen to sign, before the next one is. What it reads of its arguments any
    thread may read.

    Args:
        keys: the node's, in force.
        clock: its monotonic time spaces signatures.
        server_time: for the row.
    """

    def __init__(self, keys: Callable[[], NodeKeys], clock: Clock, server_time: ServerTime) -> None:
        self._keys = keys
        self._clock = clock
        self._server_time = server_time
        self._signed_at: float | None = None
        self._signing = keys()

    def due(self, rows: int) -> bool:
        """Whether so many rows without a signature are to get one now."""
        if not rows:
            return False
        early = self._signed_at is not None and self._clock.monotonic() - self._signed_at < SIGN_EVERY_S
        return rows >= SIGN_EVERY_ROWS or not early

    def row(self, node_id: str, chain: int, number: int, row_hash: bytes) -> AuditEvent:
        """The row that signs the newest one."""
        detail = signature_detail(self._signing, node_id, chain, number, row_hash)
        return audit_rows.event(NodeAuditKind.CHAIN_SIGNED, self._server_time.now_ms(), {**detail})

    def takes_over(self, events: Sequence[AuditEvent]) -> bool:
        """Whether these rows say that other keys are in force; they sign from here on."""
        if not any(event.kind is NodeAuditKind.CREDENTIAL_IN_FORCE for event in events):
            return False
        before, self._signing = self._signing, self._keys()
        return self._signing is not before

    def signed(self) -> None:
        """It is durable."""
        self._signed_at = self._clock.monotonic()
