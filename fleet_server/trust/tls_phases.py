"""The life of a TLS CA: which certificates may become one, and which step is allowed from where. Pure.

PREPARED -> ACTIVE -> OUTGOING -> RETIRED, and REVOKED from anywhere; nothing ever goes back. One is ACTIVE, and one
PREPARED at most. Nodes trust those that are PREPARED, ACTIVE or OUTGOING; the server shows a certificate of the one
that is ACTIVE. A step answers the changes that it makes, none when it was taken before, or a refusal that says what to
do (docs/protocol.md, "TLS CAs").
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import MD5, SHA1
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.errors import Reason, Refusal
from fleet.tls import certificate_sha256

MAX_PUBLISHED = 4
"""Most CAs in a bundle."""
MAX_CERTIFICATE_BYTES = 4096
"""A CA travels in join tokens, which people hand on."""
LEAST_LIFE = dt.timedelta(days=30)
"""A CA that ends sooner would have to be replaced before nodes that are away have learned it."""
MIN_RSA_BITS = 2048
MIN_PREFIX_CHARS = 8
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


class TlsPhase(IntEnum):
    """Numbers as in `TlsCaPhase` of the wire."""

    PREPARED = 1
    ACTIVE = 2
    OUTGOING = 3
    RETIRED = 4
    REVOKED = 5


_PUBLISHED = frozenset({TlsPhase.PREPARED, TlsPhase.ACTIVE, TlsPhase.OUTGOING})


@dataclass(frozen=True, slots=True)
class TlsCa:
    """A TLS CA of the cluster.

    Args:
        sha256: of its DER: its name.
        own: made here; otherwise brought from outside.
        has_key: its private key is kept here.
        since_ms: when it came into its phase, Unix milliseconds.
        first_bundle: (generation, number) of the first bundle that names it.
    """

    sha256: bytes
    certificate_der: bytes
    own: bool
    has_key: bool
    phase: TlsPhase
    created_at_ms: int
    since_ms: int
    first_bundle: tuple[int, int]


@dataclass(frozen=True, slots=True)
class TlsChange:
    """A CA comes into another phase."""

    ca: TlsCa
    phase: TlsPhase


def parse(certificate: bytes) -> bytes:
    """DER of the one certificate in a PEM or DER text.

    Raises:
        Refusal: INVALID_ARGUMENT.
    """
    try:
        found = (
            x509.load_pem_x509_certificates(certificate)
            if b"-----BEGIN" in certificate
            else [x509.load_der_x509_certificate(certificate)]
        )
    except ValueError as error:
        raise _unfit(f"that is no certificate ({error}): give the CA's own certificate, in PEM") from error
    if len(found) != 1:
        raise _unfit(f"there are {len(found)} certificates in it: give the one of the CA that nodes are to trust")
    return found[0].public_bytes(Encoding.DER)


def check_certificate(der: bytes, now_ms: int) -> None:
    """Whether nodes may be told to trust a certificate as a CA.

    Raises:
        Refusal: INVALID_ARGUMENT: it is no CA, has ended, has not begun, ends soon, or its key or signature is weak.
    """
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise _unfit(f"the certificate has {len(der)} bytes, and a join token holds at most {MAX_CERTIFICATE_BYTES}")
    try:
        certificate = x509.load_der_x509_certificate(der)
        _check_is_ca(certificate)
        _check_strength(certificate)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _unfit(f"the certificate cannot be read ({error}): give the CA's own certificate") from error
    now = _moment(now_ms)
    if now < certificate.not_valid_before_utc:
        raise _unfit(
            f"the CA is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC: come again then"
        )
    if now >= certificate.not_valid_after_utc:
        raise _unfit(f"the CA has ended on {certificate.not_valid_after_utc:%Y-%m-%d}: bring one that is valid")
    if now + LEAST_LIFE > certificate.not_valid_after_utc:
        raise _unfit(
            f"the CA ends on {certificate.not_valid_after_utc:%Y-%m-%d}, before nodes that are away may have learned"
            f" it: bring one that is valid for at least {LEAST_LIFE.days} days"
        )


def find(cas: Iterable[TlsCa], ref: str) -> TlsCa:
    """The CA that a person means: its SHA-256 in hexadecimal, or the beginning of it; colons do not matter.

    Raises:
        Refusal: NOT_FOUND, or INVALID_ARGUMENT when it is too short or begins several.
    """
    wanted = ref.strip().lower().replace(":", "").replace(" ", "")
    if len(wanted) < MIN_PREFIX_CHARS:
        raise Refusal(
            Reason.INVALID_ARGUMENT,
            f"write at least {MIN_PREFIX_CHARS} digits of the CA's SHA-256: see `fleetctl tls list`",
        )
    found = [ca for ca in cas if ca.sha256.hex().startswith(wanted)]
    if not found:
        raise Refusal(Reason.NOT_FOUND, f"no TLS CA is called {ref[:80]!r}: see `fleetctl tls list`")
    if len(found) > 1:
        raise Refusal(Reason.INVALID_ARGUMENT, f"{len(found)} TLS CAs begin with {ref[:80]!r}: write more of it")
    return found[0]


def published(cas: Iterable[TlsCa]) -> list[TlsCa]:
    """Those that nodes trust, the ACTIVE one first: join tokens carry that one."""
    standing = [ca for ca in cas if ca.phase in _PUBLISHED]
    return sorted(standing, key=lambda ca: (ca.phase is not TlsPhase.ACTIVE, -ca.since_ms, ca.sha256))


def active(cas: Iterable[TlsCa]) -> TlsCa | None:
    """The one whose certificate is shown: of several, of which all but one were put back around the server, the one
    that came last."""
    return _newest(cas, TlsPhase.ACTIVE)


def issuer(cas: Sequence[TlsCa]) -> TlsCa | None:
    """The own CA that signs the server's certificate: the ACTIVE one, and while that is from outside the own one that
    was ACTIVE last, for the listeners behind a terminator."""
    now = active(cas)
    if now is not None and now.own:
        return now
    able = [ca for ca in cas if ca.has_key]
    return _newest(able, TlsPhase.OUTGOING, TlsPhase.RETIRED) or _newest(able, TlsPhase.PREPARED)


def has_begun(ca: TlsCa, now_ms: int) -> bool:
    """Whether its certificate is good already; if not, this machine's clock may be what is wrong."""
    return _moment(now_ms) >= x509.load_der_x509_certificate(ca.certificate_der).not_valid_before_utc


def has_ended(ca: TlsCa, now_ms: int) -> bool:
    """Whether its certificate is good no more."""
    return _moment(now_ms) >= x509.load_der_x509_certificate(ca.certificate_der).not_valid_after_utc


def check_prepare(cas: Sequence[TlsCa], certificate_der: bytes) -> TlsCa | None:
    """Whether another CA may be prepared; the one that is PREPARED when it is the same.

    Args:
        certificate_der: brought from outside; empty for one that is to be made.

    Raises:
        Refusal: CONFLICT: it is known already, another one waits, or the bundle is full.
    """
    waiting = _newest(cas, TlsPhase.PREPARED)
    known = [ca for ca in cas if certificate_der and ca.sha256 == certificate_sha256(certificate_der)]
    if known:
        if known[0] == waiting:
            return waiting
        raise _conflict(known[0], f"is {known[0].phase.name} already, and nothing goes back: bring another CA")
    if waiting is not None:
        raise _conflict(waiting, "is PREPARED already: activate it, or revoke it and prepare another")
    if len(published(cas)) >= MAX_PUBLISHED:
        raise Refusal(
            Reason.CONFLICT,
            f"nodes trust {MAX_PUBLISHED} TLS CAs already, and more do not fit: retire those that are OUTGOING",
        )
    return None


def activate(cas: Sequence[TlsCa], ca: TlsCa) -> list[TlsChange]:
    """The PREPARED CA's certificate is shown from now on; the one that was ACTIVE goes out.

    Raises:
        Refusal: CONFLICT from any phase but ACTIVE.
    """
    if ca.phase is TlsPhase.ACTIVE:
        return []
    if ca.phase is not TlsPhase.PREPARED:
        raise _conflict(ca, f"is {ca.phase.name}, and nothing goes back: prepare another with `fleetctl tls prepare`")
    before = [each for each in cas if each.phase is TlsPhase.ACTIVE]
    return [TlsChange(ca, TlsPhase.ACTIVE), *(TlsChange(each, TlsPhase.OUTGOING) for each in before)]


def retire(ca: TlsCa) -> list[TlsChange]:
    """Nodes trust it no longer.

    Raises:
        Refusal: CONFLICT from any phase but OUTGOING.
    """
    if ca.phase is TlsPhase.RETIRED:
        return []
    if ca.phase is TlsPhase.ACTIVE:
        raise _conflict(ca, "is ACTIVE: its certificate is shown. Prepare and activate another one first")
    if ca.phase is TlsPhase.PREPARED:
        raise _conflict(ca, "was never shown: activate it, or take it back with `fleetctl tls revoke`")
    if ca.phase is TlsPhase.REVOKED:
        raise _conflict(ca, "is revoked: nodes trust it no longer, and there is nothing to retire")
    return [TlsChange(ca, TlsPhase.RETIRED)]


def revoke(cas: Sequence[TlsCa], ca: TlsCa) -> list[TlsChange]:
    """Nodes trust it no longer, at once. The PREPARED one takes the place of one that was ACTIVE.

    Raises:
        Refusal: CONFLICT when nothing would take its place.
    """
    if ca.phase is TlsPhase.REVOKED:
        return []
    changes = [TlsChange(ca, TlsPhase.REVOKED)]
    if ca.phase is TlsPhase.ACTIVE:
        successor = _newest(cas, TlsPhase.PREPARED)
        if successor is None:
            raise _conflict(ca, "is ACTIVE: its certificate is shown. `fleetctl tls prepare` makes its successor first")
        changes.append(TlsChange(successor, TlsPhase.ACTIVE))
    if issuer(after(cas, changes)) is None:
        raise _conflict(
            ca,
            "signs what the server's own listeners show behind a CA from outside: `fleetctl tls prepare` makes one that"
            " takes its place",
        )
    return changes


def after(cas: Sequence[TlsCa], changes: Iterable[TlsChange], now_ms: int | None = None) -> list[TlsCa]:
    """How CAs stand once `changes` were made, at `now_ms` when that counts; private keys of no more use are gone."""
    phases = {change.ca.sha256: change.phase for change in changes}
    moved = [_in_phase(ca, phases[ca.sha256], now_ms) if ca.sha256 in phases else ca for ca in cas]
    signer = issuer(moved)
    return [replace(ca, has_key=ca.has_key and (ca.phase is TlsPhase.PREPARED or ca == signer)) for ca in moved]


def stepped_back(
    cas: Iterable[TlsCa],
    known: Iterable[TlsCa],
    *,
    version: tuple[int, int],
    named_der: Iterable[bytes],
    revoked: Callable[[bytes], bool] = lambda sha256: False,
) -> list[TlsChange]:
    """CAs whose rows say less than was true before: old rows, their MACs still good, were put back around the server.
    What had been ahead is put there again; what a bundle had dropped, or was revoked, is revoked.

    Args:
        known: as this replica remembers them.
        version: (generation, number) of the newest bundle; (0, 0) before the first.
        named_der: CAs in it.
        revoked: whether the CA of a SHA-256 ever was.
    """
    remembered = {ca.sha256: ca.phase for ca in known}
    standing = set(named_der)
    changes = []
    for ca in cas:
        before = TlsPhase.REVOKED if revoked(ca.sha256) else remembered.get(ca.sha256, ca.phase)
        if before > ca.phase:
            changes.append(TlsChange(ca, before))
        elif ca.phase in _PUBLISHED and ca.first_bundle <= version and ca.certificate_der not in standing:
            changes.append(TlsChange(ca, TlsPhase.REVOKED))
    return changes


def name(ca: TlsCa) -> str:
    """As a sentence names it."""
    return f"TLS CA {ca.sha256.hex()[:MIN_PREFIX_CHARS]}"


def _in_phase(ca: TlsCa, phase: TlsPhase, now_ms: int | None) -> TlsCa:
    since_ms = ca.since_ms if now_ms is None or phase is ca.phase else now_ms
    return replace(ca, phase=phase, since_ms=since_ms, has_key=ca.has_key and phase is not TlsPhase.REVOKED)


def _newest(cas: Iterable[TlsCa], *phases: TlsPhase) -> TlsCa | None:
    found = [ca for ca in cas if ca.phase in phases]
    return max(found, key=lambda ca: (ca.since_ms, ca.created_at_ms, ca.sha256), default=None)


def _check_is_ca(certificate: x509.Certificate) -> None:
    try:
        is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_ca = False
    if not is_ca:
        raise _unfit("that is no CA's certificate, perhaps a server's: give that of the CA which signed it")
    try:
        may_sign = certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        may_sign = True
    if not may_sign:
        raise _unfit("the CA's certificate does not let it sign certificates (keyCertSign): bring another")


def _check_strength(certificate: x509.Certificate) -> None:
    key = certificate.public_key()
    strong = (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES)) or (
        isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS
    )
    if not strong:
        raise _unfit(
            f"the CA's key is weak, or of a kind that TLS refuses: use ECDSA, or RSA of at least {MIN_RSA_BITS} bits"
        )
    if isinstance(certificate.signature_hash_algorithm, MD5 | SHA1):
        raise _unfit("the CA's certificate is signed over SHA-1 or MD5: bring one that is signed over SHA-256")


def _moment(now_ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(now_ms / 1000, dt.UTC)


def _unfit(why: str) -> Refusal:
    return Refusal(Reason.INVALID_ARGUMENT, why)


def _conflict(ca: TlsCa, what: str) -> Refusal:
    return Refusal(Reason.CONFLICT, f"{name(ca)} {what}")
