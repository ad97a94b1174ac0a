"""Whether this installation may serve, and who administers it.

Mental model
    A server in strict mode pins the product root's public key in its settings. It serves nobody until the database
    holds a manifest that this key signed for this installation; each replica looks every few seconds, so one import
    opens all of them.
    The manifest names the first owner's key. Who signs a challenge with that key gets an operator and its token: that
    operator, and those to whom the product root signed a grant, administer the platform.
    What is stored is what was signed, and it is verified each time it is used: who can write the database gains
    nothing.
    Callers need no token, so all that they say is judged on a snapshot first: only what was rightly signed, and would
    change something, becomes a job of the one writer, which answers a refusal instead of raising it: one that raised
    would break up the group that others share.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet.key_file import show_public_key
from fleet.logs import get_logger
from fleet.secrets import Secret
from fleet.v1 import trust_pb2
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.service import AuditService
from fleet_server.database.engine import Connection, Database
from fleet_server.database.writer import Transaction
from fleet_server.installation import rules, store
from fleet_server.installation.imported import Authority, Imported
from fleet_server.installation.rules import Claim, Grant

log = get_logger(__name__)

LOOK_INTERVAL_S = 2.0
"""Seconds until a replica that waits for activation notices what another one imported."""
LOOK_AGAIN_INTERVAL_S = 30.0
"""Seconds between two looks of a replica that serves."""
NODE_RETRY_S = 30.0
_NONCE_BYTES = 16

MakeOwner = Callable[[Transaction, str, str], Secret[str]]
"""Makes the operator of that id and name an owner, or gives the one that is there a new token; the token."""


class Bucket(Protocol):
    """Bounds what callers without credentials may cost."""

    def take(self, address: str, now_s: float) -> bool:
        """One more call from there; False for too many."""
        ...


@dataclass(frozen=True, slots=True)
class InstallationView:
    """How the installation stands."""

    installation_id: str
    cluster_id: str
    strict: bool
    root_key: bytes
    authority: Authority | None
    waits_for: str
    challenge: bytes
    grants: tuple[Grant, ...]


class InstallationService:
    """Use cases around activation.

    Args:
        strict: whether a manifest is needed.
        root_key: the pinned product root, raw; empty for none.
        challenge_key: gives 32 bytes, the same on every replica; asked once the database was read.
        bucket: bounds calls without credentials.
    """

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        audit: AuditService,
        strict: bool,
        root_key: bytes,
        challenge_key: Callable[[], bytes],
        bucket: Bucket,
    ) -> None:
        self._database = database
        self._clock = clock
        self._audit = audit
        self.strict = strict
        self._root_key = root_key
        self._imported = Imported(root_key, audit.spent)
        self._challenge_key = challenge_key
        self._bucket = bucket
        self._installation_id = ""
        self._cluster_id = ""
        self._authority: Authority | None = None
        self._make_owner: MakeOwner | None = None

    def make_owners_with(self, make_owner: MakeOwner) -> None:
        """Tell who makes operators; before the first claim."""
        self._make_owner = make_owner

    async def load(self, installation_id: str, cluster_id: str) -> None:
        """Take what was imported so far."""
        self._installation_id, self._cluster_id = installation_id, cluster_id
        await self._look()
        if self.waits_for:
            log.warning("activation_needed", installation_id=installation_id)

    @property
    def waits_for(self) -> str:
        """What the installation waits for, and what to do; empty once it serves."""
        if not self.strict or self._authority is not None:
            return ""
        return (
            "this installation is not activated: have the product root sign a manifest"
            f" (`fleetctl root sign-activation --installation {self._installation_id}`)"
            " and import it with `fleetctl installation activate FILE`"
        )

    def first_owner_key(self) -> bytes:
        """Raw public key that the product root named; empty without strict mode."""
        return self._authority.manifest.first_owner_key if self.strict and self._authority is not None else b""

    def require_active(self) -> None:
        """Check that the installation serves.

        Raises:
            Refusal: NOT_ACTIVATED, with a delay for nodes.
        """
        if waits_for := self.waits_for:
            raise Refusal(Reason.NOT_ACTIVATED, waits_for, retry_after_s=NODE_RETRY_S)

    async def run(self) -> None:
        """Look what other replicas imported, until cancelled."""
        while True:
            await self._clock.sleep(LOOK_INTERVAL_S if self.waits_for else LOOK_AGAIN_INTERVAL_S)
            try:
                await self._look()
            except Refusal as refusal:
                log.debug("activation_look_waits", reason=str(refusal.reason))

    def admit(self, address: str | None) -> None:
        """Let somebody call.

        Args:
            address: of the caller, whose bucket pays; None for an operator, who pays nothing here or below.

        Raises:
            Refusal: OVERLOADED.
        """
        if address is not None and not self._bucket.take(address, self._clock.monotonic()):
            raise Refusal(Reason.OVERLOADED, "too many calls without a token: try again", retry_after_s=1.0)

    async def view(self, address: str | None) -> InstallationView:
        """How it stands, with a fresh challenge.

        Raises:
            Refusal: OVERLOADED, or the database is away.
        """
        self.admit(address)
        return await self._view()

    async def activate(self, signed: trust_pb2.Signed, address: str | None) -> InstallationView:
        """Import a manifest. The same one again changes nothing.

        Raises:
            Refusal: not signed by the pinned root, for another installation, expired, or older than the held one.
        """
        self.admit(address)
        root_key = self._pinned()
        manifest = rules.verify_manifest(signed, root_key=root_key, installation_id=self._installation_id)
        now_ms = self._clock.now_ms()

        def is_new(conn: Connection, held: Authority | None) -> bool:
            self._imported.check_not_replaced(conn, signed)
            rules.check_import(manifest, held.manifest if held else None, now_ms)
            return held is None or held.manifest != manifest

        def work(tx: Transaction) -> Refusal | None:
            held = self._read(tx.conn, lock=True)
            try:
                if not is_new(tx.conn, held):
                    return None
                if held is not None:
                    self._imported.note_replaced(tx.conn, held)
            except Refusal as refusal:
                return refusal
            raw, claim = signed.SerializeToString(), b""
            if held is not None and held.manifest.first_owner_key == manifest.first_owner_key:
                claim = held.signed_claim  # the owner keeps its name, and no claim of before is good again
            store.put_authority(tx.conn, store.AuthorityRow(self._installation_id, raw, now_ms, claim))
            self._audit.append(
                tx,
                AuditKind.INSTALLATION_ACTIVATED,
                actor="product-root",
                subject=self._installation_id,
                detail={
                    "first_owner_key": show_public_key(manifest.first_owner_key),
                    "root_key": show_public_key(root_key),
                    "issued_at_ms": manifest.issued_at_ms,
                },
            )
            return None

        changes = await self._database.read(lambda conn: is_new(conn, self._read(conn)))
        if changes and (refused := await self._database.write(work)):
            raise refused
        return await self._view()

    async def claim_owner(self, signed: trust_pb2.Signed, address: str | None) -> tuple[Claim, Secret[str]]:
        """Give the first owner a token. A later claim with the same operator id ends the token before it.

        Raises:
            Refusal: NOT_ACTIVATED, not signed by the first owner, not fresh, or the name is taken.
        """
        self.admit(address)
        make_owner = self._make_owner
        if make_owner is None:
            raise RuntimeError("InstallationService.make_owners_with() was not called")

        def work(tx: Transaction) -> tuple[Claim, Secret[str]] | Refusal:
            held = self._read(tx.conn, lock=True)
            try:
                claim = self._judge_claim(signed, held)
                token = make_owner(tx, claim.operator_id, claim.operator_name)
            except Refusal as refusal:
                return refusal
            store.put_claim(tx.conn, self._installation_id, signed.SerializeToString())
            self._audit.append(
                tx,
                AuditKind.INSTALLATION_OWNER_CLAIMED,
                actor="first-owner",
                subject=claim.operator_name,
                detail={"operator_id": claim.operator_id, "again": held is not None and held.claim is not None},
            )
            return claim, token

        self._judge_claim(signed, await self._database.read(self._read))
        claimed = await self._database.write(work)
        if isinstance(claimed, Refusal):
            raise claimed
        await self._look()
        return claimed

    async def import_grant(self, signed: trust_pb2.Signed, address: str | None) -> Grant:
        """Store a platform role grant. The same one again changes nothing.

        Raises:
            Refusal: not signed by the pinned root, for another installation, or expired.
        """
        self.admit(address)
        grant = rules.verify_grant(signed, root_key=self._pinned(), installation_id=self._installation_id)
        now_ms = self._clock.now_ms()
        rules.check_grant_import(grant, now_ms)

        def work(tx: Transaction) -> None:
            raw = signed.SerializeToString()
            digest = hashlib.sha256(signed.statement).digest()
            if not store.put_grant(tx.conn, store.GrantRow(digest, self._installation_id, raw, now_ms)):
                return
            self._audit.append(
                tx,
                AuditKind.PLATFORM_GRANT_IMPORTED,
                actor="product-root",
                subject=grant.operator_id,
                detail={"name": grant.operator_name, "role": grant.role, "not_after_ms": grant.not_after_ms},
            )

        await self._database.write(work)
        return grant

    async def is_platform_admin(self, operator_id: str) -> bool:
        """Whether signatures, and nothing else, make the operator a platform admin. Without strict mode everybody whose
        role suffices is one."""
        if not self.strict:
            return True

        def query(conn: Connection) -> bool:
            held = self._read(conn)
            claimed = held is not None and held.claim is not None and held.claim.operator_id == operator_id
            return claimed or any(grant.operator_id == operator_id for grant in self._grants(conn))

        return await self._database.read(query)

    async def require_platform_admin(self, operator_id: str, what: str) -> None:
        """Check that the operator is a platform admin.

        Raises:
            Refusal: PERMISSION_DENIED.
        """
        if not await self.is_platform_admin(operator_id):
            raise Refusal(
                Reason.PERMISSION_DENIED,
                f"{what} is for platform admins: have the product root sign a grant for {operator_id}"
                " (`fleetctl root sign-grant`), then `fleetctl installation grant FILE`",
                metadata={"needed_grant": rules.PLATFORM_ADMIN},
            )

    def _judge_claim(self, signed: trust_pb2.Signed, held: Authority | None) -> Claim:
        if held is None:
            raise Refusal(Reason.NOT_ACTIVATED, self.waits_for or "no activation manifest was imported here")
        claim = rules.verify_claim(signed, manifest=held.manifest, installation_id=self._installation_id)
        rules.check_claim(claim, held.claim, challenge_key=self._challenge_key(), now_ms=self._clock.now_ms())
        return claim

    async def _view(self) -> InstallationView:
        found, grants = await self._database.read(lambda conn: (self._read(conn), self._grants(conn)))
        self._take_up(found)  # another replica may have imported it a moment ago
        return InstallationView(
            installation_id=self._installation_id,
            cluster_id=self._cluster_id,
            strict=self.strict,
            root_key=self._root_key,
            authority=self._authority,
            waits_for=self.waits_for,
            challenge=rules.make_challenge(self._challenge_key(), self._clock.now_ms(), os.urandom(_NONCE_BYTES)),
            grants=tuple(grants),
        )

    async def _look(self) -> None:
        self._take_up(await self._database.read(self._read))

    def _take_up(self, found: Authority | None) -> None:
        if (found is None) != (self._authority is None):
            log.info("activation_changed", installation_id=self._installation_id, active=found is not None)
        self._authority = found

    def _read(self, conn: Connection, *, lock: bool = False) -> Authority | None:
        return self._imported.authority(conn, self._installation_id, lock=lock)

    def _grants(self, conn: Connection) -> list[Grant]:
        return self._imported.grants(conn, self._installation_id, self._clock.now_ms())

    def _pinned(self) -> bytes:
        if not self._root_key:
            raise Refusal(
                Reason.PERMISSION_DENIED,
                "this server pins no product root, so nobody can sign for it: set product_root_key, and start it again",
            )
        return self._root_key
