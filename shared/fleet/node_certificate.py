"""Client certificates of nodes, for the optional mTLS listener (docs/protocol.md, "mTLS").

They come from a CA of their own, whose key every replica derives from one seed: neither a stolen server leaf nor the
TLS CA makes a client, and no node certificate makes a server.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet.tls import certificate_sha256
from fleet.tls_certificates import CertifiedKey, make_ca

DAYS = 30
MAX_PUBLIC_KEY_BYTES = 128
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_BACKDATE = dt.timedelta(days=1)  # replicas' clocks lie apart, and TLS asks each of them


class NodeCertificateError(ValueError):
    """What was shown is no node certificate, or no key for one."""


@dataclass(frozen=True, slots=True)
class NodeCertificate:
    """What stands in a certificate.

    Args:
        sha256: of the DER.
        node_id: its subject.
        begins_ms: Unix milliseconds.
        ends_ms: Unix milliseconds; it is good before this.
        public_key: DER SubjectPublicKeyInfo.
    """

    sha256: bytes
    node_id: str
    begins_ms: int
    ends_ms: int
    public_key: bytes

    @property
    def due_ms(self) -> int:
        """When to renew it: two thirds of its life are over."""
        return self.begins_ms + (self.ends_ms - self.begins_ms) * 2 // 3


def derive_ca(seed: bytes, now: dt.datetime) -> CertifiedKey:
    """The node CA: the same key for the same seed, in a fresh certificate.

    Args:
        seed: 32 secret bytes.
        now: UTC.
    """
    # 16 bytes more than the order has, so that no scalar is likelier than another (FIPS 186-5, A.2.1).
    wide = HKDFExpand(algorithm=SHA256(), length=48, info=b"fleet.v1/node-ca\x00").derive(seed)
    scalar = int.from_bytes(wide, "big") % (_P256_ORDER - 1) + 1
    return make_ca("fleet-server node CA", now, ec.derive_private_key(scalar, ec.SECP256R1()))


def issue(ca: CertifiedKey, node_id: str, public_key: bytes, now: dt.datetime) -> bytes:
    """A client certificate (DER) for `node_id`, good for `DAYS`.

    Args:
        ca: the node CA.
        node_id: the subject; at most 64 characters.
        public_key: DER SubjectPublicKeyInfo, P-256.
        now: UTC.

    Raises:
        NodeCertificateError: the key is no P-256 key.
    """
    key = _p256(public_key)
    issuer = x509.load_pem_x509_certificate(ca.certificate_pem)
    signing_key = load_pem_private_key(ca.private_key_pem, password=None)
    if not isinstance(signing_key, ec.EllipticCurvePrivateKey):
        raise NodeCertificateError("the CA key is not an ECDSA key")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node_id)]))
        .issuer_name(issuer.subject)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + dt.timedelta(days=DAYS))
        .public_key(key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
        .sign(signing_key, SHA256())
    )
    return certificate.public_bytes(Encoding.DER)


def read(certificate: bytes) -> NodeCertificate:
    """What a certificate (PEM or DER) says. Whose CA signed it is for TLS to check.

    Raises:
        NodeCertificateError: it is no certificate of one node.
    """
    try:
        pem = certificate.lstrip().startswith(b"-----")
        found = (x509.load_pem_x509_certificate if pem else x509.load_der_x509_certificate)(certificate)
        names = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        key = found.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        begins, ends = found.not_valid_before_utc, found.not_valid_after_utc
    except (ValueError, TypeError) as error:
        raise NodeCertificateError("it is no X.509 certificate") from error
    if len(names) != 1 or not isinstance(names[0].value, str):
        raise NodeCertificateError("its subject is not one node")
    sha256 = certificate_sha256(found.public_bytes(Encoding.DER))
    return NodeCertificate(sha256, names[0].value, _ms(begins), _ms(ends), key)


def public_key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public half as a certificate request carries it."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _p256(public_key: bytes) -> ec.EllipticCurvePublicKey:
    if len(public_key) > MAX_PUBLIC_KEY_BYTES:
        raise NodeCertificateError("the public key is too long for a P-256 key")
    try:
        key = load_der_public_key(public_key)
    except (ValueError, TypeError) as error:
        raise NodeCertificateError("the public key is not a DER SubjectPublicKeyInfo") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise NodeCertificateError("the public key is not an ECDSA P-256 key")
    return key


def _ms(moment: dt.datetime) -> int:
    return int(moment.timestamp() * 1000)
