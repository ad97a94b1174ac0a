"""Use cases: issue an api_key, shake hands, claim a session for one stream, renew it.

Mental model
    An api_key and a challenge answer alone are worth nothing: the handshake also needs the node's identity key, gives a
    token that opens one stream once, and the stream needs that key again. What is cheap to check comes first, and what
    nobody could have made without this installation's keys costs no query.
    BeginHandshake touches no database; CompleteHandshake reads once and writes once; Connect reads once and claims in
    ONE write: token, stream epoch, profile and audit stand or fall together. Whoever comes at one moment shares these
    reads and writes, so that a fleet that comes back costs few of them.
    Jobs of the writer answer a refusal instead of raising it: one that raised would break up the group that others
    share.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from fleet.channel import FrameKeys
from fleet.clock import Clock
from fleet.envelope import Domain
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.v1 import gateway_pb2, session_pb2, trust_pb2
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.service import AuditService
from fleet_server.boundary import network_of
from fleet_server.database.engine import Connection, Database
from fleet_server.database.together import Together
from fleet_server.database.writer import Transaction
from fleet_server.nodes.ownership import write_as_newest
from fleet_server.nodes.service import NodeService
from fleet_server.observability.metrics import SessionMetrics
from fleet_server.sessions import proofs, store
from fleet_server.sessions.admission import Admission
from fleet_server.sessions.claim import ProvenHello, StreamClaim, StreamSession
from fleet_server.sessions.client_certificates import check_binding, check_not_ended
from fleet_server.sessions.credentials import ChallengePurpose
from fleet_server.sessions.handshake import NONCE_BYTES, HandshakeService, session_row
from fleet_server.sessions.hello import MAX_ID_CHARS, HelloRules
from fleet_server.sessions.opening import Opened, StreamOpening
from fleet_server.sessions.ratchet_store import TamperedRatchetError
from fleet_server.sessions.same_machine import SameMachine
from fleet_server.sessions.standing import open_session, refuse_unless_active
from fleet_server.sessions.store import SessionRow
from fleet_server.trust.secrets import SealError, Secrets
from fleet_server.trust.service import TrustService

log = get_logger(__name__)

REAUTH_TTL_MS = 60_000
CLEANUP_INTERVAL_S = 60.0
AUDIT_INTERVAL_S = 1.0
MAX_WAITING_HELLOS = 8  # of one api_key from one address: a node opens one stream, and one more when it moves
EXPIRED_KEPT_MS = 3_600_000  # so long a late token is told from one that never was
ENDED_KEPT_MS = 24 * 3_600_000  # as long an api_key


class SessionService(HandshakeService):
    """The sessions room; the handshake itself stands in `handshake`."""

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
        super().__init__(
            database=database,
            clock=clock,
            audit=audit,
            metrics=metrics,
            secrets=secrets,
            trust=trust,
            nodes=nodes,
            admission=admission,
            accepted_leaves=accepted_leaves,
            session_ttl_ms=session_ttl_ms,
            rotations_per_day=rotations_per_day,
        )
        nodes.on_create(lambda tx, node_id: self._ratchets.begin(tx.conn, node_id))
        self._opening = StreamOpening(
            clock=clock,
            audit=audit,
            nodes=nodes,
            standings=self._standings,
            rotations=self.rotations,
            same_machine=SameMachine(self._ratchets, nodes, audit),
        )
        self._openings = Together(database.write, self._opening.open_free, key=lambda hello: hello.node.node_id)
        self._hellos = HelloRules()
        self._waiting_hellos: dict[tuple[bytes, str], deque[asyncio.Future[None]]] = {}

    # -- streams ------------------------------------------------------------------------------------------------------
    @contextmanager
    def waiting_for_hello(self, api_key: str, address: str) -> Iterator[asyncio.Future[None]]:
        """Hold one of the few places in which an api_key may wait, at one address, for the first frame of a stream. A
        stranger gets none: nobody without a genuine api_key keeps a call open here. Reads no table.

        Yields:
            What is done once the place is wanted by a later caller, who may be the node while a thief waits.

        Raises:
            Refusal: UNKNOWN_CREDENTIAL, or OVERLOADED with a delay.
        """
        caller = (self._genuine("Connect", api_key, address), network_of(address))
        places = self._waiting_hellos.setdefault(caller, deque())
        if len(places) >= MAX_WAITING_HELLOS:
            self._metrics.rate_limited.labels("Connect", "credential").inc()
            places.popleft().set_result(None)
        wanted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        places.append(wanted)
        try:
            yield wanted
        finally:
            if not wanted.done():
                places.remove(wanted)
            if not places and self._waiting_hellos.get(caller) is places:
                del self._waiting_hellos[caller]

    async def claim(
        self,
        api_key: str,
        token: bytes,
        hello: gateway_pb2.Hello,
        address: str,
        *,
        stream_id: str,
        replica_id: str,
        certificate_pem: bytes = b"",
        is_gone: Callable[[], bool] = lambda: False,
    ) -> StreamClaim:
        """Turn a session into a stream: once, only for whoever holds the node's identity key, and only over the client
        certificate that it was made over.

        Args:
            is_gone: whether who said hello has left meanwhile; any thread asks. It may have another stream by then, at
                another replica, which a late one of nobody's would end.

        Raises:
            Refusal: UNKNOWN_CREDENTIAL, BAD_PROOF, CLIENT_CERTIFICATE, SESSION_EXPIRED, TOKEN_USED, MALFORMED, state,
                or OVERLOADED with a delay.
        """
        digest = self._credentials.api_key_digest(api_key)
        said = proofs.parse(session_pb2.StreamStatement, hello.proof)
        token_sha256 = hashlib.sha256(token).digest()
        try:
            self._check_statement_of_stream(said, token_sha256, hello)
            is_node = partial(self._remembered.signed, digest, Domain.STREAM, hello.proof)
            with self.admission.proving("Connect", digest, address, is_node):
                claim = self._claim(digest, token_sha256, hello, said, certificate_pem, stream_id, replica_id, is_gone)
                return await claim
        except Refusal as refusal:
            self._refusals.note("Connect", said.node_id, address, refusal)
            raise

    async def _claim(
        self,
        digest: bytes,
        token_sha256: bytes,
        hello: gateway_pb2.Hello,
        said: session_pb2.StreamStatement,
        certificate_pem: bytes,
        stream_id: str,
        replica_id: str,
        is_gone: Callable[[], bool],
    ) -> StreamClaim:
        decisions = self._nodes.decisions
        standing = await self._standings.find(digest, token_sha256)
        with self.admission.measured("claim"), self._judging(digest, standing):
            node = self._standings.node_of(standing, said.node_id)
            row = open_session(standing.session, node, self._clock.now_ms())
            proofs.verify(hello.proof, Domain.STREAM, node.identity_key)
            refuse_unless_active(node)
            certificate_ends_ms = check_binding(row, certificate_pem, self._clock.now_ms())
            frame_keys = self._open_frame_keys(row)
            body = self._hellos.parse(hello.body)
        await self._trust.note_held_bundle(body.bundle_version.generation, body.bundle_version.number)

        proven = ProvenHello(
            api_key_sha256=digest,
            node=node,
            session=row,
            rotation=standing.rotation,
            said=said,
            body=body,
            stream_id=stream_id,
            replica_id=replica_id,
            is_gone=is_gone,
        )
        opened = await self._open(proven)
        if isinstance(opened, Refusal):
            raise opened
        return StreamClaim(
            node=node,
            epoch=opened.epoch,
            frame_keys=frame_keys,
            binding=hashlib.sha256(hello.proof.statement).digest(),
            hello_body=body,
            session_expires_at_ms=row.expires_at_ms,
            token_sha256=token_sha256,
            takeover_of=said.takeover_of[:MAX_ID_CHARS],
            decisions=decisions,
            turn=opened.turn,
            certificate_ends_ms=certificate_ends_ms,
            orders=() if standing.rotation is None else standing.rotation.orders(shown_sha256=digest),
        )

    async def _open(self, hello: ProvenHello) -> Opened | Refusal:
        opened = await self._openings.ask(hello)
        if opened is None:
            return await self._database.write(lambda tx: self._opening.open(tx, hello))
        return opened

    def _check_statement_of_stream(
        self, said: session_pb2.StreamStatement, token_sha256: bytes, hello: gateway_pb2.Hello
    ) -> None:
        """What costs no query, and only refuses: nothing of `said` counts before its signature verifies."""
        if not hmac.compare_digest(said.session_token_sha256, token_sha256):
            raise proofs.bad_proof("it is for another session")
        if not hmac.compare_digest(said.hello_sha256, hashlib.sha256(hello.body).digest()):
            raise proofs.bad_proof("it is for another hello")
        if said.cluster_id != self._trust.cluster_id:
            raise proofs.wrong_cluster()

    def adopt_nodes(self, abandon_signed: Callable[[Transaction, str, bool], int]) -> None:
        """Let operators adopt nodes: the machine that comes next is the node, whatever its ratchet.

        Args:
            abandon_signed: gives up what was signed to a node, adopted or replaced, and has no result; the highest seq
                that ever was.
        """

        def adopt(tx: Transaction, node_id: str, replaced: bool) -> None:
            floor = abandon_signed(tx, node_id, replaced)
            now_ms = self._clock.now_ms()
            self._ratchets.accept_any(tx.conn, node_id, seq_floor=floor, now_ms=now_ms, replaced=replaced)

        self._nodes.on_adopt(adopt)

    async def any_machine_until_ms(self, node_id: str) -> int:
        """Until when any machine with the node's keys is taken for it, once, Unix milliseconds; 0 when none is."""

        def query(conn: Connection) -> int:
            try:
                return self._ratchets.any_until_ms(conn, node_id)
            except TamperedRatchetError:
                return 0

        until_ms = await self._database.read(query)
        return until_ms if until_ms > self._clock.now_ms() else 0

    def reauth_challenge(self, node_id: str, stream_id: str) -> bytes:
        """A challenge that only this node's proof over this stream answers."""
        return self._credentials.challenge(
            ChallengePurpose.REAUTH,
            f"{node_id}/{stream_id}",
            nonce=os.urandom(NONCE_BYTES),
            expires_at_ms=self._clock.now_ms() + REAUTH_TTL_MS,
        )

    async def reauth(self, session: StreamSession, stream_id: str, proof: trust_pb2.Signed) -> int:
        """Renew the session of a live stream; the Unix millisecond at which it ends now.

        Raises:
            Refusal: BAD_PROOF, CHALLENGE_EXPIRED, SESSION_EXPIRED, SUPERSEDED, CLIENT_CERTIFICATE, or the state of the
                node.
        """
        try:
            expires_at_ms = await self._reauth(session, stream_id, proof)
        except Refusal as refusal:
            self._metrics.reauths.labels(str(refusal.reason)).inc()
            self._refusals.note("reauth", session.node_id, "", refusal)
            raise
        self._metrics.reauths.labels("ok").inc()
        return expires_at_ms

    async def _reauth(self, session: StreamSession, stream_id: str, proof: trust_pb2.Signed) -> int:
        node_id = session.node_id
        said = proofs.parse(session_pb2.ReauthStatement, proof)
        now_ms = self._clock.now_ms()
        self._credentials.check_challenge(
            said.challenge, ChallengePurpose.REAUTH, f"{node_id}/{stream_id}", now_ms=now_ms
        )
        if said.stream_id != stream_id:
            raise proofs.bad_proof("it is for another stream")
        node = await self._database.read(lambda conn: self._nodes.load(conn, node_id))
        if node is None:
            raise proofs.unknown_credential()
        proofs.verify(proof, Domain.REAUTH, node.identity_key)
        refuse_unless_active(node)
        check_not_ended(session.certificate_ends_ms, now_ms)
        expires_at_ms = now_ms + self._session_ttl_ms

        def work(tx: Transaction) -> bool:
            extended = store.extend(tx.conn, session.token_sha256, session.epoch, expires_at_ms)
            if extended:
                subject = f"node:{node_id}"
                kind = AuditKind.SESSION_RENEWED
                self._audit.append(tx, kind, actor=subject, subject=subject, detail={"epoch": session.epoch})
            return extended

        if not await write_as_newest(self._database, self._nodes, node_id, session.epoch, work):
            raise proofs.session_expired()
        return expires_at_ms

    # -- housekeeping -------------------------------------------------------------------------------------------------
    async def clean_up(self) -> None:
        """Delete sessions and api_keys that ended long ago.

        Raises:
            Refusal: the database is away.
        """

        def work(tx: Transaction) -> None:
            now_ms = self._clock.now_ms()
            store.delete_expired(tx.conn, now_ms - EXPIRED_KEPT_MS)
            self.rotations.forget_ended(tx, now_ms - ENDED_KEPT_MS)

        await self._database.write(work)

    async def run_cleanup(self) -> None:
        """Clean up each minute, until cancelled."""
        while True:
            await self._clock.sleep(CLEANUP_INTERVAL_S)
            try:
                await self.clean_up()
            except Refusal as refusal:
                log.warning("session_cleanup_failed", reason=str(refusal.reason))

    async def flush_audit(self) -> None:
        """Write refused proofs, and api_key rows found tampered, into the audit now.

        Raises:
            Refusal: the database is away; nothing is forgotten.
        """
        await self._refusals.flush()

    async def run_audit(self) -> None:
        """Write refused proofs into the audit, one row each second that has any, until cancelled."""
        while True:
            await self._clock.sleep(AUDIT_INTERVAL_S)
            try:
                await self.flush_audit()
            except Refusal as refusal:
                log.warning("refusal_audit_delayed", reason=str(refusal.reason))

    def _open_frame_keys(self, row: SessionRow) -> FrameKeys:
        try:
            sealed_for = session_row(row.token_sha256, row.node_id, row.client_certificate_sha256)
            return FrameKeys.unpack(self._box.unseal(row.sealed_frame_keys, row=sealed_for))
        except (SealError, ValueError) as error:
            log.error("session_row_tampered", node_id=row.node_id)
            raise Refusal(
                Reason.SESSION_EXPIRED, "the session's record cannot be opened: shake hands for a new one"
            ) from error
