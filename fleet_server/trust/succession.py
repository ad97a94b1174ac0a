"""Rotation of the cluster authority: a new one follows, certifies every command key, and nodes are told by both.

One transaction under the cluster's lock: the successor's row, the first bundle of its generation signed by both
authorities, the audit, and the end of the old private key. Whatever stops the server leaves either all of it or
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fleet.errors import Reason, Refusal
from fleet.v1 import trust_pb2
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import JSON
from fleet_server.database.writer import Transaction
from fleet_server.trust import bundles, phases, store
from fleet_server.trust.keyring import Keyring
from fleet_server.trust.service import TrustService


@dataclass(frozen=True, slots=True)
class AuthorityRecord:
    """The authority of one generation, as it is shown: its public key, and since when, in Unix milliseconds."""

    generation: int
    public_key: bytes
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class Succession:
    """Every authority of the cluster, oldest first, and the chain of bundles that proves who followed whom."""

    records: Sequence[AuthorityRecord]
    chain: Sequence[trust_pb2.Signed]


class AuthorityRotation:
    """Rotates the authority of a cluster.

    Args:
        trust: whose authority it is.
    """

    def __init__(self, trust: TrustService) -> None:
        self._trust = trust
        self._vault = trust.parts.vault
        self._clock = trust.parts.clock
        self._audit = trust.parts.audit

    async def rotate(self, actor: str, *, from_generation: int, reason: str) -> AuthorityRecord:
        """Let a new authority follow the one of `from_generation`, at once and on every replica within a second.

        Args:
            from_generation: generation that the caller saw: of two who rotate at once, one succeeds.
            reason: audited.

        Raises:
            Refusal: INVALID_ARGUMENT without a reason; CONFLICT when another authority is in force.
        """
        phases.checked_reason(reason)

        def work(tx: Transaction, keyring: Keyring, _: tuple[int, int]) -> AuthorityRecord:
            check_generation(keyring.generation, from_generation)
            return self._succeed(tx, actor, keyring, reason)

        return await self._trust.change_keys(work)

    async def succession(self) -> Succession:
        """Every authority that the cluster had, and the chain that proves it."""
        found = await self._trust.parts.database.read(
            lambda conn: store.authority_generations(conn, self._trust.cluster_id)
        )
        return Succession([AuthorityRecord(*each) for each in found], self._trust.bundle_chain_from(0, 0))

    def _succeed(self, tx: Transaction, actor: str, keyring: Keyring, reason: str) -> AuthorityRecord:
        offer = self._trust.offer
        if offer is None:
            raise Refusal(Reason.UNAVAILABLE, "the server has published no trust bundle yet: try again in a moment")
        now_ms = self._clock.now_ms()
        row = self._vault.new_authority(self._trust.cluster_id, keyring.generation + 1, now_ms)
        successor = self._vault.open_authority(row)
        store.insert_authority_once(tx.conn, row)
        store.forget_private(tx.conn, row.cluster_id, keyring.generation)
        self._trust.press.open_generation(tx, row.cluster_id, keyring, successor, offer, now_ms=now_ms)
        detail: dict[str, JSON] = {
            "generation": row.generation,
            "public_key": row.public_key.hex(),
            "follows": keyring.authority.public_key.hex(),
            "reason": reason,
        }
        self._audit.append(tx, AuditKind.AUTHORITY_ROTATED, actor=actor, subject=row.cluster_id, detail=detail)
        return AuthorityRecord(row.generation, row.public_key, row.created_at_ms)


async def chain_behind(trust: TrustService, signed: trust_pb2.Signed) -> list[trust_pb2.Signed]:
    """The whole chain, with the authority in it that signed something: one that is not known here yet may follow the
    one that is, so the database is asked once more.

    Raises:
        Refusal: UNAVAILABLE, it does not know of that authority either.
    """
    signers = {signature.key_id for signature in signed.signatures}
    if signers.isdisjoint(bundles.authority_ids(trust.bundle_chain_from(0, 0))):
        await trust.watch.look()
    chain = trust.bundle_chain_from(0, 0)
    if signers.isdisjoint(bundles.authority_ids(chain)):
        raise Refusal(
            Reason.UNAVAILABLE,
            "this replica does not know the authority that signed this yet: ask again in a second or two",
            retry_after_s=1.0,
        )
    return chain


def check_generation(current: int, expected: int) -> None:
    """Refuse to rotate an authority that the caller does not mean.

    Raises:
        Refusal: CONFLICT.
    """
    if current != expected:
        raise Refusal(
            Reason.CONFLICT,
            f"the authority in force is of generation {current}, not {expected}: somebody may have rotated it a moment"
            " ago. See `fleetctl authority list`, and rotate again if you still want to",
        )
