"""What people decide about machines that ask to join: one is a new node, or one that is there already, or none.

A decision makes the node, its api_key and its signed bootstrap at once. The bootstrap is stored as it was signed, so
that every poll gets the same; the api_key in it is sealed to the node's key, so the database holds nothing that opens a
session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fleet import sealing
from fleet.clock import Clock
from fleet.envelope import Domain
from fleet.errors import Reason, Refusal
from fleet.identity import show_fingerprint
from fleet.v1 import enrollment_pb2
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import JSON
from fleet_server.audit.service import AuditService
from fleet_server.database.engine import Database
from fleet_server.database.writer import Transaction
from fleet_server.enrollment import rules
from fleet_server.enrollment.rules import EnrollmentRecord
from fleet_server.enrollment.store import EnrollmentStore, TokenStore
from fleet_server.enrollment.tokens import MAX_PAGE, JoinTokens
from fleet_server.nodes.record import NodeRecord
from fleet_server.nodes.rules import checked_reason
from fleet_server.nodes.service import NodeService
from fleet_server.observability.metrics import EnrollmentMetrics
from fleet_server.trust.secrets import Secrets
from fleet_server.trust.service import TrustService

APPROVED = enrollment_pb2.ENROLLMENT_STATE_APPROVED
REJECTED = enrollment_pb2.ENROLLMENT_STATE_REJECTED


@dataclass(frozen=True, slots=True)
class EnrollmentSettings:
    """What new nodes are told to begin with.

    Args:
        poll_interval_s: seconds between polls for the decision.
        telemetry_interval_s: seconds between telemetry samples.
        max_in_flight: commands in flight.
    """

    poll_interval_s: int = 3
    telemetry_interval_s: int = 10
    max_in_flight: int = 32


class Decisions(JoinTokens):
    """Operators' verbs around enrollments.

    Args:
        issue_api_key: makes an api_key for a node in a transaction and answers its text (sessions room).
    """

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        audit: AuditService,
        metrics: EnrollmentMetrics,
        secrets: Secrets,
        trust: TrustService,
        nodes: NodeService,
        issue_api_key: Callable[[Transaction, str], str],
        settings: EnrollmentSettings,
    ) -> None:
        tokens = TokenStore(secrets.row_mac("join_tokens"), audit.spent)
        token_ids = rules.MarkedIds("jt_", secrets.derive("join-token-id"))
        super().__init__(database=database, clock=clock, audit=audit, trust=trust, tokens=tokens, token_ids=token_ids)
        self._metrics = metrics
        self._nodes = nodes
        self._issue_api_key = issue_api_key
        self._settings = settings
        self._ids = rules.MarkedIds("en_", secrets.derive("enrollment-id"))
        self._enrollments = EnrollmentStore(secrets.row_mac("enrollments"))

    async def list(
        self,
        state: enrollment_pb2.EnrollmentState.ValueType = enrollment_pb2.ENROLLMENT_STATE_UNSPECIFIED,
        *,
        page_token: str = "",
        limit: int = 100,
    ) -> Sequence[EnrollmentRecord]:
        """Requests in a state (UNSPECIFIED: in any), newest first.

        Raises:
            Refusal: INVALID_ARGUMENT for the page token.
        """
        before = rules.page_start(page_token)
        most = min(limit, MAX_PAGE)
        return await self._database.read(lambda conn: self._enrollments.page(conn, int(state), before, most))

    async def decide(
        self,
        actor: str,
        enrollment_id: str,
        *,
        approve: bool,
        fingerprint: bytes = b"",
        name: str = "",
        labels: Mapping[str, str] | None = None,
        reason: str = "",
    ) -> EnrollmentRecord:
        """Approve or reject.

        Args:
            fingerprint: what the operator compared; when given it must match.
            name: name to give; empty keeps the node's wish.
            labels: operator labels to set.
            reason: for a rejection; the node shows it.

        Raises:
            Refusal: NOT_FOUND, ALREADY_DECIDED, FINGERPRINT_MISMATCH, QUARANTINED, INVALID_ARGUMENT; CONFLICT for a
            taken name.
        """
        rules.checked_reason(reason)

        def work(tx: Transaction) -> EnrollmentRecord | Refusal:
            record = self._locked(tx, enrollment_id)
            refusal = rules.refuse_decision(record, fingerprint)
            if refusal is not None:
                self._tell(tx, AuditKind.ENROLLMENT_REFUSED, actor, record, {"reason": str(refusal.reason)})
                return refusal
            if not approve:
                return self._reject(tx, record, actor, reason)
            wanted = replace(record, name=name or record.name)
            return self._approve(tx, wanted, actor, labels=labels or {}, unique_suffix=False)

        decided = await self._database.write(work)
        if isinstance(decided, Refusal):
            raise decided
        self._metrics.enrollments.labels("approved" if approve else "rejected").inc()
        return decided

    async def replace_node(
        self, actor: str, ref: str, enrollment_id: str, *, fingerprint: bytes = b"", reason: str = ""
    ) -> NodeRecord:
        """Approve a machine as a node that is there already, whose own machine is gone. Said again it changes nothing.

        Args:
            ref: name or id of the node.
            fingerprint: of the new machine, as the operator compared it; when given it must match.
            reason: for the audit, and for the former machine should it come back.

        Raises:
            Refusal: NOT_FOUND, ALREADY_DECIDED, FINGERPRINT_MISMATCH, QUARANTINED, INVALID_ARGUMENT; CONFLICT when the
                node's record was changed outside the server.
        """
        checked_reason(reason)
        node_id = (await self._nodes.get(ref)).node_id

        def work(tx: Transaction) -> Refusal | None:
            record = self._locked(tx, enrollment_id)
            if record.intact and record.state == APPROVED and record.node_id == node_id:
                return None
            refusal = rules.refuse_decision(record, fingerprint)
            if refusal is not None:
                self._tell(tx, AuditKind.ENROLLMENT_REFUSED, actor, record, {"reason": str(refusal.reason)})
                return refusal
            found = self._nodes.load(tx.conn, node_id)
            if found is None:
                raise Refusal(Reason.NOT_FOUND, f"no node is called {ref[:80]!r} any more")
            keys = (record.identity_key, record.sealing_key)
            self._admit(tx, record, self._nodes.replace_machine(tx, actor, found, *keys, reason), actor)
            return None

        refused = await self._database.write(work)
        if refused is not None:
            raise refused
        self._metrics.enrollments.labels("approved").inc()
        return await self._nodes.get(node_id)

    def _locked(self, tx: Transaction, enrollment_id: str) -> EnrollmentRecord:
        genuine = self._ids.genuine(enrollment_id)
        record = self._enrollments.by_id(tx.conn, enrollment_id, lock=True) if genuine else None
        if record is None:
            raise Refusal(
                Reason.NOT_FOUND,
                f"there is no enrollment {enrollment_id[:80]!r}: `fleetctl enrollments list` shows them",
            )
        return record

    def _reject(self, tx: Transaction, record: EnrollmentRecord, actor: str, reason: str) -> EnrollmentRecord:
        decided = replace(record, state=REJECTED, decided_at_ms=self._clock.now_ms(), decided_by=actor, reason=reason)
        self._enrollments.decide(tx.conn, decided)
        self._tell(tx, AuditKind.ENROLLMENT_REJECTED, actor, decided, {"reason": reason})
        return decided

    def _approve(
        self, tx: Transaction, record: EnrollmentRecord, actor: str, *, labels: Mapping[str, str], unique_suffix: bool
    ) -> EnrollmentRecord:
        node = self._nodes.create(
            tx,
            cluster_id=record.cluster_id,
            name=record.name,
            site=record.site,
            identity_key=record.identity_key,
            sealing_key=record.sealing_key,
            labels=labels,
            unique_suffix=unique_suffix,
        )
        return self._admit(tx, record, node, actor)

    def _admit(self, tx: Transaction, record: EnrollmentRecord, node: NodeRecord, actor: str) -> EnrollmentRecord:
        """Write the bootstrap with which the machine becomes `node`."""
        info = sealing.sealing_info(sealing.Purpose.API_KEY, record.cluster_id, node.node_id, record.fingerprint)
        api_key = self._issue_api_key(tx, node.node_id)
        bootstrap = enrollment_pb2.BootstrapStatement(
            enrollment_id=record.enrollment_id,
            cluster_id=record.cluster_id,
            node_id=node.node_id,
            fingerprint=record.fingerprint,
            sealed_api_key=sealing.seal(api_key.encode(), record.sealing_key, info),
            trust_bundle=self._trust.bundle.signed,
            parameters=enrollment_pb2.NodeParameters(
                telemetry_interval_s=self._settings.telemetry_interval_s, max_in_flight=self._settings.max_in_flight
            ),
            name=node.name,
            site=node.site,
        ).SerializeToString(deterministic=True)
        decided = replace(
            record,
            name=node.name,
            state=APPROVED,
            decided_at_ms=self._clock.now_ms(),
            decided_by=actor,
            node_id=node.node_id,
            bootstrap=self._trust.authority.sign(Domain.BOOTSTRAP, bootstrap).SerializeToString(),
        )
        self._enrollments.decide(tx.conn, decided)
        detail: Mapping[str, JSON] = {
            "node": node.node_id,
            "name": node.name,
            "fingerprint": show_fingerprint(record.fingerprint),
            "labels": dict(node.labels),
        }
        self._tell(tx, AuditKind.ENROLLMENT_APPROVED, actor, decided, detail)
        return decided

    def _tell(
        self, tx: Transaction, kind: AuditKind, actor: str, record: EnrollmentRecord, detail: Mapping[str, JSON]
    ) -> None:
        self._audit.append(tx, kind, actor=actor, subject=f"enrollment:{record.enrollment_id}", detail=detail)
