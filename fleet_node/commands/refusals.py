"""What the node's audit and its metrics say of what the commands room refused.

A server decides how often it makes a node refuse: so refusals that are alike are counted (`KeyAuditPort.refuse`), and
none of them can fill the disk, or wear it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from fleet.intents import IntentVerdict
from fleet.logs import get_logger
from fleet.node_audit import NodeAuditKind
from fleet.sequence import MAX_DETAIL_CHARS, StatementRefusal
from fleet.v1 import command_pb2, trust_pb2
from fleet_node.link.ports import KeyAuditPort
from fleet_node.observability.metrics import CommandMetrics

log = get_logger(__name__)

_MAX_SIGNERS = 16


class Refusals:
    """See the module.

    Args:
        audit: told of each.
        metrics: count them.
    """

    def __init__(self, audit: KeyAuditPort, metrics: CommandMetrics) -> None:
        self._audit = audit
        self._metrics = metrics

    def statement(self, signed: trust_pb2.Signed, refusal: StatementRefusal) -> command_pb2.StatementRefused:
        """Nothing of a statement or a cancel counts: what to tell the server, but for where the node is."""
        key_id = signed.signatures[0].key_id[:16] if signed.signatures else b""
        sha256 = hashlib.sha256(signed.statement)
        self._metrics.statement_refusals.labels(refusal.reason.value).inc()
        log.warning("statement_refused", reason=refusal.reason.value, detail=refusal.detail)
        self._audit.refuse(
            NodeAuditKind.STATEMENT_REFUSED,
            refusal.reason.value,
            detail=refusal.detail[:MAX_DETAIL_CHARS],
            key_id=key_id.hex(),
            statement_sha256=sha256.hexdigest(),
        )
        return command_pb2.StatementRefused(
            statement_sha256=sha256.digest(),
            key_id=key_id,
            reason=refusal.reason.value,
            detail=refusal.detail,
        )

    def command(self, refused: command_pb2.CommandRefused) -> None:
        """The journal says nothing of a command."""
        self._audit.refuse(
            NodeAuditKind.COMMAND_REFUSED,
            refused.reason,
            command_id=refused.command_id[:16].hex(),
            seq=refused.monotonic_seq,
        )

    def floor(self, error: Exception) -> None:
        """A floor does not count, or cannot be journaled."""
        reason = error.reason.value if isinstance(error, StatementRefusal) else "DISK"
        log.error("floor_refused", detail=str(error))
        self._audit.refuse(NodeAuditKind.FLOOR_REFUSED, reason, detail=str(error)[:MAX_DETAIL_CHARS])

    def protected(
        self,
        verdict: IntentVerdict,
        *,
        seq: int,
        command_id: bytes,
        action: str,
        actor: str,
        intent_id: bytes,
        signers: Iterable[bytes],
        people: Iterable[str],
    ) -> None:
        """A command of a protected action may not run.

        Args:
            actor: in whose name it was ordered, printable.
            intent_id: that its intent names; empty when there is none, and whoever signed it.
            signers: key ids that the intent names as its signers.
            people: names of those among them who are known here, and whose signatures verify.
        """
        self._metrics.intent_refusals.labels(verdict.value).inc()
        self._audit.refuse(
            NodeAuditKind.PROTECTED_REFUSED,
            verdict.value,
            subject=action,
            actor=actor,
            command_id=command_id[:16].hex(),
            intent_id=intent_id[:16].hex(),
            people=sorted(people)[:_MAX_SIGNERS],
            seq=seq,
            signers=[one[:16].hex() for one in signers][:_MAX_SIGNERS],
        )
