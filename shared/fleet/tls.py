"""How a node sees the certificate that gRPC does not show it.

The node fetches the leaf with `ssl` (pinned CA, TLS 1.3, ALPN h2), then opens its gRPC channel with that leaf as the
sole root, so that another leaf of the same CA is refused, and signs the leaf's hash in its handshake. A stranger who
terminates TLS in between shows another leaf, and the server refuses its hash.

Certificates are made and read in `fleet.tls_certificates`: a node needs none of that for a stream, and it is a MiB of
its memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import ssl
from collections.abc import Iterable
from pathlib import Path

_ENDPOINT = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})")


def der_to_pem(der: bytes) -> bytes:
    """DER certificate as PEM, the only form that gRPC takes for roots."""
    return ssl.DER_cert_to_PEM_cert(der).encode()


def certificate_sha256(der: bytes) -> bytes:
    """SHA-256 of a DER certificate: what a handshake names."""
    return hashlib.sha256(der).digest()


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` into its parts.

    Raises:
        ValueError: there is no host, or no port between 1 and 65535; or it is a URI, which gRPC would resolve in a way
        of its own (``unix:``, ``dns:///``).
    """
    found = _ENDPOINT.fullmatch(endpoint)
    if found is None or not 0 < int(found["port"]) < 65536:
        raise ValueError(f"{endpoint!r} is no endpoint: write host:port, an IPv6 address in brackets")
    return found["v6"] or found["name"], int(found["port"])


async def fetch_leaf(
    endpoint: str, ca_der: Iterable[bytes], timeout_s: float, client_certificate: Path | None = None
) -> bytes:
    """Connect once and return the DER of the leaf that the server shows, after verifying it against the pinned CAs.

    Raises:
        ssl.SSLCertVerificationError: the leaf is not of a pinned CA, or not for this host.
        ssl.SSLError: no TLS 1.3, or no HTTP/2.
        OSError, TimeoutError: unreachable.
        ValueError: no endpoint, or no CA is pinned.
    """
    return await _fetch_leaf(endpoint, client_context(ca_der), timeout_s, client_certificate)


async def fetch_unverified_leaf(endpoint: str, timeout_s: float, client_certificate: Path | None = None) -> bytes:
    """As `fetch_leaf`, from whoever answers: nothing that comes over such a connection counts but what is signed, and
    nothing secret goes over it.

    Raises:
        ssl.SSLError: no TLS 1.3, or no HTTP/2.
        OSError, TimeoutError: unreachable.
        ValueError: no endpoint.
    """
    context = _context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return await _fetch_leaf(endpoint, context, timeout_s, client_certificate)


async def _fetch_leaf(
    endpoint: str, context: ssl.SSLContext, timeout_s: float, client_certificate: Path | None
) -> bytes:
    host, port = split_endpoint(endpoint)
    if client_certificate is not None:
        context.load_cert_chain(client_certificate)
    async with asyncio.timeout(timeout_s):
        _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host)
        try:
            tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
            leaf = tls.getpeercert(binary_form=True)
            speaks = tls.selected_alpn_protocol()
        finally:
            writer.transport.abort()  # nothing more is to be said; a close_notify round trip would only cost time
    if leaf is None:
        raise ssl.SSLError("the server showed no certificate")
    if speaks != "h2":
        raise ssl.SSLError(
            "the server does not speak HTTP/2: something in between ends the connection, or the port is wrong"
        )
    return leaf


def client_context(ca_der: Iterable[bytes]) -> ssl.SSLContext:
    """TLS 1.3 only, these CAs only, ALPN h2.

    Raises:
        ValueError: no CA, and so nobody to believe.
        ssl.SSLError: one of them is no certificate.
    """
    roots = "".join(der_to_pem(der).decode() for der in ca_der)
    if not roots:
        raise ValueError("no TLS CA is pinned: nobody can be believed")
    context = _context()
    context.load_verify_locations(cadata=roots)
    return context


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    return context
