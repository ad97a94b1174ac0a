"""Use cases: make join tokens, take requests, decide them, hand out bootstraps.

Mental model
    A request is known by its token and both its keys: the same request again finds the same row and burns nothing.
    The use of a token is counted, the row is written, and, where the token allows it, the node is approved in ONE
    transaction.
    A decision makes the node, its api_key and its signed bootstrap at once. The bootstrap is stored as it was signed,
    so that every poll
    gets the same; the api_key in it is sealed to the node's key, so the database holds nothing that opens a session.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fleet import sealing
from fleet.clock import Clock
from fleet.envelope import Domain
from fleet.errors import Reason, Refusal
from fleet.identity import show_fingerprint
from fleet.logs import get_logger
from fleet.v1 import enrollment_pb2
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import JSON
from fleet_server.audit.service import AuditService
from fleet_server.database.engine import Connection, Database
from fleet_server.database.writer import Transaction
from fleet_server.enrollment import rules
from fleet_server.enrollment.rules import EnrollmentRecord, JoinTokenRecord
from fleet_server.enrollment.store import EnrollmentStore, TokenStore
from fleet_server.enrollment.tokens import MAX_PAGE, JoinTokens
from fleet_server.nodes.checklist import ChecklistItem
from fleet_server.nodes.rules import checked_name
from fleet_server.nodes.service import NodeService
from fleet_server.observability.metrics import EnrollmentMetrics
from fleet_server.sessions import proofs
from fleet_server.sessions.admission import Admission
from fleet_server.sessions.hello import check_reported
from fleet_server.trust.secrets import Secrets
from fleet_server.trust.service import TrustService
from fleet_server.trust.succession import chain_behind

log = get_logger(__name__)

PENDING = enrollment_pb2.ENROLLMENT_STATE_PENDING
APPROVED = enrollment_pb2.ENROLLMENT_STATE_APPROVED
REJECTED = enrollment_pb2.ENROLLMENT_STATE_REJECTED
_MAX_STATEMENT_BYTES = 32 * 1024


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


class EnrollmentService(JoinTokens):
    """The enrollment room.

    Args:
        issue_api_key: makes an api_key for a node in a transaction and answers its text (sessions room).
        admission: limits per address; Enroll is open to strangers.
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
        admission: Admission,
        issue_api_key: Callable[[Transaction, str], str],
        settings: EnrollmentSettings | None = None,
    ) -> None:
        tokens = TokenStore(secrets.row_mac("join_tokens"))
        super().__init__(database=database, clock=clock, audit=audit, trust=trust, tokens=tokens)
        self._metrics = metrics
        self._nodes = nodes
        self._admission = admission
        self._issue_api_key = issue_api_key
        self._settings = settings or EnrollmentSettings()
        self._ids = rules.EnrollmentIds(secrets.derive("enrollment-id"))
        self._enrollments = EnrollmentStore(secrets.row_mac("enrollments"))

    # -- requests -----------------------------------------------------------------------------------------------------
    async def enroll(self, request: enrollment_pb2.EnrollRequest, address: str) -> enrollment_pb2.EnrollResponse:
        """Take a request to join. The same request again answers the same id, whatever has become of the token since.

        Raises:
            Refusal: MALFORMED, BAD_PROOF, WRONG_CLUSTER, JOIN_TOKEN_*, CONFLICT, or OVERLOADED with a delay.
        """
        self._admission.admit_enroll(address)
        try:
            record = await self._enroll(request, address)
        except Refusal as refusal:
            self._metrics.enrollments.labels(str(refusal.reason)).inc()
            raise
        outcome = enrollment_pb2.EnrollmentState.Name(record.state).removeprefix("ENROLLMENT_STATE_").lower()
        self._metrics.enrollments.labels(outcome).inc()
        return enrollment_pb2.EnrollResponse(
            enrollment_id=record.enrollment_id,
            fingerprint=record.fingerprint,
            poll_interval_s=self._settings.poll_interval_s,
        )

    async def _enroll(self, request: enrollment_pb2.EnrollRequest, address: str) -> EnrollmentRecord:
        said = proofs.parse(enrollment_pb2.EnrollStatement, request.signed, max_bytes=_MAX_STATEMENT_BYTES)
        rules.checked_statement(said, request.token_secret)
        proofs.verify(request.signed, Domain.ENROLL, said.identity_key)
        checked_name(said.name)
        check_reported(said.version, said.labels)
        if said.cluster_id != self._trust.cluster_id:
            raise proofs.wrong_cluster()
        try:
            # On a snapshot first: what a stranger makes up never reaches the writer.
            judged = await self._database.read(lambda conn: self._judge(conn, said, request.token_secret))
        except Refusal:
            await self.tell_tampered(said.token_id)
            raise
        if isinstance(judged, EnrollmentRecord):
            record = judged
        else:
            taken = await self._database.write(lambda tx: self._take(tx, said, request.token_secret, address))
            if isinstance(taken, Refusal):
                raise taken
            record = taken
        if not record.intact:
            raise await self._quarantined(record)
        return record

    def _judge(
        self, conn: Connection, said: enrollment_pb2.EnrollStatement, secret: bytes, *, lock: bool = False
    ) -> EnrollmentRecord | JoinTokenRecord:
        """The row of this very request if there is one, else the token that lets a new one in.

        Raises:
            Refusal: JOIN_TOKEN_*, or CONFLICT when the keys are a node's already.
        """
        token = rules.held_token(self._tokens.by_id(conn, said.token_id, lock=lock), secret)
        known = self._enrollments.by_keys(conn, said.token_id, said.identity_key, said.sealing_key)
        if known is not None:
            return known
        rules.check_token(token, self._clock.now_ms())
        holder = self._nodes.key_holder(conn, said.identity_key)
        if holder is not None:
            raise Refusal(
                Reason.CONFLICT,
                f"these keys belong to node {holder!r} already: it needs no second enrollment, and a copied disk image"
                " needs keys of its own. Remove the state folder to make new keys",
            )
        return token

    def _take(
        self, tx: Transaction, said: enrollment_pb2.EnrollStatement, secret: bytes, address: str
    ) -> EnrollmentRecord | Refusal:
        try:
            token = self._judge(tx.conn, said, secret, lock=True)
        except Refusal as refusal:
            return refusal  # not raised: nothing was written, and the group's other jobs go on undisturbed
        if isinstance(token, EnrollmentRecord):
            return token
        record = self._new_record(said, token, address)
        self._tokens.count_use(tx.conn, token)
        self._enrollments.insert(tx.conn, record)
        detail: Mapping[str, JSON] = {
            "token": token.token_id,
            "name": record.name,
            "fingerprint": show_fingerprint(record.fingerprint),
            "address": record.peer_address,
        }
        subject = f"enrollment:{record.enrollment_id}"
        self._audit.append(tx, AuditKind.ENROLLMENT_REQUESTED, actor="server", subject=subject, detail=detail)
        if token.auto_approve:
            return self._approve(tx, record, f"token:{token.token_id}", labels={}, unique_suffix=True)
        return record

    async def get_bootstrap(
        self, request: enrollment_pb2.GetBootstrapRequest, address: str
    ) -> enrollment_pb2.GetBootstrapResponse:
        """Answer a poll: PENDING, REJECTED, or the bootstrap, which opens for this node alone.

        The poll carries no time, for a wrong clock must not lock a node out; a replayed one yields only what is
        sealed to the node.

        Raises:
            Refusal: MALFORMED, NOT_FOUND, BAD_PROOF or QUARANTINED; UNAVAILABLE while this replica does not know the
                authority that signed it.
        """
        said = proofs.parse(enrollment_pb2.BootstrapPollStatement, request.signed)
        if len(said.nonce) != 32:
            raise Refusal(Reason.MALFORMED, "the poll's nonce has 32 bytes")
        record = None
        if self._ids.genuine(said.enrollment_id):  # an invented one costs no query
            record = await self._database.read(lambda conn: self._enrollments.by_id(conn, said.enrollment_id))
        if record is None:
            self._admission.charge_garbage("GetBootstrap", address)
            raise Refusal(
                Reason.NOT_FOUND, "the server knows no such enrollment: run enroll again with a new join token"
            )
        if not record.intact:
            raise await self._quarantined(record)
        try:
            proofs.verify(request.signed, Domain.BOOTSTRAP_POLL, record.identity_key)
        except Refusal:
            self._admission.charge_garbage("GetBootstrap", address)
            raise
        answer = enrollment_pb2.GetBootstrapResponse(
            state=record.state, poll_interval_s=self._settings.poll_interval_s, reason=record.reason
        )
        if record.state == APPROVED:
            answer.bootstrap.MergeFromString(record.bootstrap)
            answer.bundle_chain.extend(await chain_behind(self._trust, answer.bootstrap))
        return answer

    def checklist_of(self, tx: Transaction, node_id: str) -> Sequence[ChecklistItem]:
        """What a revocation leaves to do about the join token that let the node in."""
        token_id = self._enrollments.token_of_node(tx.conn, node_id)
        token = None if token_id is None else self._tokens.by_id(tx.conn, token_id)
        return [] if token is None else [rules.token_item(token, self._clock.now_ms())]

    # -- decisions ----------------------------------------------------------------------------------------------------
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
            genuine = self._ids.genuine(enrollment_id)
            record = self._enrollments.by_id(tx.conn, enrollment_id, lock=True) if genuine else None
            if record is None:
                raise Refusal(
                    Reason.NOT_FOUND,
                    f"there is no enrollment {enrollment_id[:80]!r}: `fleetctl enrollments list` shows them",
                )
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

    # -- inside -------------------------------------------------------------------------------------------------------
    def _new_record(
        self, said: enrollment_pb2.EnrollStatement, token: JoinTokenRecord, address: str
    ) -> EnrollmentRecord:
        return EnrollmentRecord(
            enrollment_id=self._ids.text(os.urandom(rules.ID_NONCE_BYTES)),
            cluster_id=self._trust.cluster_id,
            token_id=token.token_id,
            identity_key=said.identity_key,
            sealing_key=said.sealing_key,
            name=said.name,
            site=token.site,
            reported_labels=dict(said.labels),
            version=said.version,
            peer_address=address[:64],
            state=PENDING,
            created_at_ms=self._clock.now_ms(),
        )

    async def _quarantined(self, record: EnrollmentRecord) -> Refusal:
        """Audit a tampered enrollment once, and say why it is refused."""
        if record.enrollment_id not in self._told:
            self._told.add(record.enrollment_id)
            log.error("enrollment_row_tampered", enrollment_id=record.enrollment_id)
            await self._database.write(
                lambda tx: self._tell(tx, AuditKind.ENROLLMENT_QUARANTINED, "server", record, {"table": "enrollments"})
            )
        return Refusal(
            Reason.QUARANTINED,
            "the record of this enrollment was changed outside the server: enroll again with new keys and a new token",
        )

    def _tell(
        self, tx: Transaction, kind: AuditKind, actor: str, record: EnrollmentRecord, detail: Mapping[str, JSON]
    ) -> None:
        self._audit.append(tx, kind, actor=actor, subject=f"enrollment:{record.enrollment_id}", detail=detail)
