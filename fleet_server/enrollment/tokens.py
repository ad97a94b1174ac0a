"""Join tokens: made, listed, revoked (docs/protocol.md, "Enrollment")."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace

from fleet.clock import Clock
from fleet.envelope import Domain
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.v1 import enrollment_pb2
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import JSON
from fleet_server.audit.service import AuditService
from fleet_server.database.engine import Database
from fleet_server.database.writer import Transaction
from fleet_server.enrollment import rules
from fleet_server.enrollment.rules import JoinTokenRecord
from fleet_server.enrollment.store import TokenStore
from fleet_server.trust.service import TrustService

log = get_logger(__name__)

MAX_PAGE = 1000


class JoinTokens:
    """Operators' verbs around join tokens.

    Args:
        token_ids: makes their ids, each good with its token's secret alone.
    """

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        audit: AuditService,
        trust: TrustService,
        tokens: TokenStore,
        token_ids: rules.MarkedIds,
    ) -> None:
        self._database = database
        self._clock = clock
        self._audit = audit
        self._trust = trust
        self._tokens = tokens
        self._token_ids = token_ids
        self._told: set[str] = set()

    async def create_token(
        self, actor: str, *, site: str, ttl_s: int, max_uses: int, auto_approve: bool
    ) -> tuple[JoinTokenRecord, enrollment_pb2.JoinToken]:
        """Make a join token; the whole token is in the answer and nowhere else.

        Args:
            ttl_s: seconds; 0 means an hour.
            max_uses: nodes; 0 means one.

        Raises:
            Refusal: INVALID_ARGUMENT.
        """
        ttl_s, max_uses = rules.checked_token_terms(site, ttl_s, max_uses)
        secret = os.urandom(rules.SECRET_BYTES)
        secret_sha256 = hashlib.sha256(secret).digest()
        now_ms = self._clock.now_ms()
        record = JoinTokenRecord(
            token_id=self._token_ids.text(os.urandom(rules.ID_NONCE_BYTES), secret_sha256),
            cluster_id=self._trust.cluster_id,
            secret_sha256=secret_sha256,
            site=site,
            max_uses=max_uses,
            uses=0,
            auto_approve=auto_approve,
            created_by=actor,
            created_at_ms=now_ms,
            expires_at_ms=now_ms + ttl_s * 1000,
            revoked_at_ms=0,
        )
        signed = self._trust.authority.sign(Domain.JOIN_TOKEN, self._token_statement(record))

        def work(tx: Transaction) -> None:
            self._tokens.insert(tx.conn, record)
            detail: Mapping[str, JSON] = {
                "site": site,
                "ttl_s": ttl_s,
                "max_uses": max_uses,
                "auto_approve": auto_approve,
            }
            self._audit.append(
                tx, AuditKind.JOIN_TOKEN_CREATED, actor=actor, subject=f"join_token:{record.token_id}", detail=detail
            )

        await self._database.write(work)
        return record, enrollment_pb2.JoinToken(signed=signed, secret=secret)

    async def list_tokens(self, *, page_token: str = "", limit: int = 100) -> list[JoinTokenRecord]:
        """Join tokens, newest first.

        Raises:
            Refusal: INVALID_ARGUMENT for the page token.
        """
        before = rules.page_start(page_token)
        return await self._database.read(lambda conn: self._tokens.page(conn, before, min(limit, MAX_PAGE)))

    async def revoke_token(self, actor: str, token_id: str) -> JoinTokenRecord:
        """End a token; nodes that enrolled with it stay. Revoking again changes nothing.

        Raises:
            Refusal: NOT_FOUND.
        """

        def work(tx: Transaction) -> JoinTokenRecord:
            token = self._tokens.by_id(tx.conn, token_id, lock=True)
            if token is None:
                raise Refusal(
                    Reason.NOT_FOUND, f"there is no join token {token_id[:80]!r}: `fleetctl join-token list` shows them"
                )
            if token.revoked_at_ms and token.intact:
                return token
            subject = f"join_token:{token_id}"
            self._audit.append(tx, AuditKind.JOIN_TOKEN_REVOKED, actor=actor, subject=subject, detail={})
            return replace(self._tokens.revoke(tx.conn, token, self._clock.now_ms()), intact=True)

        return await self._database.write(work)

    async def tell_tampered(self, token_id: str) -> None:
        """Audit a tampered join token once; a refused one that is intact is no news."""
        if token_id in self._told:
            return
        token = await self._database.read(lambda conn: self._tokens.by_id(conn, token_id))
        if token is None or token.intact:
            return
        self._told.add(token_id)
        log.error("join_token_row_tampered", token_id=token_id)
        detail = {"table": "join_tokens", "row": token_id}
        subject = f"join_token:{token_id}"
        kind = AuditKind.JOIN_TOKEN_QUARANTINED
        await self._database.write(
            lambda tx: self._audit.append(tx, kind, actor="server", subject=subject, detail=detail)
        )

    def _token_statement(self, record: JoinTokenRecord) -> bytes:
        bundle = self._trust.bundle
        return enrollment_pb2.JoinTokenStatement(
            token_id=record.token_id,
            cluster_id=record.cluster_id,
            endpoints=bundle.endpoints,
            tls_ca_der=bundle.tls_ca_der[0] if bundle.tls_ca_der else b"",
            authority_key=bundle.authority_key,
            site=record.site,
            expires_at_ms=record.expires_at_ms,
            max_uses=record.max_uses,
            auto_approve=record.auto_approve,
            authority_generation=bundle.generation,
            bundle_number=bundle.number,
        ).SerializeToString(deterministic=True)
