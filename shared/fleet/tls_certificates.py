"""Certificates of the installation's own TLS: CA and leaves, made and read.

Keys are ECDSA P-256: an Ed25519 leaf fails gRPC's handshake.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS = 3650
LEAF_DAYS = 90
_BACKDATE = dt.timedelta(days=1)  # nodes' clocks run behind, by hours where they keep local time


@dataclass(frozen=True, slots=True, repr=False)
class CertifiedKey:
    """A certificate with its private key, both PEM."""

    certificate_pem: bytes
    private_key_pem: bytes

    @property
    def certificate_der(self) -> bytes:
        """The certificate as DER."""
        return pem_to_der(self.certificate_pem)

    @property
    def not_after(self) -> dt.datetime:
        """When the certificate ends (UTC)."""
        return x509.load_pem_x509_certificate(self.certificate_pem).not_valid_after_utc

    @property
    def is_pair(self) -> bool:
        """Whether the key is the certificate's.

        Raises:
            ValueError, TypeError: one of them cannot be read.
        """
        key = load_pem_private_key(self.private_key_pem, password=None)
        return key.public_key() == x509.load_pem_x509_certificate(self.certificate_pem).public_key()


def make_ca(common_name: str, now: dt.datetime, key: ec.EllipticCurvePrivateKey | None = None) -> CertifiedKey:
    """A self-signed CA that may sign leaves and nothing else.

    Args:
        common_name: shown to people.
        now: UTC.
        key: P-256; a new one by default.
    """
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = (
        _builder(name, name, now, now + dt.timedelta(days=CA_DAYS))
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _pack(builder.sign(key, SHA256()), key)


def make_leaf(ca: CertifiedKey, hosts: Sequence[str], now: dt.datetime, days: int = LEAF_DAYS) -> CertifiedKey:
    """A server certificate, signed by `ca`.

    Args:
        ca: signs.
        hosts: DNS names and IP addresses that it is for; the first is the common name too.
        now: UTC.
        days: until it ends, or until the CA does.

    Raises:
        ValueError: no host, or the CA's key is not ECDSA.
    """
    if not hosts:
        raise ValueError("a leaf needs at least one host name or address")
    issuer = x509.load_pem_x509_certificate(ca.certificate_pem)
    signing_key = load_pem_private_key(ca.private_key_pem, password=None)
    if not isinstance(signing_key, ec.EllipticCurvePrivateKey):
        raise ValueError("the CA key is not an ECDSA key")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    builder = (
        _builder(subject, issuer.subject, now, min(now + dt.timedelta(days=days), issuer.not_valid_after_utc))
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(list(_names(hosts))), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()),
            critical=False,
        )
    )
    return _pack(builder.sign(signing_key, SHA256()), key)


def make_self_signed(host: str, begins: dt.datetime, ends: dt.datetime) -> CertifiedKey:
    """A server certificate that nobody vouches for: whoever believes it has pinned it.

    Args:
        host: DNS name that it is for.
        begins: UTC.
        ends: UTC.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    builder = (
        _builder(name, name, begins + _BACKDATE, ends)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    )
    return _pack(builder.sign(key, SHA256()), key)


def leaf_hosts(certificate_pem: bytes) -> list[str]:
    """DNS names and addresses that a leaf is for, in its own order; none when it names its host the old way only."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names]


def host_names(hosts: Iterable[str]) -> list[str]:
    """Hosts as `leaf_hosts` shows them: an IPv6 address has many spellings, and a leaf keeps one.

    Raises:
        ValueError: a DNS name is not ASCII.
    """
    return [str(name.value) for name in _names(hosts)]


def is_issued_by(certificate_pem: bytes, ca_pem: bytes) -> bool:
    """Whether a CA signed a certificate."""
    certificate, ca = map(x509.load_pem_x509_certificate, (certificate_pem, ca_pem))
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


@lru_cache(maxsize=16)
def pem_to_der(pem: bytes) -> bytes:
    """First certificate of a PEM text as DER. Each handshake asks for the same one."""
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def _builder(subject: x509.Name, issuer: x509.Name, now: dt.datetime, until: dt.datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(until)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _names(hosts: Iterable[str]) -> Iterable[x509.GeneralName]:
    for host in hosts:
        try:
            yield x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            yield x509.DNSName(host)


def _pack(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> CertifiedKey:
    return CertifiedKey(
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
