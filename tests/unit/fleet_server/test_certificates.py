import asyncio
import ssl
from pathlib import Path

import grpc
import pytest

from fleet import tls
from fleet.tls import LEAF_DAYS, certificate_sha256
from fleet_server.certificates import CertificateError, ServerCertificates, open_certificates
from tests.fakes.clock import MockClock

HOSTS = ("localhost", "127.0.0.1")
DAY_S = 24 * 3600


@pytest.fixture
def clock() -> MockClock:
    """Near the machine's own time: OpenSSL judges validity by that."""
    import time

    return MockClock(time.time_ns() // 1_000_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tls"


@pytest.fixture
def certificates(folder: Path, clock: MockClock) -> ServerCertificates:
    return open_certificates(folder, HOSTS, clock)


def test_files_are_private_but_for_the_public_certificate(certificates: ServerCertificates, folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("ca.pem", "leaf.pem"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE" not in (folder / "ca.crt").read_bytes()
    assert tls.pem_to_der((folder / "ca.crt").read_bytes()) == certificates.ca_der


def test_opening_again_finds_the_same(certificates: ServerCertificates, folder: Path, clock: MockClock) -> None:
    again = open_certificates(folder, HOSTS, clock)
    assert (again.ca_der, again.leaf_der) == (certificates.ca_der, certificates.leaf_der)
    assert not again.renew()


def test_other_hosts_make_another_leaf_of_the_same_ca(
    certificates: ServerCertificates, folder: Path, clock: MockClock
) -> None:
    moved = open_certificates(folder, (*HOSTS, "new.example"), clock)
    assert moved.ca_der == certificates.ca_der
    assert moved.leaf_der != certificates.leaf_der
    assert certificate_sha256(certificates.leaf_der) in moved.accepted_leaves()


async def test_the_leaf_is_renewed_at_two_thirds_and_the_one_before_stays_accepted_while_it_lasts(
    certificates: ServerCertificates, folder: Path, clock: MockClock
) -> None:
    first = certificates.leaf_der
    running = asyncio.create_task(certificates.run())
    await clock.wait_sleepers(1)
    clock.step_wall(LEAF_DAYS * DAY_S * 2 / 3 - 600)
    await clock.advance(60)
    assert certificates.leaf_der == first
    clock.step_wall(600)
    await clock.advance(60)
    second = certificates.leaf_der
    assert second != first
    assert certificates.accepted_leaves() == {certificate_sha256(first), certificate_sha256(second)}
    restarted = open_certificates(folder, HOSTS, clock)
    assert restarted.accepted_leaves() == certificates.accepted_leaves()
    clock.step_wall(LEAF_DAYS * DAY_S / 3)
    assert certificates.accepted_leaves() == {certificate_sha256(second)}
    running.cancel()


async def test_a_live_server_serves_the_new_leaf_and_open_connections_stay(
    certificates: ServerCertificates, clock: MockClock
) -> None:
    async def echo(request: bytes, _context: object) -> bytes:
        return request

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("t.T", {"Echo": handler})])
    port = server.add_secure_port("127.0.0.1:0", certificates.credentials())
    await server.start()
    endpoint = f"127.0.0.1:{port}"
    ca = [certificates.ca_der]
    try:
        first = await tls.fetch_leaf(endpoint, ca, 10)
        assert first == certificates.leaf_der
        pinned = grpc.ssl_channel_credentials(tls.der_to_pem(first))
        async with grpc.aio.secure_channel(endpoint, pinned) as channel:
            call = channel.unary_unary("/t.T/Echo")
            assert await call(b"before") == b"before"
            clock.step_wall(LEAF_DAYS * DAY_S * 2 / 3)
            # The new leaf begins in the test's future; what counts here is which one is shown.
            assert certificates.renew()
            assert await call(b"after") == b"after"
        shown = await asyncio.to_thread(shown_leaf, port)
        assert shown == certificates.leaf_der != first
    finally:
        await server.stop(None)


def shown_leaf(port: int) -> bytes:
    return tls.pem_to_der(ssl.get_server_certificate(("127.0.0.1", port)).encode())


def test_a_leaf_that_was_put_into_the_folder_is_taken_up(
    certificates: ServerCertificates, folder: Path, clock: MockClock
) -> None:
    """Replicas behind one name serve one leaf: whoever shares the folder follows."""
    other = open_certificates(folder, HOSTS, clock)
    clock.step_wall(LEAF_DAYS * DAY_S * 2 / 3)
    assert other.renew()
    assert certificates.renew()
    assert certificates.leaf_der == other.leaf_der


def test_another_spelling_of_a_host_is_no_other_host(folder: Path, clock: MockClock) -> None:
    """An address that was written in its long form would have a new leaf made with every check."""
    certificates = open_certificates(folder, (*HOSTS, "2001:DB8:0::1"), clock)
    assert not certificates.renew()
    assert "2001:db8::1" in tls.leaf_hosts((folder / "leaf.pem").read_bytes())


def test_a_leaf_for_more_hosts_than_are_asked_for_stays(
    certificates: ServerCertificates, folder: Path, clock: MockClock
) -> None:
    wide = open_certificates(folder, (*HOSTS, "new.example"), clock)
    assert certificates.renew()
    assert certificates.leaf_der == wide.leaf_der


def test_a_leaf_that_names_no_host_is_replaced(
    certificates: ServerCertificates, folder: Path, clock: MockClock
) -> None:
    (folder / "leaf.pem").write_bytes((folder / "ca.pem").read_bytes())
    assert certificates.renew()
    assert set(tls.leaf_hosts((folder / "leaf.pem").read_bytes())) == set(HOSTS)


def test_a_leaf_of_another_ca_is_not_taken_up_and_the_message_says_what_to_do(
    certificates: ServerCertificates, folder: Path, tmp_path: Path, clock: MockClock
) -> None:
    open_certificates(tmp_path / "other", HOSTS, clock)
    foreign = (tmp_path / "other" / "leaf.pem").read_bytes()
    (folder / "leaf.pem").write_bytes(foreign)
    first = certificates.leaf_der
    with pytest.raises(CertificateError, match=r"not signed by ca\.pem"):
        certificates.renew()
    assert certificates.leaf_der == first
    assert (folder / "leaf.pem").read_bytes() == foreign


def test_a_key_that_is_not_its_certificates_is_refused(
    certificates: ServerCertificates, folder: Path, clock: MockClock
) -> None:
    """gRPC would take it for a port that is not free."""
    begins = b"-----BEGIN PRIVATE KEY-----"
    certificate, _, _ = (folder / "leaf.pem").read_bytes().partition(begins)
    _, _, key = (folder / "ca.pem").read_bytes().partition(begins)
    (folder / "leaf.pem").write_bytes(certificate + begins + key)
    with pytest.raises(CertificateError, match="not that of its certificate"):
        open_certificates(folder, HOSTS, clock)


@pytest.mark.parametrize("name", ["ca.pem", "leaf.pem"])
def test_damaged_or_open_files_are_refused_with_what_to_do(
    certificates: ServerCertificates, folder: Path, clock: MockClock, name: str
) -> None:
    path = folder / name
    path.chmod(0o644)
    with pytest.raises(CertificateError, match="chmod 600"):
        open_certificates(folder, HOSTS, clock)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CertificateError, match="restore them from a backup"):
        open_certificates(folder, HOSTS, clock)


async def test_a_renewal_that_fails_keeps_the_leaf_and_is_tried_again(
    certificates: ServerCertificates, folder: Path, clock: MockClock
) -> None:
    leaf = (folder / "leaf.pem").read_bytes()
    first = certificates.leaf_der
    running = asyncio.create_task(certificates.run())
    await clock.wait_sleepers(1)
    (folder / "leaf.pem").write_bytes(b"damaged")
    clock.step_wall(LEAF_DAYS * DAY_S * 2 / 3)
    await clock.advance(60)
    assert certificates.leaf_der == first
    (folder / "leaf.pem").write_bytes(leaf)
    await clock.advance(60)
    assert certificates.leaf_der != first
    running.cancel()
