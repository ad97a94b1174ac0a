"""The pinned leaf, with real gRPC servers on loopback: this certificate is taken, and no other of the same CA."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fleet import tls, tls_certificates
from fleet.tls_certificates import CertifiedKey

NOW = dt.datetime.now(dt.UTC)
HOSTS = ["127.0.0.1", "localhost"]
CA = tls_certificates.make_ca("test CA", NOW)
OTHER_CA = tls_certificates.make_ca("other CA", NOW)
LEAF = tls_certificates.make_leaf(CA, HOSTS, NOW)
TIMEOUT_S = 10.0


async def _echo(request: bytes, _: object) -> bytes:
    return request


@asynccontextmanager
async def grpc_server(leaf: CertifiedKey) -> AsyncIterator[str]:
    """A real server that shows `leaf`; yields its endpoint."""
    server = grpc.aio.server()
    handlers = {"Echo": grpc.unary_unary_rpc_method_handler(_echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    credentials = grpc.ssl_server_credentials([(leaf.private_key_pem, leaf.certificate_pem)])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def call(endpoint: str, root_pem: bytes) -> bytes:
    credentials = grpc.ssl_channel_credentials(root_pem)
    async with grpc.aio.secure_channel(endpoint, credentials) as channel:
        return await channel.unary_unary("/test.Echo/Echo")(b"hello", timeout=TIMEOUT_S)


@pytest.mark.parametrize(("behind_h", "believed"), [(0, True), (14, True), (30, False)])
def test_a_machine_whose_clock_is_hours_behind_believes_what_was_made_a_moment_ago(
    behind_h: int, believed: bool
) -> None:
    """One that keeps local time is wrong by up to 14 hours until its time is set."""
    builder = PolicyBuilder().store(Store([x509.load_pem_x509_certificate(CA.certificate_pem)]))
    verifier = builder.time(NOW - dt.timedelta(hours=behind_h)).build_server_verifier(x509.DNSName("localhost"))
    leaf = x509.load_pem_x509_certificate(LEAF.certificate_pem)
    if believed:
        verifier.verify(leaf, [])
        return
    with pytest.raises(VerificationError):
        verifier.verify(leaf, [])


@asynccontextmanager
async def tls_server(
    tmp_path: Path, leaf: CertifiedKey, configure: Callable[[ssl.SSLContext], None]
) -> AsyncIterator[str]:
    """A TLS server that is no gRPC server."""
    (tmp_path / "cert.pem").write_bytes(leaf.certificate_pem)
    (tmp_path / "key.pem").write_bytes(leaf.private_key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    configure(context)

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


# --- the leaf as sole root -------------------------------------------------------------------------------------------


async def test_the_fetched_leaf_is_the_servers_and_grpc_takes_it_as_sole_root() -> None:
    async with grpc_server(LEAF) as endpoint:
        fetched = await tls.fetch_leaf(endpoint, [CA.certificate_der], TIMEOUT_S)
        assert fetched == LEAF.certificate_der
        assert await call(endpoint, tls.der_to_pem(fetched)) == b"hello"


async def test_grpc_refuses_another_leaf_of_the_same_ca() -> None:
    renewed = tls_certificates.make_leaf(CA, HOSTS, NOW)
    async with grpc_server(renewed) as endpoint:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(endpoint, LEAF.certificate_pem)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "CERTIFICATE_VERIFY_FAILED" in (caught.value.details() or "")


async def test_grpc_refuses_the_pinned_leaf_for_another_name() -> None:
    elsewhere = tls_certificates.make_leaf(CA, ["gateway.example"], NOW)
    async with grpc_server(elsewhere) as endpoint:
        with pytest.raises(grpc.aio.AioRpcError):
            await call(endpoint, elsewhere.certificate_pem)


# --- fetching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("leaf", "pinned"),
    [
        (LEAF, [OTHER_CA]),
        (tls_certificates.make_leaf(OTHER_CA, HOSTS, NOW), [CA]),
        (tls_certificates.make_leaf(CA, ["gateway.example"], NOW), [CA]),
        (tls_certificates.make_leaf(CA, HOSTS, NOW - dt.timedelta(days=100)), [CA]),
        (tls_certificates.make_leaf(CA, HOSTS, NOW + dt.timedelta(days=2)), [CA]),
    ],
    ids=["another CA pinned", "another CA's", "another name", "expired", "not valid yet"],
)
async def test_leaves_that_are_not_taken(leaf: CertifiedKey, pinned: list[CertifiedKey]) -> None:
    async with grpc_server(leaf) as endpoint:
        with pytest.raises(ssl.SSLCertVerificationError):
            await tls.fetch_leaf(endpoint, [ca.certificate_der for ca in pinned], TIMEOUT_S)


async def test_without_a_pinned_ca_nobody_is_believed() -> None:
    with pytest.raises(ValueError, match="no TLS CA is pinned"):
        await tls.fetch_leaf("127.0.0.1:1", [], TIMEOUT_S)


async def test_any_pinned_ca_will_do_while_one_replaces_another() -> None:
    async with grpc_server(LEAF) as endpoint:
        pinned = [OTHER_CA.certificate_der, CA.certificate_der]
        assert await tls.fetch_leaf(endpoint, pinned, TIMEOUT_S) == LEAF.certificate_der


async def test_a_server_without_tls_1_3_is_refused(tmp_path: Path) -> None:
    def only_1_2(context: ssl.SSLContext) -> None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])

    async with tls_server(tmp_path, LEAF, only_1_2) as endpoint:
        with pytest.raises(OSError):
            await tls.fetch_leaf(endpoint, [CA.certificate_der], TIMEOUT_S)


async def test_a_server_without_http2_is_refused(tmp_path: Path) -> None:
    async with tls_server(tmp_path, LEAF, lambda _: None) as endpoint:
        with pytest.raises(ssl.SSLError, match="HTTP/2"):
            await tls.fetch_leaf(endpoint, [CA.certificate_der], TIMEOUT_S)


async def test_a_silent_server_costs_no_more_than_the_timeout() -> None:
    released = asyncio.Event()

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await released.wait()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(TimeoutError):
            await tls.fetch_leaf(f"127.0.0.1:{port}", [CA.certificate_der], timeout_s=0.05)
        released.set()


async def test_nobody_listens(free_port: Callable[[], Awaitable[int]]) -> None:
    with pytest.raises(OSError, match="Connect"):
        await tls.fetch_leaf(f"127.0.0.1:{await free_port()}", [CA.certificate_der], TIMEOUT_S)


@pytest.fixture
def free_port() -> Callable[[], Awaitable[int]]:
    async def find() -> int:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port: int = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        return port

    return find


# --- certificates ----------------------------------------------------------------------------------------------------


def test_what_a_leaf_may_and_may_not() -> None:
    certificate = x509.load_pem_x509_certificate(LEAF.certificate_pem)
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert tls_certificates.leaf_hosts(LEAF.certificate_pem) == HOSTS
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(CA.certificate_pem))
    assert LEAF.not_after - NOW <= dt.timedelta(days=tls_certificates.LEAF_DAYS)


def test_a_ca_signs_no_further_ca() -> None:
    constraints = x509.load_pem_x509_certificate(CA.certificate_pem).extensions.get_extension_for_class(
        x509.BasicConstraints
    )
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)


def test_a_leaf_needs_a_host() -> None:
    with pytest.raises(ValueError, match="at least one host"):
        tls_certificates.make_leaf(CA, [], NOW)


def test_forms_of_a_certificate() -> None:
    assert tls_certificates.pem_to_der(tls.der_to_pem(LEAF.certificate_der)) == LEAF.certificate_der
    assert len(tls.certificate_sha256(LEAF.certificate_der)) == 32
    assert "PRIVATE KEY" not in repr(LEAF)


# --- endpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "parts"),
    [
        ("gateway.example:7443", ("gateway.example", 7443)),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("[2001:db8::1]:65535", ("2001:db8::1", 65535)),
        ("gate_way-1:443", ("gate_way-1", 443)),
    ],
)
def test_endpoints(endpoint: str, parts: tuple[str, int]) -> None:
    assert tls.split_endpoint(endpoint) == parts


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "gateway.example",
        ":7443",
        "gateway.example:",
        "gateway.example:0",
        "gateway.example:65536",
        "gateway.example:-1",
        "gateway.example:7443x",
        "gateway.example:٧٤٤٣",
        "2001:db8::1:7443",
        "[]:7443",
        "[gateway]:7443",
        "unix:/tmp/socket:7443",
        "dns:///gateway.example:7443",
        "https://gateway.example:7443",
        "gateway.example :7443",
        "gateway.example:7443\n",
    ],
)
def test_what_is_no_endpoint(endpoint: str) -> None:
    with pytest.raises(ValueError, match="no endpoint"):
        tls.split_endpoint(endpoint)
