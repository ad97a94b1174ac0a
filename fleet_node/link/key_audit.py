"""What the node's audit says of keys and of people's words: each event a row, and refusals that repeat counted.

A server decides how often it makes a node refuse. So of refusals that are alike one row is written in `ROW_EVERY_S`,
with how many there were since the last one, and no more of one kind are told apart than `MAX_ALIKE`: what a server
makes up of one kind hides nothing of another.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from fleet.clock import Clock
from fleet.node_audit import JSON, NodeAuditKind
from fleet_node.link.ports import AuditPort

ROW_EVERY_S = 600.0
MAX_ALIKE = 32
_FURTHER = "FURTHER"
_MAX_REASON_CHARS = 64


@dataclass(slots=True)
class _Alike:
    """Refusals for one reason: when the last row was written, and those since, with what the latest one was."""

    row_at: float | None = None
    count: int = 0
    detail: dict[str, JSON] = field(default_factory=dict)


class KeyAudit:
    """Implements `KeyAuditPort`. Belongs to the event loop.

    Args:
        clock: its monotonic time spaces rows.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._audit: AuditPort | None = None
        self._early: list[tuple[NodeAuditKind, dict[str, JSON]]] = []
        self._alike: dict[tuple[NodeAuditKind, JSON, str], _Alike] = {}
        self._told_apart: Counter[NodeAuditKind] = Counter()

    def audited_by(self, audit: AuditPort) -> None:
        """Write rows there from now on; first those about what the process found when it started."""
        self._audit = audit
        early, self._early = self._early, []
        for kind, detail in early:
            audit.audit(kind, **detail)

    def tell(self, kind: NodeAuditKind, **detail: JSON) -> None:
        """See `KeyAuditPort`."""
        if self._audit is None:
            self._early.append((kind, detail))
        else:
            self._audit.audit(kind, **detail)

    def refuse(self, kind: NodeAuditKind, reason: str, **detail: JSON) -> None:
        """See `KeyAuditPort`."""
        reason, now = reason[:_MAX_REASON_CHARS], self._clock.monotonic()
        of = kind, detail.get("subject"), reason
        if of not in self._alike and self._told_apart[kind] >= MAX_ALIKE:
            of = kind, None, _FURTHER
        elif of not in self._alike:
            self._told_apart[kind] += 1
        alike = self._alike.setdefault(of, _Alike())
        alike.count += 1
        alike.detail = {**detail, "reason": reason}
        if alike.row_at is None or now - alike.row_at >= ROW_EVERY_S:
            alike.row_at = now
            self._write(kind, alike)

    def settle(self) -> None:
        """Write rows about what was counted and not written. Called when the process stops."""
        for (kind, _, _), alike in self._alike.items():
            if alike.count:
                self._write(kind, alike)

    def _write(self, kind: NodeAuditKind, alike: _Alike) -> None:
        count, alike.count = alike.count, 0
        self.tell(kind, **alike.detail, count=count)


class Unheard:
    """Nobody keeps an audit. Implements `KeyAuditPort`."""

    def tell(self, kind: NodeAuditKind, **detail: JSON) -> None:
        """Nothing."""

    def refuse(self, kind: NodeAuditKind, reason: str, **detail: JSON) -> None:
        """Nothing."""
