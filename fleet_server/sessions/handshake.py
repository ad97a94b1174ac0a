"""The handshake: api_key, challenge, two signed statements, a session token (docs/protocol.md, "Session").

BeginHandshake touches no database; CompleteHandshake reads once and writes once.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fleet.channel import ChannelError, derive_frame_keys
from fleet.clock import Clock
from fleet.envelope import Domain
from fleet.errors import Reason, Refusal
from fleet.v1 import session_pb2, trust_pb2
from fleet_server.audit.service import AuditService
from fleet_server.database.engine import Database
from fleet_server.database.together import Together
from fleet_server.database.writer import Transaction
from fleet_server.nodes.record import NodeRecord
from fleet_server.nodes.service import NodeService
from fleet_server.observability.metrics import SessionMetrics
from fleet_server.sessions import proofs, store
from fleet_server.sessions.admission import Admission, Payment
from fleet_server.sessions.client_certificates import NodeCertificates, client_certificate
from fleet_server.sessions.credentials import CHALLENGE_TTL_MS, ChallengePurpose, Credentials
from fleet_server.sessions.hello import MAX_ID_CHARS, check_protocol_version
from fleet_server.sessions.ratchet import Ratchets
from fleet_server.sessions.refusals import RefusalLog
from fleet_server.sessions.remembered import RememberedKeys
from fleet_server.sessions.rotating import RotationService
from fleet_server.sessions.standing import Standing, Standings, refuse_unless_active
from fleet_server.sessions.store import ApiKeyStore, RotationStore, SessionRow
from fleet_server.trust.bundles import part
from fleet_server.trust.secrets import Secrets
from fleet_server.trust.service import TrustService

NONCE_BYTES = 24
_MAX_ANSWERED = 100_000


class _Challenge(NamedTuple):
    """One that was answered: when it ends, Unix milliseconds, and whether its caller began without a turn."""

    expires_ms: int
    owes_turn: bool


class Answered:
    """Challenges that were answered here and could still be shown again. Bounded; another replica's answers meet in
    the database.
    """

    def __init__(self) -> None:
        self._until_ms: OrderedDict[bytes, int] = OrderedDict()

    def check(self, challenge: bytes) -> None:
        """Refuse a challenge that was answered.

        Raises:
            Refusal: CHALLENGE_EXPIRED.
        """
        if challenge in self._until_ms:
            raise proofs.answered_already()

    def note(self, challenge: bytes, expires_at_ms: int, now_ms: int) -> None:
        """It is answered now.

        Raises:
            Refusal: CHALLENGE_EXPIRED when it was already.
        """
        self.check(challenge)
        while self._until_ms:
            oldest = next(iter(self._until_ms))
            if self._until_ms[oldest] > now_ms and len(self._until_ms) < _MAX_ANSWERED:
                break
            del self._until_ms[oldest]
        self._until_ms[challenge] = expires_at_ms


class HandshakeService:
    """Turns api_keys, with a node's signature, into session tokens.

    Args:
        accepted_leaves: SHA-256 of each TLS leaf that is this server's: current, previous, and those of terminators
            in its settings.
        session_ttl_ms: milliseconds that a session lives unless it is renewed.
        rotations_per_day: see `RotationService`.
    """

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        audit: AuditService,
        metrics: SessionMetrics,
        secrets: Secrets,
        trust: TrustService,
        nodes: NodeService,
        admission: Admission,
        accepted_leaves: Callable[[], frozenset[bytes]],
        session_ttl_ms: int = 15 * 60 * 1000,
        rotations_per_day: int = 24,
    ) -> None:
        self._database = database
        self._clock = clock
        self._audit = audit
        self._metrics = metrics
        self._box = secrets.box
        self._trust = trust
        self._nodes = nodes
        self.admission = admission
        self._accepted_leaves = accepted_leaves
        self._session_ttl_ms = session_ttl_ms
        self._credentials = Credentials(
            api_key_key=secrets.derive("api-key"),
            challenge_key=secrets.derive("handshake-challenge"),
            token_key=secrets.derive("session-token"),
        )
        api_keys = ApiKeyStore(secrets.row_mac("api_keys"))
        rotations = RotationStore(secrets.row_mac("credential_rotations"))
        self.rotations = RotationService(
            database=database,
            clock=clock,
            audit=audit,
            nodes=nodes,
            api_keys=api_keys,
            store=rotations,
            api_key_text=self._credentials.api_key_text,
            asked_per_day=rotations_per_day,
        )
        self._standings = Standings(database, api_keys, rotations, nodes, clock)
        self._ratchets = Ratchets(secrets.box, secrets.row_mac("node_ratchets"))
        self._refusals = RefusalLog(database, audit, self._standings.tampered)
        self._answered = Answered()
        self._new_sessions = Together(database.write, _insert_sessions)
        self._remembered = RememberedKeys()
        self.certificates = NodeCertificates(database=database, clock=clock, audit=audit, secrets=secrets, nodes=nodes)

    # -- handshake ----------------------------------------------------------------------------------------------------
    async def begin(
        self, request: session_pb2.BeginHandshakeRequest, address: str
    ) -> session_pb2.BeginHandshakeResponse:
        """Answer an api_key with a challenge, and with the bundles that the node lacks. Reads no table, unless the node
        knows a newer authority than this replica.

        Raises:
            Refusal: UNKNOWN_CREDENTIAL, MALFORMED, PROTOCOL_TOO_OLD, or OVERLOADED with a delay; UNAVAILABLE when the
                node trusts an authority that this replica does not know yet.
        """
        digest = self._genuine("BeginHandshake", request.api_key, address)
        check_protocol_version(request.protocol_version)
        if not 0 < len(request.node_id) <= MAX_ID_CHARS:
            raise Refusal(Reason.MALFORMED, "node_id is missing or too long")
        has_turn = self.admission.admit_handshake(digest, address)
        held = request.bundle_version
        if not has_turn:  # no chain either: whoever uses the node's api_key would have it as often as asked for
            return self._challenge(ChallengePurpose.OWING_HANDSHAKE, request.node_id)
        if held.generation > self._trust.authority_generation:
            await self._trust.watch.look()
        with self.admission.measured("begin"):
            response = self._challenge(ChallengePurpose.HANDSHAKE, request.node_id)
            self._check_generation(held.generation)
            response.bundle_chain.extend(part(self._trust.bundle_chain_from(held.generation, held.number)))
        return response

    def _challenge(self, purpose: ChallengePurpose, node_id: str) -> session_pb2.BeginHandshakeResponse:
        challenge = self._credentials.challenge(
            purpose,
            node_id,
            nonce=os.urandom(NONCE_BYTES),
            expires_at_ms=self._clock.now_ms() + CHALLENGE_TTL_MS,
        )
        return session_pb2.BeginHandshakeResponse(challenge=challenge, valid_for_ms=CHALLENGE_TTL_MS)

    async def complete(
        self, request: session_pb2.CompleteHandshakeRequest, address: str, certificate_pem: bytes = b""
    ) -> session_pb2.CompleteHandshakeResponse:
        """Exchange signed statements and hand out a session token.

        Args:
            certificate_pem: of the caller, verified by TLS; the session is good over it alone. Empty on the listener
                that asks for none.

        Raises:
            Refusal: UNKNOWN_CREDENTIAL, BAD_PROOF, CHALLENGE_EXPIRED, WRONG_CERTIFICATE, CLIENT_CERTIFICATE,
                WRONG_CLUSTER, PROTOCOL_TOO_OLD, the state of the node, or OVERLOADED with a delay.
        """
        started_s = self._clock.monotonic()
        digest = self._genuine("CompleteHandshake", request.api_key, address)
        said = proofs.parse(session_pb2.HandshakeStatement, request.signed)
        try:
            # Nothing of `said` counts before its signature verifies; these checks only refuse, and cost no query.
            challenge = self._check_challenge(said)
            self._check_statement(said)
            self._answered.check(said.challenge)
            is_node = partial(self._remembered.signed, digest, Domain.HANDSHAKE, request.signed)
            with self.admission.proving("CompleteHandshake", digest, address, is_node) as payment:
                response = await self._complete(digest, request.signed, said, challenge, certificate_pem, payment)
        except Refusal as refusal:
            self._metrics.handshakes.labels(str(refusal.reason)).inc()
            self._refusals.note("CompleteHandshake", said.node_id, address, refusal)
            raise
        self._metrics.handshakes.labels("ok").inc()
        self._metrics.handshake_duration.observe(self._clock.monotonic() - started_s)
        return response

    async def _complete(
        self,
        digest: bytes,
        signed: trust_pb2.Signed,
        said: session_pb2.HandshakeStatement,
        challenge: _Challenge,
        certificate_pem: bytes,
        payment: Payment,
    ) -> session_pb2.CompleteHandshakeResponse:
        standing = await self._standings.find(digest)
        with self.admission.measured("complete"), self._judging(digest, standing):
            node = self._standings.node_of(standing, said.node_id)
            proofs.verify(signed, Domain.HANDSHAKE, node.identity_key)
            if challenge.owes_turn:
                payment.kept = True
                self.admission.admit_owing(digest)
                payment.kept = False
            # After the signature: a stranger must not be able to use up somebody else's challenge.
            self._answered.note(said.challenge, challenge.expires_ms, self._clock.now_ms())
            refuse_unless_active(node)
            bound = client_certificate(certificate_pem, node.node_id, self._clock.now_ms())
            response, row = self._answer(signed, said, node, bound)
        if not await self._new_sessions.ask(row):
            raise proofs.answered_already()  # on another replica, or before this one restarted
        return response

    def _answer(
        self, signed: trust_pb2.Signed, said: session_pb2.HandshakeStatement, node: NodeRecord, bound: bytes
    ) -> tuple[session_pb2.CompleteHandshakeResponse, SessionRow]:
        token = self._credentials.session_token(said.challenge)
        token_sha256 = hashlib.sha256(token).digest()
        share = X25519PrivateKey.generate()
        now_ms = self._clock.now_ms()
        statement = session_pb2.HandshakeServerStatement(
            node_proof_sha256=hashlib.sha256(signed.statement + signed.signatures[0].value).digest(),
            session_token_sha256=token_sha256,
            server_time_ms=now_ms,
            expires_at_ms=now_ms + self._session_ttl_ms,
            x25519_share=share.public_key().public_bytes_raw(),
        ).SerializeToString(deterministic=True)
        try:
            frame_keys = derive_frame_keys(share, said.x25519_share, signed.statement, statement)
        except ChannelError as error:
            raise Refusal(Reason.BAD_PROOF, "the X25519 share is not usable: begin the handshake again") from error
        sealed = self._box.seal(frame_keys.pack(), row=session_row(token_sha256, node.node_id, bound))
        answer = self._trust.authority.sign(Domain.HANDSHAKE_SERVER, statement)
        return (
            session_pb2.CompleteHandshakeResponse(signed=answer, session_token=token),
            SessionRow(token_sha256, node.node_id, sealed, now_ms + self._session_ttl_ms, 0, bound),
        )

    def _check_challenge(self, said: session_pb2.HandshakeStatement) -> _Challenge:
        check = partial(
            self._credentials.check_challenge, said.challenge, subject=said.node_id, now_ms=self._clock.now_ms()
        )
        try:
            return _Challenge(check(ChallengePurpose.HANDSHAKE), owes_turn=False)
        except Refusal as refusal:
            if refusal.reason is not Reason.BAD_PROOF:
                raise
            return _Challenge(check(ChallengePurpose.OWING_HANDSHAKE), owes_turn=True)

    @contextmanager
    def _judging(self, digest: bytes, standing: Standing) -> Iterator[None]:
        """Around what is checked once a query was made: whoever fails may have another node's api_key."""
        try:
            yield
        except Refusal:
            if standing.node is not None:
                self._remembered.note(digest, standing.node.identity_key)
            raise

    def _genuine(self, rpc: str, api_key: str, address: str) -> bytes:
        try:
            return self._credentials.api_key_digest(api_key)
        except Refusal:
            self._metrics.handshakes.labels(str(Reason.UNKNOWN_CREDENTIAL)).inc()
            self.admission.charge_garbage(rpc, address)
            raise

    def _check_generation(self, held: int) -> None:
        if held > self._trust.authority_generation:
            raise Refusal(
                Reason.UNAVAILABLE,
                f"the node trusts the authority of generation {held}, which this replica does not know yet: it learns"
                " of it within a second or two; if it does not, the database was restored from before that rotation",
            )

    def _check_statement(self, said: session_pb2.HandshakeStatement) -> None:
        if said.cluster_id != self._trust.cluster_id:
            raise proofs.wrong_cluster()
        check_protocol_version(said.protocol_version)
        if len(said.client_nonce) != 32:
            raise Refusal(Reason.MALFORMED, "client_nonce must have 32 bytes")
        if not any(hmac.compare_digest(said.server_leaf_sha256, leaf) for leaf in self._accepted_leaves()):
            raise Refusal(
                Reason.WRONG_CERTIFICATE,
                "the node saw a TLS certificate that is not this server's: fetch it again; if it persists, something"
                " between the two terminates TLS, and its certificate has to be named in the server's settings",
            )


def _insert_sessions(tx: Transaction, rows: Sequence[SessionRow]) -> Sequence[bool]:
    return store.insert_sessions(tx.conn, rows)


def session_row(token_sha256: bytes, node_id: str, client_certificate_sha256: bytes) -> str:
    """What a session's frame keys are sealed for; the node is part of it, and the client certificate: a row moved to
    another node, or to another certificate, opens no more.
    """
    return f"sessions/{token_sha256.hex()}/{node_id}/{client_certificate_sha256.hex()}"
