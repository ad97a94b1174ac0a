"""Trust bundles between the keyring and the database: the newest one, verified, and the next one, published."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from fleet import trust
from fleet.envelope import Domain, Signer, key_id
from fleet.trust import TrustError, TrustState
from fleet.v1 import trust_pb2
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.service import AuditService
from fleet_server.database.engine import Connection
from fleet_server.database.writer import Transaction
from fleet_server.trust import phases, rules, store
from fleet_server.trust.endpoints import EndpointBoard
from fleet_server.trust.keyring import Keyring, TrustSetupError, signed_bundle

_MAX_PART_BYTES = 4 * 1024 * 1024 - 64 * 1024
"""Nodes take messages of 4 MiB, as gRPC does unless it is told otherwise; a bundle has 2 MiB at most."""
_FIELD_BYTES = 8
_EXPIRED_KEPT_MS = 24 * 3600 * 1000
"""After its grace: until then a rollout may ask whether a node that was seen lately holds it."""


class Offer(NamedTuple):
    """What a replica wants nodes to be offered.

    Args:
        replica_id: which one; empty for a process that is none.
        endpoints: gateway endpoints, ``host:port``, preferred first.
    """

    endpoints: Sequence[str]
    replica_id: str


class Published(NamedTuple):
    """A bundle as it was published, and the digest of what stands in it."""

    state: TrustState
    content_sha256: bytes


def newest(conn: Connection, cluster_id: str, authority: Signer) -> Published | None:
    """The newest bundle; None before the first.

    Raises:
        TrustSetupError: it cannot be read, or does not verify under the authority.
    """
    row = store.newest_bundle(conn, cluster_id)
    if row is None:
        return None
    try:
        state = trust.first(signed_bundle(row), cluster_id=cluster_id, authority_key=authority.public_key)
    except TrustError as error:
        raise TrustSetupError(
            f"the newest trust bundle in the database does not verify ({error.detail}):"
            " restore the table trust_bundles from a backup"
        ) from error
    return Published(state, row.content_sha256)


def authority_ids(chain: Iterable[trust_pb2.Signed]) -> set[bytes]:
    """Key ids of the authorities that bundles of this server name."""
    return {key_id(trust.claimed(signed).authority_key) for signed in chain}


def chain_after(
    version: tuple[int, int], steps: Iterable[tuple[int, trust_pb2.Signed]], newest: TrustState
) -> list[trust_pb2.Signed]:
    """What leads from a bundle of `version` to the newest: the first of each later generation, then the newest itself.

    Args:
        version: (generation, number).
        steps: the first bundle of each generation, by generation, ascending.
    """
    if version >= newest.version:
        return []
    chain = [signed for generation, signed in steps if generation > version[0]]
    if not chain or chain[-1].statement != newest.signed.statement:
        chain.append(newest.signed)
    return chain


def part(chain: Sequence[trust_pb2.Signed], beside_bytes: int = 0) -> Sequence[trust_pb2.Signed]:
    """The first links of a chain, as many as fit into one message: whoever asks again goes on from there.

    Args:
        chain: oldest first.
        beside_bytes: of what else the message holds. Beside nothing at least one link fits.
    """
    room_bytes = _MAX_PART_BYTES - beside_bytes
    for count, signed in enumerate(chain):
        room_bytes -= signed.ByteSize() + _FIELD_BYTES
        if room_bytes < 0:
            return chain[:count]
    return chain


class BundlePress:
    """Publishes the bundles of a cluster.

    Args:
        people: `people(tx, cluster_id)`: what owners signed, as a bundle is to carry it.
        board: the endpoints of all replicas.
    """

    def __init__(
        self,
        audit: AuditService,
        people: Callable[[Transaction, str], trust_pb2.TrustBundleStatement],
        board: EndpointBoard,
    ) -> None:
        self._audit = audit
        self._board = board
        self._people = people

    def renew(
        self,
        tx: Transaction,
        cluster_id: str,
        keyring: Keyring,
        before: Published | None,
        offer: Offer,
        *,
        now_ms: int,
        above: int,
    ) -> TrustState:
        """The bundle in force: `before`, or the next number when its content changed, half of its life is over, or
        `above` has to be passed. The caller holds the cluster's lock."""
        content = self._content(tx, cluster_id, keyring, keyring.generation, keyring.authority, offer, now_ms)
        number = 0 if before is None else before.state.number
        if before is not None and number > above:
            stale = rules.needs_new_bundle(
                held_sha256=before.content_sha256,
                expires_at_ms=before.state.expires_at_ms,
                content=content,
                now_ms=now_ms,
            )
            if not stale:
                return before.state
        return self._publish(tx, keyring.authority, content, max(number, above) + 1, now_ms)

    def open_generation(
        self, tx: Transaction, cluster_id: str, keyring: Keyring, successor: Signer, offer: Offer, *, now_ms: int
    ) -> TrustState:
        """The first bundle of the generation after the keyring's: of the successor, and signed by the authority before
        it, too. The caller holds the cluster's lock."""
        content = self._content(tx, cluster_id, keyring, keyring.generation + 1, successor, offer, now_ms)
        return self._publish(tx, successor, content, 1, now_ms, before=keyring.authority)

    def tell_behind(self, tx: Transaction, cluster_id: str, held: tuple[int, int], newest: TrustState) -> None:
        """Audit that a node holds a bundle newer than any here: the database went back, or the node lies."""
        versions = {"held": list(held), "newest": list(newest.version)}
        self._audit.append(tx, AuditKind.BUNDLE_BEHIND, actor="server", subject=cluster_id, detail=versions)

    def _content(
        self,
        tx: Transaction,
        cluster_id: str,
        keyring: Keyring,
        generation: int,
        authority: Signer,
        offer: Offer,
        now_ms: int,
    ) -> rules.BundleContent:
        return rules.BundleContent(
            cluster_id=cluster_id,
            generation=generation,
            authority_key=authority.public_key,
            command_keys=phases.certified(keyring.records, now_ms),
            endpoints=self._board.offered(tx.conn, cluster_id, offer.replica_id, offer.endpoints, now_ms),
            tls_ca_der=keyring.tls.published_der,
            people=self._people(tx, cluster_id),
        )

    def _publish(
        self,
        tx: Transaction,
        authority: Signer,
        content: rules.BundleContent,
        number: int,
        now_ms: int,
        *,
        before: Signer | None = None,
    ) -> TrustState:
        statement = rules.bundle_statement(
            content, number=number, now_ms=now_ms, sign=lambda raw: authority.sign(Domain.KEY_CERTIFICATE, raw)
        )
        signed = authority.sign(Domain.TRUST_BUNDLE, statement.SerializeToString(deterministic=True))
        if before is not None:
            before.add(signed, Domain.TRUST_BUNDLE)
        store.insert_bundle(
            tx.conn,
            store.BundleRow(
                cluster_id=content.cluster_id,
                generation=content.generation,
                number=number,
                signed=signed.SerializeToString(),
                content_sha256=rules.content_sha256(content),
                expires_at_ms=statement.expires_at_ms,
            ),
        )
        store.forget_bundles(tx.conn, content.cluster_id, now_ms - trust.BUNDLE_GRACE_S * 1000 - _EXPIRED_KEPT_MS)
        self._audit.append(
            tx,
            AuditKind.BUNDLE_PUBLISHED,
            actor="server",
            subject=content.cluster_id,
            detail={
                "generation": content.generation,
                "number": number,
                "endpoints": list(content.endpoints),
                "expires_at_ms": statement.expires_at_ms,
            },
        )
        return trust.first(signed, cluster_id=content.cluster_id, authority_key=authority.public_key)
