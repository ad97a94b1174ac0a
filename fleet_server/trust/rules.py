"""What stands in a trust bundle, when a new one is due, and which command key signs. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fleet.trust import BUNDLE_GRACE_S, BUNDLE_LIFETIME_MS, MAX_BUNDLE_AHEAD_MS, CommandKey, TrustState
from fleet.v1 import trust_pb2

RENEW_AFTER_MS = BUNDLE_LIFETIME_MS // 2

SignCertificate = Callable[[bytes], trust_pb2.Signed]


@dataclass(frozen=True, slots=True)
class BundleContent:
    """What nodes shall trust; a bundle is this with a version and a lifetime.

    Args:
        authority_key: raw public key of the authority of this generation.
        command_keys: in any order.
        endpoints: gateway endpoints, ``host:port``, in order of preference.
        tls_ca_der: accepted TLS CAs.
        people: `owners`, `policy` and `role_grants` as they are to stand in it.
    """

    cluster_id: str
    generation: int
    authority_key: bytes
    command_keys: Sequence[CommandKey]
    endpoints: Sequence[str]
    tls_ca_der: Sequence[bytes]
    people: trust_pb2.TrustBundleStatement


def certificate(cluster_id: str, key: CommandKey) -> bytes:
    """Bytes of the KeyCertificateStatement of a command key."""
    statement = trust_pb2.KeyCertificateStatement(
        cluster_id=cluster_id,
        public_key=key.public_key,
        site=key.site,
        not_before_ms=key.not_before_ms,
        verify_until_ms=key.verify_until_ms,
        phase=key.phase,
    )
    return statement.SerializeToString(deterministic=True)


def bundle_statement(
    content: BundleContent, *, number: int, now_ms: int, sign: SignCertificate
) -> trust_pb2.TrustBundleStatement:
    """The statement of bundle `number`; `sign` signs each key certificate with the authority."""
    statement = _unversioned(content)
    statement.command_keys.extend(sign(raw) for raw in _certificates(content))
    statement.number = number
    statement.issued_at_ms = now_ms
    statement.expires_at_ms = now_ms + BUNDLE_LIFETIME_MS
    return statement


def content_sha256(content: BundleContent) -> bytes:
    """The same for the same content, whatever its version and lifetime."""
    digest = hashlib.sha256(_unversioned(content).SerializeToString(deterministic=True))
    for raw in _certificates(content):
        digest.update(len(raw).to_bytes(4, "big") + raw)
    return digest.digest()


def needs_new_bundle(*, held_sha256: bytes, expires_at_ms: int, content: BundleContent, now_ms: int) -> bool:
    """Whether the content changed, half of the newest bundle's life is over, or a clock that was wrong dated it so far
    ahead that nodes would not take commands under it."""
    issued_at_ms = expires_at_ms - BUNDLE_LIFETIME_MS
    due = now_ms >= expires_at_ms - RENEW_AFTER_MS or now_ms < issued_at_ms - MAX_BUNDLE_AHEAD_MS // 2
    return due or held_sha256 != content_sha256(content)


def number_to_pass(current: TrustState, generation: int, number: int, *, max_step: int) -> int | None:
    """The number that the next bundle is to pass when a node holds a newer one than this server knows (a restored
    database); None when the node's cannot be this server's.

    At most `max_step` further: otherwise a node in wrong hands could push the number so far that others refuse it as
    FAST_FORWARD.
    """
    if generation != current.generation or number <= current.number:
        return None
    return min(number, current.number + max_step)


def signing_key_id(keys: Iterable[tuple[bytes, CommandKey]], *, site: str, now_ms: int) -> bytes | None:
    """Key that signs for nodes of `site`: the ACTIVE key of the site, else the ACTIVE key of the cluster; newest
    first."""
    usable = [
        (key.site != "", key.not_before_ms, key_id)
        for key_id, key in keys
        if key.phase == trust_pb2.KEY_PHASE_ACTIVE
        and key.site in ("", site)
        and key.not_before_ms <= now_ms
        and not (key.verify_until_ms and now_ms >= key.verify_until_ms)
    ]
    return max(usable)[2] if usable else None


def _unversioned(content: BundleContent) -> trust_pb2.TrustBundleStatement:
    return trust_pb2.TrustBundleStatement(
        cluster_id=content.cluster_id,
        generation=content.generation,
        authority_key=content.authority_key,
        tls_ca_der=list(content.tls_ca_der),
        grace_s=BUNDLE_GRACE_S,
        endpoints=list(content.endpoints),
        owners=content.people.owners,
        policy=content.people.policy if content.people.HasField("policy") else None,
        role_grants=content.people.role_grants,
    )


def _certificates(content: BundleContent) -> list[bytes]:
    return sorted(certificate(content.cluster_id, key) for key in content.command_keys)
