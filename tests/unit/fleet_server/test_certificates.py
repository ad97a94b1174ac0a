import asyncio
import datetime as dt
import ssl
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from fleet import tls, tls_certificates
from fleet.tls import certificate_sha256
from fleet.tls_certificates import CA_DAYS, LEAF_DAYS, CertifiedKey
from fleet_server import certificates as served_certificates
from fleet_server.certificates import CertificateError, ServedTls, ServerCertificates, open_certificates
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
def now(clock: MockClock) -> dt.datetime:
    return dt.datetime.fromtimestamp(clock.now_ms() / 1000, dt.UTC)


@pytest.fixture
def ca(now: dt.datetime) -> CertifiedKey:
    return tls_certificates.make_ca("own CA", now)


@pytest.fixture
def certificates(folder: Path, clock: MockClock, ca: CertifiedKey, now: dt.datetime) -> ServerCertificates:
    opened = open_certificates(folder, HOSTS, clock)
    opened.take(served(ca, now))
    return opened


def served(ca: CertifiedKey, now: dt.datetime, active: CertifiedKey | None = None) -> ServedTls:
    active_der = (active or ca).certificate_der
    published = tuple(dict.fromkeys([active_der, ca.certificate_der]))
    return ServedTls(tls_certificates.make_leaf(ca, HOSTS, now), ca.certificate_der, active_der, published)


def put(folder: Path, pair: CertifiedKey, mode: int = 0o600) -> None:
    path = folder / "outside.pem"
    path.unlink(missing_ok=True)
    path.write_bytes(pair.certificate_pem + pair.private_key_pem)
    path.chmod(mode)


def test_the_folder_is_private_and_holds_public_certificates_alone(
    certificates: ServerCertificates, folder: Path
) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in folder.iterdir()] == ["ca.crt"]
    assert b"PRIVATE" not in (folder / "ca.crt").read_bytes()
    assert tls_certificates.pem_to_der((folder / "ca.crt").read_bytes()) == certificates.ca_der


def test_a_folder_that_is_open_to_others_is_refused_with_what_to_do(folder: Path, clock: MockClock) -> None:
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(CertificateError, match="chmod 700"):
        open_certificates(folder, HOSTS, clock)


def test_the_ca_file_lists_every_ca_that_a_caller_may_meet_the_active_one_first(
    certificates: ServerCertificates, folder: Path, ca: CertifiedKey, now: dt.datetime
) -> None:
    outside = tls_certificates.make_ca("outside", now)
    certificates.take(served(ca, now, outside))
    assert (folder / "ca.crt").read_bytes() == b"".join(
        tls.der_to_pem(der) for der in (outside.certificate_der, ca.certificate_der)
    )


def test_what_was_shown_before_stays_accepted_while_it_lasts(
    certificates: ServerCertificates, clock: MockClock, ca: CertifiedKey
) -> None:
    first = certificates.leaf_der
    clock.step_wall(LEAF_DAYS * DAY_S * 2 / 3)
    later = dt.datetime.fromtimestamp(clock.now_ms() / 1000, dt.UTC)
    certificates.take(served(ca, later))
    second = certificates.leaf_der
    assert certificates.accepted_leaves() == {certificate_sha256(first), certificate_sha256(second)}
    clock.step_wall(LEAF_DAYS * DAY_S / 3)
    assert certificates.accepted_leaves() == {certificate_sha256(second)}


@pytest.mark.parametrize("still", [True, False])
def test_what_was_shown_before_is_accepted_no_longer_than_its_ca(
    certificates: ServerCertificates, ca: CertifiedKey, now: dt.datetime, still: bool
) -> None:
    """Whoever has the key of a revoked CA may have that of its leaf, too, and would end TLS in between with it."""
    first = certificates.leaf_der
    another = tls_certificates.make_ca("another", now)
    published = (another.certificate_der, *([ca.certificate_der] if still else []))
    certificates.take(replace(served(another, now), published_der=published))
    accepted = {certificates.leaf_der, *([first] if still else [])}
    assert certificates.accepted_leaves() == {certificate_sha256(der) for der in accepted}


def test_whoever_reads_the_ca_file_while_it_is_replaced_finds_one_whole(
    certificates: ServerCertificates, folder: Path, ca: CertifiedKey, now: dt.datetime
) -> None:
    with (folder / "ca.crt").open("rb") as reading:
        certificates.take(served(ca, now, tls_certificates.make_ca("outside", now)))
        assert reading.read() == ca.certificate_pem
    assert [path.name for path in folder.iterdir()] == ["ca.crt"]


async def test_a_live_server_shows_the_new_certificate_and_open_connections_stay(
    certificates: ServerCertificates, ca: CertifiedKey, now: dt.datetime
) -> None:
    async def echo(request: bytes, _context: object) -> bytes:
        return request

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("t.T", {"Echo": handler})])
    port = server.add_secure_port("127.0.0.1:0", certificates.credentials())
    await server.start()
    endpoint = f"127.0.0.1:{port}"
    another = tls_certificates.make_ca("another", now)
    try:
        first = await tls.fetch_leaf(endpoint, [ca.certificate_der], 10)
        assert first == certificates.leaf_der
        pinned = grpc.ssl_channel_credentials(tls.der_to_pem(first))
        async with grpc.aio.secure_channel(endpoint, pinned) as channel:
            call = channel.unary_unary("/t.T/Echo")
            assert await call(b"before") == b"before"
            certificates.take(served(another, now))
            assert await call(b"after") == b"after"
        second = await tls.fetch_leaf(endpoint, [ca.certificate_der, another.certificate_der], 10)
        assert second == certificates.leaf_der != first
        with pytest.raises(ssl.SSLCertVerificationError):
            await tls.fetch_leaf(endpoint, [ca.certificate_der], 10)
    finally:
        await asyncio.shield(server.stop(None))


# -- a certificate from outside ---------------------------------------------------------------------------------------
def test_a_certificate_from_outside_is_shown_while_its_ca_is_active_and_when_it_comes_later(
    certificates: ServerCertificates, folder: Path, ca: CertifiedKey, now: dt.datetime
) -> None:
    outside = tls_certificates.make_ca("outside", now)
    theirs = tls_certificates.make_leaf(outside, HOSTS, now)
    put(folder, theirs)
    own = certificates.leaf_der
    certificates.look()
    assert certificates.leaf_der == own, "its CA is not ACTIVE"
    assert certificates.can_show(outside.certificate_der)

    certificates.take(served(ca, now, outside))
    assert certificates.leaf_der == theirs.certificate_der
    renewed = tls_certificates.make_leaf(outside, HOSTS, now)
    put(folder, renewed)
    certificates.look()
    assert certificates.leaf_der == renewed.certificate_der

    certificates.take(served(ca, now))
    assert certificates.leaf_der not in (theirs.certificate_der, renewed.certificate_der)


@pytest.mark.parametrize("fault", ["half", "empty", "open", "of another CA"])
def test_while_the_file_is_not_whole_what_was_shown_before_is_shown_on_until_it_ends(
    certificates: ServerCertificates, folder: Path, ca: CertifiedKey, now: dt.datetime, clock: MockClock, fault: str
) -> None:
    """The own CA may be retired: nodes would believe nothing else."""
    outside = tls_certificates.make_ca("outside", now)
    theirs, renewed = (tls_certificates.make_leaf(outside, HOSTS, now, days=days) for days in (2, 90))
    put(folder, theirs)
    certificates.take(served(ca, now, outside))
    faulty = {
        "half": CertifiedKey(renewed.certificate_pem, renewed.private_key_pem[:50]),
        "empty": CertifiedKey(b"", b""),
        "open": renewed,
        "of another CA": tls_certificates.make_leaf(ca, HOSTS, now),
    }[fault]
    put(folder, faulty, mode=0o644 if fault == "open" else 0o600)
    with capture_logs() as logs:
        certificates.look()
        certificates.take(served(ca, now, outside))
    assert certificates.leaf_der == theirs.certificate_der
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["certificate_unfit"]
    clock.step_wall(3 * DAY_S)
    certificates.look()
    assert tls_certificates.is_issued_by(tls.der_to_pem(certificates.leaf_der), ca.certificate_pem)

    put(folder, renewed)
    certificates.look()
    assert certificates.leaf_der == renewed.certificate_der
    (folder / "outside.pem").unlink()
    certificates.look()
    assert tls_certificates.is_issued_by(tls.der_to_pem(certificates.leaf_der), ca.certificate_pem), "taken away"


def test_a_file_that_is_replaced_while_it_is_looked_at_is_looked_at_again(
    certificates: ServerCertificates,
    folder: Path,
    ca: CertifiedKey,
    now: dt.datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outside = tls_certificates.make_ca("outside", now)
    theirs = tls_certificates.make_leaf(outside, HOSTS, now)
    put(folder, CertifiedKey(b"", b""))
    shake_hands = served_certificates._shake_hands

    def replaced_before(path: Path, ca_der: bytes, host: str) -> None:
        put(folder, theirs)
        shake_hands(path, ca_der, host)

    with monkeypatch.context() as patched:
        patched.setattr(served_certificates, "_shake_hands", replaced_before)
        certificates.take(served(ca, now, outside))
    assert certificates.leaf_der != theirs.certificate_der
    certificates.look()
    assert certificates.leaf_der == theirs.certificate_der


def test_the_file_is_tried_again_once_it_was_changed_or_a_minute_is_over(
    certificates: ServerCertificates, folder: Path, now: dt.datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each heartbeat asks."""
    outside = tls_certificates.make_ca("outside", now)
    put(folder, tls_certificates.make_leaf(outside, HOSTS, now))
    tried: list[str] = []
    monkeypatch.setattr(served_certificates, "_shake_hands", lambda path, ca_der, host: tried.append(host))
    for _ in range(3):
        assert certificates.can_show(outside.certificate_der)
    assert tried == [*HOSTS]
    put(folder, tls_certificates.make_leaf(outside, HOSTS, now))
    assert certificates.can_show(outside.certificate_der)
    certificates.look()
    assert certificates.can_show(outside.certificate_der)
    assert tried == [*HOSTS] * 3
    (folder / "outside.pem").unlink()
    assert not certificates.can_show(outside.certificate_der)


def test_the_log_tells_once_a_day_what_a_person_has_to_replace(
    certificates: ServerCertificates, folder: Path, ca: CertifiedKey, now: dt.datetime, clock: MockClock
) -> None:
    outside = tls_certificates.make_ca("outside", now)
    put(folder, tls_certificates.make_leaf(outside, HOSTS, now, days=31))
    certificates.take(served(ca, now, outside))

    def told() -> list[str]:
        with capture_logs() as logs:
            certificates.look()
            certificates.look()
        return [line["event"] for line in logs]

    assert told() == []
    clock.step_wall(2 * DAY_S)
    assert told() == ["certificate_ends_soon"]
    assert told() == []
    clock.step_wall(DAY_S)
    assert told() == ["certificate_ends_soon"]


def test_the_log_tells_of_the_own_ca_behind_one_from_outside(
    certificates: ServerCertificates, now: dt.datetime, clock: MockClock
) -> None:
    old = tls_certificates.make_ca("own CA", now - dt.timedelta(days=CA_DAYS - 10))
    outside = tls_certificates.make_ca("outside", now)
    certificates.take(replace(served(old, now, outside), published_der=(outside.certificate_der,)))
    with capture_logs() as logs:
        certificates.look()
    told = {line["sha256"] for line in logs if line["event"] == "certificate_ends_soon"}
    assert certificate_sha256(old.certificate_der).hex() in told


@pytest.mark.parametrize("fault", ["none", "open", "damaged", "of another CA", "for another host", "ended", "no key"])
def test_what_would_prove_nothing_to_nodes_is_not_shown(
    certificates: ServerCertificates, folder: Path, ca: CertifiedKey, now: dt.datetime, fault: str
) -> None:
    outside = tls_certificates.make_ca("outside", now)
    good = tls_certificates.make_leaf(outside, HOSTS, now)
    if fault == "open":
        put(folder, good, mode=0o644)
    elif fault == "damaged":
        put(folder, CertifiedKey(good.certificate_pem[:100], good.private_key_pem))
    elif fault == "of another CA":
        put(folder, tls_certificates.make_leaf(tls_certificates.make_ca("outside", now), HOSTS, now))
    elif fault == "for another host":
        put(folder, tls_certificates.make_leaf(outside, ["localhost"], now))
    elif fault == "ended":
        put(folder, tls_certificates.make_leaf(outside, HOSTS, now - dt.timedelta(days=LEAF_DAYS + 1)))
    elif fault == "no key":
        put(folder, CertifiedKey(good.certificate_pem, b""))
    certificates.take(served(ca, now, outside))
    assert not certificates.can_show(outside.certificate_der)
    assert tls_certificates.is_issued_by(tls.der_to_pem(certificates.leaf_der), ca.certificate_pem)
