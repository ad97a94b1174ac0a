"""When a node shows a client certificate, when it asks for one, and what it keeps."""

import datetime as dt
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fleet import node_certificate
from fleet.errors import Reason
from fleet.v1 import gateway_pb2
from fleet_node.link.key_audit import KeyAudit
from fleet_node.link.mutual_tls import ASK_EVERY_S, MutualTls
from tests.fakes.client_certificate import client, stranger_ca
from tests.fakes.clock import MockClock
from tests.unit.fleet_node.link.test_key_audit import Heard

DAY_S = 86_400.0


@pytest.fixture
def clock() -> MockClock:
    return MockClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path / "client.pem"


def open_at(path: Path, clock: MockClock) -> MutualTls:
    return MutualTls(("gw:7445",), path, "n-1", clock)


def asked(mutual_tls: MutualTls, *, certified: bool = False) -> gateway_pb2.CertificateRequest:
    request = mutual_tls.request(certified=certified)
    assert request is not None
    return request


def issued(
    request: gateway_pb2.CertificateRequest, clock: MockClock, node_id: str = "n-1"
) -> gateway_pb2.NodeCertificate:
    now = dt.datetime.fromtimestamp(clock.now_ms() / 1000, dt.UTC)
    certificate = node_certificate.issue(stranger_ca(clock.now_ms()), node_id, request.public_key, now)
    return gateway_pb2.NodeCertificate(certificate=certificate)


def certified(path: Path, clock: MockClock) -> MutualTls:
    mutual_tls = open_at(path, clock)
    assert mutual_tls.take(issued(asked(mutual_tls), clock))
    return mutual_tls


def test_the_first_one_is_asked_for_without_mtls_and_rests_private(path: Path, clock: MockClock) -> None:
    mutual_tls = open_at(path, clock)
    assert mutual_tls.choose() is None
    assert mutual_tls.take(issued(asked(mutual_tls), clock))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    chosen = mutual_tls.choose()
    assert chosen is not None
    again = open_at(path, clock).choose()
    assert again is not None
    assert again.certificate_pem + again.key_pem == path.read_bytes() == chosen.certificate_pem + chosen.key_pem


async def test_it_is_renewed_when_two_thirds_of_its_life_are_over_with_a_fresh_key(
    path: Path, clock: MockClock
) -> None:
    mutual_tls = certified(path, clock)
    await clock.advance(19 * DAY_S)
    assert mutual_tls.request(certified=True) is None
    before = path.read_bytes()
    await clock.advance(1.1 * DAY_S)
    assert mutual_tls.take(issued(asked(mutual_tls, certified=True), clock))
    assert path.read_bytes().partition(b"-----BEGIN PRIVATE")[2] != before.partition(b"-----BEGIN PRIVATE")[2]
    assert mutual_tls.request(certified=True) is None


async def test_it_asks_seldom(path: Path, clock: MockClock) -> None:
    mutual_tls = open_at(path, clock)
    asked(mutual_tls)
    await clock.advance(ASK_EVERY_S - 1)
    assert mutual_tls.request(certified=False) is None
    await clock.advance(1)
    asked(mutual_tls)


async def test_one_that_has_ended_is_not_shown(path: Path, clock: MockClock) -> None:
    certified(path, clock)
    await clock.advance(30 * DAY_S)
    assert open_at(path, clock).choose() is None


@pytest.mark.parametrize("case", ["refused", "unasked", "another node", "another key", "rubbish"])
def test_what_is_not_the_answer_is_not_kept(path: Path, clock: MockClock, case: str) -> None:
    mutual_tls = open_at(path, clock)
    answer = gateway_pb2.NodeCertificate(reason="NOT_FOUND", detail="there is no mTLS listener")
    if case == "unasked":
        answer = issued(asked(open_at(path, clock)), clock)
    else:
        request = asked(mutual_tls)
        if case == "another node":
            answer = issued(request, clock, "n-2")
        elif case == "another key":
            answer = issued(asked(open_at(path, clock)), clock)
        elif case == "rubbish":
            answer = gateway_pb2.NodeCertificate(certificate=b"rubbish")
    assert not mutual_tls.take(answer)
    assert not path.exists()
    assert mutual_tls.choose() is None


@pytest.mark.parametrize("case", ["rubbish", "another node", "another key", "no key", "open to others"])
def test_a_file_that_is_no_good_is_as_good_as_lost(path: Path, clock: MockClock, case: str) -> None:
    ca = stranger_ca(clock.now_ms())
    one, other = (client(ca, "n-1", clock.now_ms()) for _ in range(2))
    foreign = client(ca, "n-2", clock.now_ms())
    path.write_bytes(
        {
            "rubbish": b"rubbish",
            "another node": foreign.certificate_pem + foreign.private_key_pem,
            "another key": one.certificate_pem + other.private_key_pem,
            "no key": one.certificate_pem,
            "open to others": one.certificate_pem + one.private_key_pem,
        }[case]
    )
    path.chmod(0o644 if case == "open to others" else 0o600)
    mutual_tls = open_at(path, clock)
    assert mutual_tls.choose() is None
    asked(mutual_tls)


def test_a_listener_that_keeps_refusing_is_given_up_for_one_attempt_in_three(path: Path, clock: MockClock) -> None:
    mutual_tls = certified(path, clock)
    shown = []
    for _ in range(6):
        shown.append(mutual_tls.choose() is not None)
        mutual_tls.note_failure(Reason.UNAVAILABLE)
    assert shown == [True, True, False] * 2


def test_a_certificate_that_the_server_refuses_by_name_is_given_up_at_once(path: Path, clock: MockClock) -> None:
    mutual_tls = certified(path, clock)
    assert mutual_tls.choose() is not None
    mutual_tls.note_failure(Reason.CLIENT_CERTIFICATE)
    assert mutual_tls.choose() is None


@pytest.mark.parametrize("reason", [Reason.REVOKED, Reason.SUSPENDED, Reason.OVERLOADED, Reason.DRAINING])
def test_a_refusal_of_another_kind_changes_nothing(path: Path, clock: MockClock, reason: Reason) -> None:
    mutual_tls = certified(path, clock)
    for _ in range(5):
        assert mutual_tls.choose() is not None
        mutual_tls.note_failure(reason)


def test_a_stream_over_mtls_forgets_failures(path: Path, clock: MockClock) -> None:
    mutual_tls = certified(path, clock)
    for _ in range(3):
        assert mutual_tls.choose() is not None
        mutual_tls.note_failure(Reason.UNAVAILABLE)
        assert mutual_tls.choose() is not None
        mutual_tls.note_stream(certified=True)


def test_what_is_kept_and_what_is_not_stands_in_the_audit(path: Path, clock: MockClock) -> None:
    heard, audit = Heard(), KeyAudit(clock)
    audit.audited_by(heard)

    def answer(answer_of: Callable[[gateway_pb2.CertificateRequest], gateway_pb2.NodeCertificate]) -> None:
        mutual_tls = MutualTls(("gw:7445",), path, "n-1", clock, audit)
        mutual_tls.take(answer_of(asked(mutual_tls)))

    answer(lambda request: issued(request, clock))
    answer(lambda request: issued(request, clock, "n-2"))
    answer(lambda _: gateway_pb2.NodeCertificate(reason="OVERLOADED"))
    path.unlink()
    path.mkdir()
    answer(lambda request: issued(request, clock))
    told = [(kind.value, row["subject"], row.get("reason", "")) for kind, row in heard.rows]
    assert told == [
        ("credential.stored", "certificate", ""),
        ("credential.refused", "certificate", "NOT_OURS"),
        ("credential.refused", "certificate", "OVERLOADED"),
        ("credential.refused", "certificate", "DISK"),
    ]
