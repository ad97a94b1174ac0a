"""Trust bundles, key certificates and authorities: pure transition and verification rules.

A node holds one verified bundle. The only way to another one is `advance`: a higher number of the same generation
signed by the same authority, or the next generation signed by the old authority and the new one. Everything else is
refused with the name of the attack that it would be. Signer classes are kept apart by construction: authorities
verify bundles and certificates, command keys verify commands and cancels (`fleet.command_trust`), and the two are never
looked up in the same map (docs/protocol.md, "Trust").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from google.protobuf.message import DecodeError

from fleet import envelope
from fleet.envelope import Domain, EnvelopeError
from fleet.sequence import MAX_DETAIL_CHARS
from fleet.v1 import enrollment_pb2, trust_pb2

MAX_NUMBER_STEP = 2**20
MAX_COMMAND_KEYS = 64
MAX_TLS_CAS = 16
MAX_ENDPOINTS = 64
MAX_OWNERS = 64
MAX_GRANTS = 1024
MAX_BUNDLE_BYTES = 2 * 1024 * 1024
"""Of a bundle with its signatures: what these lists take with the longest names, and half as much again."""
MAX_KEPT_LINKS = 1024
MAX_KEPT_BYTES = 64 * 1024 * 1024
MAX_REVOKED_KEYS = 4096
"""Revoked command keys that a node remembers; no more are taken then, and those of the bundle in force still count."""
TOKEN_SECRET_BYTES = 32
OWNER_PIN_BYTES = 32
BUNDLE_LIFETIME_MS = 7 * 24 * 3600 * 1000
BUNDLE_GRACE_S = 24 * 3600
"""With `BUNDLE_LIFETIME_MS` the most that a bundle may claim: whoever had the authority for a moment keeps nodes on a
bundle of their own no longer than that."""
MAX_BUNDLE_AHEAD_MS = 24 * 3600 * 1000
"""How far before its time of issue a bundle counts: what a node may think of server time and still be put right by it
alone (docs/protocol.md, "Time")."""


class TrustReason(StrEnum):
    """Why a bundle, certificate or token is refused."""

    WRONG_SIGNER = "WRONG_SIGNER"
    WRONG_CLUSTER = "WRONG_CLUSTER"
    ROLLBACK = "ROLLBACK"
    FAST_FORWARD = "FAST_FORWARD"
    SKIPPED_GENERATION = "SKIPPED_GENERATION"
    CHAIN_TOO_LONG = "CHAIN_TOO_LONG"
    EXPIRED = "EXPIRED"
    MALFORMED = "MALFORMED"


class TrustError(Exception):
    """Something that claims trust does not have it. `detail` is cut, as that of a `StatementRefusal`."""

    def __init__(self, reason: TrustReason, detail: str) -> None:
        detail = detail[:MAX_DETAIL_CHARS]
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class CommandKey:
    """A command key as its certificate describes it. Times are Unix milliseconds; `verify_until_ms` 0 means no end
    yet."""

    public_key: bytes
    site: str
    not_before_ms: int
    verify_until_ms: int
    phase: trust_pb2.KeyPhase.ValueType


@dataclass(frozen=True, slots=True)
class TrustState:
    """A verified bundle, ready to use. Build it with `first` or `advance` only.

    `revoked` are the ids of command keys that this bundle or one before it revoked. A server whose database went back
    certifies such a key as good once more; whoever stole it must gain nothing by that.
    """

    cluster_id: str
    generation: int
    number: int
    authority_key: bytes
    command_keys: Mapping[bytes, CommandKey]
    tls_ca_der: tuple[bytes, ...]
    endpoints: tuple[str, ...]
    issued_at_ms: int
    expires_at_ms: int
    grace_s: int
    signed: trust_pb2.Signed
    revoked: frozenset[bytes] = frozenset()

    @property
    def version(self) -> tuple[int, int]:
        """(generation, number), compared in that order."""
        return (self.generation, self.number)

    def fresh(self, now_ms: int) -> bool:
        """Whether commands may be taken: before expiry plus grace (an attacker who withholds bundles gains no more
        time), and not long before its issue (one that dates a bundle ahead does not, either)."""
        return self.issued_at_ms - MAX_BUNDLE_AHEAD_MS <= now_ms < self.expires_at_ms + self.grace_s * 1000


def first(
    signed: trust_pb2.Signed, *, cluster_id: str, authority_key: bytes, revoked: Iterable[bytes] = ()
) -> TrustState:
    """Take the first bundle under a pinned authority key.

    Args:
        revoked: ids of command keys that are known to be revoked.

    Raises:
        TrustError: not signed by the pinned key, for another cluster, or malformed.
    """
    statement = _verify_bundle(signed, [authority_key])
    if statement.authority_key != authority_key:
        raise TrustError(
            TrustReason.WRONG_SIGNER,
            "the bundle names another authority than the one that is pinned",
        )
    return _state(statement, signed, cluster_id, frozenset(revoked))


def advance(current: TrustState, signed: trust_pb2.Signed) -> TrustState:
    """Step from the held bundle to an offered one. The same version again answers the held state.

    Raises:
        TrustError: ROLLBACK, FAST_FORWARD, SKIPPED_GENERATION, WRONG_SIGNER, WRONG_CLUSTER or MALFORMED.
    """
    # The authority in force signs every step that may be taken, so its signature comes first and parsing second.
    statement = _verify_bundle(signed, [current.authority_key])
    if statement.generation == current.generation:
        if statement.authority_key != current.authority_key:
            raise TrustError(TrustReason.WRONG_SIGNER, "a new authority needs a new generation")
        return _step_number(current, statement, signed)
    if statement.generation < current.generation:
        raise TrustError(
            TrustReason.ROLLBACK,
            f"generation {statement.generation} is older than {current.generation}",
        )
    if statement.generation != current.generation + 1:
        raise TrustError(
            TrustReason.SKIPPED_GENERATION,
            f"generation {statement.generation} does not follow {current.generation}",
        )
    return _step_generation(current, statement, signed)


def steps(current: TrustState, chain: Iterable[trust_pb2.Signed]) -> Iterator[TrustState]:
    """`advance` along a chain, oldest first, and tell of each step; links that the node is past already are skipped.

    Raises:
        TrustError: a link does not follow.
    """
    for signed in chain:
        said = claimed(signed)
        if (said.generation, said.number) > current.version:
            current = advance(current, signed)
            yield current


def walk(current: TrustState, chain: Iterable[trust_pb2.Signed]) -> TrustState:
    """Where `steps` along a chain lead to.

    Raises:
        TrustError: a link does not follow.
    """
    return [current, *steps(current, chain)][-1]


def kept_links(held: Sequence[TrustState], newer: TrustState) -> list[TrustState]:
    """The shortest chain from the pinned authority to `newer`: what must be kept to verify it again after a restart.

    Args:
        held: such a chain to the bundle before `newer`; empty for the first one.
        newer: the step after it.

    Returns:
        The newest bundle of the pinned generation, the first of each later one (the old authority signed it, too), and
        the newest of all.

    Raises:
        TrustError: CHAIN_TOO_LONG. Only a new generation makes it longer, and a smaller bundle of the same one may
            fit, so whoever has a stolen authority fills no node that follows another.
    """
    opened = len(held) > 1 and held[-2].generation < held[-1].generation
    replaces = held and held[-1].generation == newer.generation and not opened
    links = [*(held[:-1] if replaces else held), newer]
    size = sum(link.signed.ByteSize() for link in links)
    if len(links) > MAX_KEPT_LINKS or size > MAX_KEPT_BYTES:
        raise TrustError(
            TrustReason.CHAIN_TOO_LONG,
            f"{len(links)} links of {size} bytes lead from the pinned authority to it, and at most {MAX_KEPT_LINKS} of"
            f" {MAX_KEPT_BYTES} bytes are kept: revoke the node and enroll it anew, which pins the newest authority",
        )
    return links


def verify_join_token(
    token: enrollment_pb2.JoinToken,
) -> enrollment_pb2.JoinTokenStatement:
    """Check a join token against the authority key that it names itself, and return what it says.

    The token reached the node through a person's hands: it is the root of the node's trust, and the signature shows
    that it is whole.

    Raises:
        TrustError: truncated, changed, or not a token.
    """
    statement = enrollment_pb2.JoinTokenStatement()
    try:
        statement.ParseFromString(token.signed.statement)
        envelope.verify_one(token.signed, domain=Domain.JOIN_TOKEN, public_key=statement.authority_key)
    except (DecodeError, EnvelopeError) as error:
        raise TrustError(TrustReason.MALFORMED, "the join token is damaged: copy it again, whole") from error
    named = statement.token_id and statement.cluster_id and statement.endpoints and statement.tls_ca_der
    if not named or len(token.secret) != TOKEN_SECRET_BYTES or len(token.owner_pin) not in (0, OWNER_PIN_BYTES):
        raise TrustError(TrustReason.MALFORMED, "the join token is incomplete: copy it again, whole")
    return statement


def _step_generation(
    current: TrustState,
    statement: trust_pb2.TrustBundleStatement,
    signed: trust_pb2.Signed,
) -> TrustState:
    if statement.authority_key == current.authority_key:
        raise TrustError(TrustReason.WRONG_SIGNER, "a new generation needs a new authority")
    _verify_bundle(signed, [current.authority_key, statement.authority_key])
    if statement.number > MAX_NUMBER_STEP:  # numbers restart, so that a fast-forwarded one is not for ever
        raise TrustError(
            TrustReason.FAST_FORWARD,
            f"generation {statement.generation} begins with number {statement.number}, more than 2^20",
        )
    return _state(statement, signed, current.cluster_id, current.revoked)


def _step_number(
    current: TrustState,
    statement: trust_pb2.TrustBundleStatement,
    signed: trust_pb2.Signed,
) -> TrustState:
    if statement.number == current.number:
        if signed.statement == current.signed.statement:
            return current
        raise TrustError(
            TrustReason.ROLLBACK,
            f"another bundle with number {statement.number} is held already",
        )
    if statement.number < current.number:
        raise TrustError(
            TrustReason.ROLLBACK,
            f"number {statement.number} is older than {current.number}",
        )
    if statement.number - current.number > MAX_NUMBER_STEP:
        raise TrustError(
            TrustReason.FAST_FORWARD,
            f"number {statement.number} is more than 2^20 ahead of {current.number}",
        )
    return _state(statement, signed, current.cluster_id, current.revoked)


def claimed(signed: trust_pb2.Signed) -> trust_pb2.TrustBundleStatement:
    """What a bundle says, not verified: good for passing a link over, for nothing else.

    Raises:
        TrustError: MALFORMED.
    """
    try:
        return trust_pb2.TrustBundleStatement.FromString(signed.statement)
    except DecodeError as error:
        raise TrustError(TrustReason.MALFORMED, "not a trust bundle") from error


def _verify_bundle(signed: trust_pb2.Signed, authority_keys: list[bytes]) -> trust_pb2.TrustBundleStatement:
    if signed.ByteSize() > MAX_BUNDLE_BYTES:
        raise TrustError(
            TrustReason.MALFORMED, f"the bundle has {signed.ByteSize()} bytes; {MAX_BUNDLE_BYTES} are allowed"
        )
    keys = {envelope.key_id(key): key for key in authority_keys}
    try:
        signers = envelope.verified_signers(signed, domain=Domain.TRUST_BUNDLE, keys=keys)
    except EnvelopeError as error:
        raise TrustError(TrustReason.WRONG_SIGNER, error.detail) from error
    if signers != keys.keys():
        raise TrustError(
            TrustReason.WRONG_SIGNER,
            "the bundle lacks the signature of an authority that must sign it",
        )
    return claimed(signed)


def _state(
    statement: trust_pb2.TrustBundleStatement, signed: trust_pb2.Signed, cluster_id: str, revoked: frozenset[bytes]
) -> TrustState:
    if statement.cluster_id != cluster_id:
        raise TrustError(
            TrustReason.WRONG_CLUSTER,
            f"the bundle is for cluster {statement.cluster_id!r}, this is {cluster_id!r}",
        )
    lifetime_ms = statement.expires_at_ms - statement.issued_at_ms
    if lifetime_ms > BUNDLE_LIFETIME_MS or statement.grace_s > BUNDLE_GRACE_S:
        raise TrustError(
            TrustReason.MALFORMED,
            f"the bundle is good for {lifetime_ms} ms and {statement.grace_s} s of grace;"
            f" {BUNDLE_LIFETIME_MS} ms and {BUNDLE_GRACE_S} s are allowed",
        )
    if _too_many(statement) or statement.generation == 0 or statement.number == 0:
        raise TrustError(
            TrustReason.MALFORMED,
            "the bundle's version, or how much it lists, is out of range",
        )
    command_keys = dict(_certified(c, statement.authority_key, cluster_id) for c in statement.command_keys)
    if len(command_keys) != len(statement.command_keys):  # else the order would decide whether a revoked key verifies
        raise TrustError(TrustReason.MALFORMED, "the bundle certifies a command key twice")
    return TrustState(
        cluster_id=cluster_id,
        generation=statement.generation,
        number=statement.number,
        authority_key=statement.authority_key,
        command_keys=command_keys,
        tls_ca_der=tuple(statement.tls_ca_der),
        endpoints=tuple(statement.endpoints),
        issued_at_ms=statement.issued_at_ms,
        expires_at_ms=statement.expires_at_ms,
        grace_s=statement.grace_s,
        signed=signed,
        revoked=_revoked(revoked, command_keys),
    )


def _too_many(statement: trust_pb2.TrustBundleStatement) -> bool:
    return (
        len(statement.command_keys) > MAX_COMMAND_KEYS
        or len(statement.tls_ca_der) > MAX_TLS_CAS
        or len(statement.endpoints) > MAX_ENDPOINTS
        or len(statement.owners) > MAX_OWNERS
        or len(statement.role_grants) > MAX_GRANTS
    )


def _revoked(before: frozenset[bytes], command_keys: Mapping[bytes, CommandKey]) -> frozenset[bytes]:
    if len(before) >= MAX_REVOKED_KEYS:  # a stolen authority may revoke keys without end: it pushes out no true one
        return before
    return before | {key_id for key_id, key in command_keys.items() if key.phase == trust_pb2.KEY_PHASE_REVOKED}


def _certified(certificate: trust_pb2.Signed, authority_key: bytes, cluster_id: str) -> tuple[bytes, CommandKey]:
    try:
        raw = envelope.verify_one(certificate, domain=Domain.KEY_CERTIFICATE, public_key=authority_key)
        said = trust_pb2.KeyCertificateStatement.FromString(raw)
    except (EnvelopeError, DecodeError) as error:
        raise TrustError(TrustReason.WRONG_SIGNER, "a command key's certificate does not verify") from error
    if said.cluster_id != cluster_id:
        raise TrustError(
            TrustReason.WRONG_CLUSTER,
            "a command key's certificate is for another cluster",
        )
    if len(said.public_key) != envelope.PUBLIC_KEY_BYTES or said.public_key == authority_key:
        raise TrustError(TrustReason.MALFORMED, "a command key is no key, or the authority itself")
    key = CommandKey(said.public_key, said.site, said.not_before_ms, said.verify_until_ms, said.phase)
    return envelope.key_id(said.public_key), key
