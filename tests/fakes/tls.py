"""Certificates for tests: an authority of its own and leaves under it, all ECDSA P-256 (gRPC refuses
Ed25519)."""

import datetime
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAY = datetime.timedelta(days=1)
LOOPBACK_NAMES = ("localhost", "127.0.0.1")


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate with its private key, both PEM."""

    cert_pem: bytes
    key_pem: bytes

    def __repr__(self) -> str:
        return "Leaf(...)"

    def server_credentials(self) -> grpc.ServerCredentials:
        """Credentials for `grpc.aio.Server.add_secure_port`, asking for no client certificate."""
        return grpc.ssl_server_credentials([(self.key_pem, self.cert_pem)])

    def write(self, folder: Path, stem: str = "server") -> tuple[Path, Path]:
        """Write `<stem>.crt` and `<stem>.key` (0600) and return their paths."""
        cert_path, key_path = folder / f"{stem}.crt", folder / f"{stem}.key"
        cert_path.write_bytes(self.cert_pem)
        with os.fdopen(os.open(key_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(self.key_pem)
        return cert_path, key_path


class FakeAuthority:
    """A certificate authority that lives for one test or one session."""

    def __init__(self, name: str = "fleet test authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        unsigned = (
            _builder(self._name, self._name, self._key.public_key(), _valid(_DAY))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
        )
        self._cert = unsigned.sign(self._key, hashes.SHA256())

    @property
    def cert_pem(self) -> bytes:
        """The authority's own certificate: what a client pins."""
        return self._cert.public_bytes(serialization.Encoding.PEM)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Client credentials that trust this authority alone."""
        return grpc.ssl_channel_credentials(self.cert_pem)

    def issue(
        self, *names: str, valid_for: datetime.timedelta = _DAY, usage: x509.ObjectIdentifier | None = None
    ) -> Leaf:
        """A leaf for DNS names and IP addresses (`LOOPBACK_NAMES` when none are given).

        Args:
            names: subject alternative names; the first is the common name too.
            valid_for: from now; negative makes a certificate that has already run out.
            usage: extended key usage, server authentication unless told otherwise.
        """
        names = names or LOOPBACK_NAMES
        key = ec.generate_private_key(ec.SECP256R1())
        unsigned = (
            _builder(_name(names[0]), self._name, key.public_key(), _valid(valid_for))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage or ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), False)
        )
        cert = unsigned.sign(self._key, hashes.SHA256())
        key_pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Leaf(cert.public_bytes(serialization.Encoding.PEM), key_pem)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _valid(valid_for: datetime.timedelta) -> tuple[datetime.datetime, datetime.datetime]:
    now = datetime.datetime.now(datetime.UTC)
    return min(now, now + valid_for) - _DAY, now + valid_for


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    valid: tuple[datetime.datetime, datetime.datetime],
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
