"""What a server shows before it is trusted: its certificate chain, fetched without belief, to be compared by a person
or a pin."""

from __future__ import annotations

import hmac
import socket
import ssl
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from fleet_server.cli.failures import BadProfile, Refused, Unreachable
from fleet_server.cli.views import grouped_hex

FETCH_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class ShownCertificate:
    """A certificate that could become the trusted root.

    `is_ca` is False when the server shows its own certificate alone: trust then ends with that certificate.
    """

    pem: str
    sha256: bytes
    is_ca: bool

    @property
    def grouped(self) -> str:
        """SHA-256 as people compare it."""
        return grouped_hex(self.sha256)


def fetch_root(server: str) -> ShownCertificate:
    """The CA that the server shows, or its own certificate when it shows no CA that signed it.

    Nothing is verified here but that the CA signed the leaf: the caller asks a person, or compares a pin, and gRPC
    verifies afterwards.

    Args:
        server: "host:port".

    Raises:
        Unreachable: nobody answers, or what answers does not speak TLS 1.3.
    """
    chain = [x509.load_der_x509_certificate(der) for der in _fetch_chain(server)]
    leaf = chain[0]
    for issuer in chain[1:]:
        if _is_ca(issuer) and _is_issued_by(leaf, issuer):
            return _shown(issuer, is_ca=True)
    return _shown(leaf, is_ca=False)


def fetch_leaf(server: str) -> bytes:
    """The certificate that a server shows, as PEM. Nothing is verified.

    Args:
        server: "host:port".

    Raises:
        Unreachable: nobody answers, or what answers does not speak TLS 1.3.
    """
    return ssl.DER_cert_to_PEM_cert(_fetch_chain(server)[0]).encode()


def ca_file_fingerprint(pem: str, path: str) -> ShownCertificate:
    """The first certificate of a PEM text.

    Raises:
        BadProfile: not a certificate.
    """
    try:
        certificate = x509.load_pem_x509_certificates(pem.encode())[0]
    except ValueError as error:
        raise BadProfile(f"{path} holds no certificate that can be read: {error}") from error
    return ShownCertificate(pem=pem, sha256=certificate.fingerprint(SHA256()), is_ca=True)


def check_pin(shown: ShownCertificate, pin: str) -> None:
    """Compare with what a person was told over another way.

    Args:
        shown: as fetched.
        pin: SHA-256 in hexadecimal; colons, spaces and case do not matter, "sha256:" may stand before it.

    Raises:
        BadProfile: the pin is no SHA-256.
        Refused: it is another certificate.
    """
    text = pin.lower().removeprefix("sha256:").replace(":", "").replace(" ", "")
    try:
        expected = bytes.fromhex(text)
    except ValueError:
        expected = b""
    if len(expected) != 32:
        raise BadProfile("--ca-fingerprint is not a SHA-256: 64 hexadecimal digits, with or without colons")
    if not hmac.compare_digest(expected, shown.sha256):
        raise Refused(
            f"the server shows another CA: SHA-256 {shown.grouped}",
            hint="do not go on: ask the server's owner for its CA's SHA-256 and check the address",
        )


def _fetch_chain(server: str) -> list[bytes]:
    host, _, port = server.rpartition(":")
    host = host.strip("[]")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # what is fetched here is shown to a person; no secret is sent over it
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, int(port)), timeout=FETCH_TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            return _unverified_chain(secure)
    except ssl.SSLError as error:
        raise Unreachable(
            f"what answers at {server} does not speak TLS 1.3: {error.reason or error}",
            hint="is this the admin listener (7444 by default), and not the metrics or console port?",
        ) from error
    except OSError as error:
        raise Unreachable(
            f"cannot reach {server}: {error.strerror or error}",
            hint="is fleet-server running there, and its admin listener open to you?",
        ) from error


def _unverified_chain(secure: ssl.SSLSocket) -> list[bytes]:
    connection: Any = secure
    if hasattr(connection, "get_unverified_chain"):  # Python 3.13 and later
        return list(connection.get_unverified_chain())
    # Before 3.13 the same method stands one level down and gives certificate objects.
    return [ssl.PEM_cert_to_DER_cert(shown.public_bytes()) for shown in connection._sslobj.get_unverified_chain()]


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _is_issued_by(leaf: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _shown(certificate: x509.Certificate, *, is_ca: bool) -> ShownCertificate:
    pem = certificate.public_bytes(Encoding.PEM).decode()
    return ShownCertificate(pem=pem, sha256=certificate.fingerprint(SHA256()), is_ca=is_ca)
