"""Checks of the way to one gateway: name, connection, TLS under the pinned CA, HTTP/2."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import socket
import ssl
import time
from collections.abc import AsyncIterator, Sequence

from cryptography import x509

from fleet import tls
from fleet_node.doctor.finding import Finding, Level, fail, ok, skip

_TIMEOUT_S = 5.0
_STEPS = ("dns", "tcp", "tls", "http2")


async def check_way(endpoint: str, ca_der: Sequence[bytes]) -> AsyncIterator[Finding]:
    """Each step in order; those behind one that fails are skipped."""
    try:
        host, port = tls.split_endpoint(endpoint)
    except ValueError as error:
        remedy = (
            "correct it where it comes from: this node's setting `endpoints`, or the server's of what it advertises"
        )
        yield fail("dns", str(error), remedy, endpoint=endpoint)
        return
    failed = False
    async for finding in _steps(endpoint, host, port, ca_der):
        yield finding
        failed = failed or finding.level is Level.FAIL
        if failed:
            for step in _STEPS[_STEPS.index(finding.check) + 1 :]:
                yield skip(step, f"{finding.check} failed", endpoint=endpoint)
            return


async def _steps(endpoint: str, host: str, port: int, ca_der: Sequence[bytes]) -> AsyncIterator[Finding]:
    yield await _check_dns(endpoint, host, port)
    yield await _check_tcp(endpoint, host, port)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader_writer = await asyncio.open_connection(
                host, port, ssl=tls.client_context(ca_der), server_hostname=host
            )
    except ssl.SSLCertVerificationError as error:
        yield fail("tls", await _stranger(host, port, error.verify_message), _remedy(error), endpoint=endpoint)
        return
    except (OSError, TimeoutError, EOFError) as error:
        detail = f"no TLS 1.3 handshake: {_why(error)}"
        yield fail(
            "tls", detail, "is this the gateway's port, and does a proxy in between speak TLS 1.3?", endpoint=endpoint
        )
        return
    writer = reader_writer[1]
    try:
        session: ssl.SSLObject = writer.get_extra_info("ssl_object")
        leaf, speaks = session.getpeercert(binary_form=True), session.selected_alpn_protocol()
    finally:
        writer.transport.abort()
    yield ok("tls", f"{session.version()}, certificate of the pinned CA, {_describe(leaf)}", endpoint=endpoint)
    if speaks == "h2":
        yield ok("http2", "agreed by ALPN", endpoint=endpoint)
    else:
        remedy = "a proxy or load balancer in between must pass HTTP/2 (or plain TCP) through"
        yield fail("http2", f"the other end chose {speaks or 'nothing'} instead of h2", remedy, endpoint=endpoint)


async def _check_dns(endpoint: str, host: str, port: int) -> Finding:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return ok("dns", "an address, no name to look up", endpoint=endpoint)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError) as error:  # UnicodeError: no name at all, such as `a..b`
        remedy = "check the name, and this machine's resolver (/etc/resolv.conf)"
        return fail("dns", f"{host} has no address: {_why(error)}", remedy, endpoint=endpoint)
    addresses = sorted({str(entry[4][0]) for entry in found})
    return ok("dns", f"{host} is {', '.join(addresses)}", endpoint=endpoint)


async def _check_tcp(endpoint: str, host: str, port: int) -> Finding:
    started = time.perf_counter()
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError) as error:
        remedy = "is the gateway up, and do firewalls let this machine out to that port?"
        return fail("tcp", f"no connection: {_why(error)}", remedy, endpoint=endpoint)
    took_s = time.perf_counter() - started
    writer.transport.abort()
    return ok("tcp", f"connected in {took_s * 1000:.1f} ms", endpoint=endpoint)


async def _stranger(host: str, port: int, why: str) -> str:
    """What is shown in place of the gateway's certificate; nothing is sent to it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # to look at it, after it was refused
    context.set_alpn_protocols(["h2"])
    leaf: bytes | None = None
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host)
        leaf = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.transport.abort()
    except (OSError, TimeoutError, EOFError):
        pass
    return f"the certificate is not good under the pinned CA ({why}); shown: {_describe(leaf)}"


def _remedy(error: ssl.SSLCertVerificationError) -> str:
    if "expired" in error.verify_message or "not yet valid" in error.verify_message:
        return "check this machine's clock; if it is right, the server has to renew its certificate"
    if "mismatch" in error.verify_message:
        return "the certificate is for other names: correct the endpoint, or add the name on the server"
    return (
        "something in between opens TLS, or this is another installation: let traffic to the gateway pass untouched. Or"
        " the server's TLS CA was replaced while this node was away: the daemon finds that out by itself"
    )


def _describe(leaf: bytes | None) -> str:
    if leaf is None:
        return "no certificate"
    try:
        certificate = x509.load_der_x509_certificate(leaf)
        issuer = certificate.issuer.rfc4514_string()
        until = certificate.not_valid_after_utc.strftime("%Y-%m-%d")
    except ValueError:
        return "a certificate that cannot be read"
    return f"issued by {issuer}, until {until}, SHA-256 {hashlib.sha256(leaf).hexdigest()[:16]}…"


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing answered within {_TIMEOUT_S:g} s"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
