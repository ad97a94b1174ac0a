"""Use cases: make join tokens, take requests, decide them, hand out bootstraps.

Mental model
    A request is known by its token and both its keys: the same request again finds the same row and burns nothing.
    The use of a token is counted, the row is written, and, where the token allows it, the node is approved in ONE
    transaction.
    What people decide about it stands in `decisions`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence

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
from fleet_server.enrollment.decisions import Decisions, EnrollmentSettings
from fleet_server.enrollment.rules import EnrollmentRecord, JoinTokenRecord
from fleet_server.nodes.checklist import ChecklistItem
from fleet_server.nodes.rules import checked_name
from fleet_server.nodes.service import NodeService
from fleet_server.observability.metrics import EnrollmentMetrics
from fleet_server.sessions import proofs
from fleet_server.sessions.admission import Admission
from fleet_server.sessions.hello import check_reported
from fleet_server.trust.bundles import part
from fleet_server.trust.secrets import Secrets
from fleet_server.trust.service import TrustService
from fleet_server.trust.succession import chain_behind

log = get_logger(__name__)

PENDING = enrollment_pb2.ENROLLMENT_STATE_PENDING
APPROVED = enrollment_pb2.ENROLLMENT_STATE_APPROVED
REJECTED = enrollment_pb2.ENROLLMENT_STATE_REJECTED
_MAX_STATEMENT_BYTES = 32 * 1024


class EnrollmentService(Decisions):
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
        super().__init__(
            database=database,
            clock=clock,
            audit=audit,
            metrics=metrics,
            secrets=secrets,
            trust=trust,
            nodes=nodes,
            issue_api_key=issue_api_key,
            settings=settings or EnrollmentSettings(),
        )
        self._admission = admission

    # -- requests -----------------------------------------------------------------------------------------------------
    async def enroll(self, request: enrollment_pb2.EnrollRequest, address: str) -> enrollment_pb2.EnrollResponse:
        """Take a request to join. The same request again answers the same id, whatever has become of the token since.

        Raises:
            Refusal: MALFORMED, BAD_PROOF, WRONG_CLUSTER, JOIN_TOKEN_*, CONFLICT, or OVERLOADED with a delay.
        """
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
        said, genuine = self._check_in(request, address)
        rules.checked_statement(said, request.token_secret)
        proofs.verify(request.signed, Domain.ENROLL, said.identity_key)
        checked_name(said.name)
        check_reported(said.version, said.labels)
        if said.cluster_id != self._trust.cluster_id:
            raise proofs.wrong_cluster()
        if not genuine:  # an invented one costs no query
            raise rules.unknown_token()
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

    def _check_in(
        self, request: enrollment_pb2.EnrollRequest, address: str
    ) -> tuple[enrollment_pb2.EnrollStatement, bool]:
        """What the request says, and whether its token was made here: others at the address, who have none, take no
        turns from those who have one."""
        try:
            said = proofs.parse(enrollment_pb2.EnrollStatement, request.signed, max_bytes=_MAX_STATEMENT_BYTES)
        except Refusal:
            self._admission.charge_garbage("Enroll", address)
            raise
        secret_sha256 = hashlib.sha256(request.token_secret).digest()
        genuine = self._token_ids.genuine(said.token_id, secret_sha256)
        if genuine:
            self._admission.admit_enroll(address)
        else:
            self._admission.charge_garbage("Enroll", address)
        return said, genuine

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
            self._admission.admit_poll(said.enrollment_id, address)
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
            chain = await chain_behind(self._trust, answer.bootstrap)
            answer.bundle_chain.extend(part(chain, answer.bootstrap.ByteSize()))
            answer.more_bundles = len(answer.bundle_chain) < len(chain)
        return answer

    def checklist_of(self, tx: Transaction, node_id: str) -> Sequence[ChecklistItem]:
        """What a revocation leaves to do about the join token that let the node in."""
        token_id = self._enrollments.token_of_node(tx.conn, node_id)
        token = None if token_id is None else self._tokens.by_id(tx.conn, token_id)
        return [] if token is None else [rules.token_item(token, self._clock.now_ms())]

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
