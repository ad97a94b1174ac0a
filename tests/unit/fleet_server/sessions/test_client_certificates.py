"""What a client certificate opens, and the binding of a session to it."""

import os

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fleet import node_certificate
from fleet.errors import Reason, Refusal
from fleet_server.audit.kinds import AuditKind
from fleet_server.sessions.client_certificates import CERTIFICATES_PER_DAY, check_binding, client_certificate
from fleet_server.sessions.store import SessionRow
from tests.fakes.client_certificate import client, stranger_ca
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.sessions.world import World, refused

DAY_MS = 86_400_000
NOW_MS = 1_900_000_000_000
CA = stranger_ca(NOW_MS)
ONE, OTHER = client(CA, "n-1", NOW_MS).certificate_pem, client(CA, "n-1", NOW_MS).certificate_pem
FOREIGN = client(CA, "n-2", NOW_MS).certificate_pem
ENDED = client(CA, "n-1", NOW_MS - 30 * DAY_MS).certificate_pem
FUTURE = client(CA, "n-1", NOW_MS + 2 * DAY_MS).certificate_pem


def sha256(pem: bytes) -> bytes:
    return node_certificate.read(pem).sha256


def test_without_one_nothing_is_bound_and_with_one_its_hash_is() -> None:
    assert client_certificate(b"", "n-1", NOW_MS) == b""
    assert client_certificate(ONE, "n-1", NOW_MS) == sha256(ONE)
    assert client_certificate(ONE, "n-1", NOW_MS + 30 * DAY_MS - 1) == sha256(ONE)


def test_a_replica_whose_clock_is_hours_behind_takes_what_another_has_just_issued() -> None:
    assert client_certificate(ONE, "n-1", NOW_MS - 20 * 3_600_000) == sha256(ONE)


@pytest.mark.parametrize(
    ("shown", "sentence"),
    [
        (FOREIGN, "another node's"),
        (ENDED, "has ended"),
        (FUTURE, "has not begun"),
        (CA.certificate_pem, "another node's"),
        (b"no certificate", "no X.509"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no X.509"),
    ],
    ids=["foreign", "ended", "future", "authority", "text", "rubbish"],
)
def test_what_is_no_good_certificate_of_the_node_is_refused(shown: bytes, sentence: str) -> None:
    with pytest.raises(Refusal, match=sentence) as refusal:
        client_certificate(shown, "n-1", NOW_MS)
    assert refusal.value.reason is Reason.CLIENT_CERTIFICATE


@pytest.mark.parametrize(
    ("bound", "shown", "sentence"),
    [
        (b"", ONE, "without a client certificate"),
        (sha256(ONE), b"", "bound to a client certificate"),
        (sha256(ONE), OTHER, "another client certificate"),
        (sha256(ONE), FOREIGN, "another node's"),
        (sha256(ENDED), ENDED, "has ended"),
    ],
    ids=["unbound", "none", "other", "foreign", "ended"],
)
def test_a_session_over_anything_else_is_refused(bound: bytes, shown: bytes, sentence: str) -> None:
    with pytest.raises(Refusal, match=sentence) as refusal:
        check_binding(SessionRow(b"t", "n-1", b"", 0, 0, bound), shown, NOW_MS)
    assert refusal.value.reason is Reason.CLIENT_CERTIFICATE


@pytest.mark.parametrize("shown", [b"", ONE], ids=["none", "one"])
def test_a_session_over_what_it_was_made_over_is_good(shown: bytes) -> None:
    bound = client_certificate(shown, "n-1", NOW_MS)
    check_binding(SessionRow(b"t", "n-1", b"", 0, 0, bound), shown, NOW_MS)


async def test_another_nodes_certificate_gets_no_session(world: World) -> None:
    node = await world.member()
    foreign = client(CA, "somebody-else", world.clock.now_ms()).certificate_pem
    with pytest.raises(Refusal) as refusal:
        await node.handshake(foreign)
    assert refusal.value.reason is Reason.CLIENT_CERTIFICATE


async def test_a_session_opens_over_its_certificate_alone(world: World) -> None:
    node = await world.member()
    one, other = (client(CA, node.node_id, world.clock.now_ms()).certificate_pem for _ in range(2))
    token, _ = await node.handshake(one)
    for shown in (other, b""):
        assert await refused(node.claim(token, node.hello(token), certificate_pem=shown)) is Reason.CLIENT_CERTIFICATE
    assert (await node.claim(token, node.hello(token), certificate_pem=one)).epoch == 1


async def test_a_plain_session_opens_nothing_over_a_certificate(world: World) -> None:
    node = await world.member()
    token, _ = await node.handshake()
    shown = client(CA, node.node_id, world.clock.now_ms()).certificate_pem
    assert await refused(node.claim(token, node.hello(token), certificate_pem=shown)) is Reason.CLIENT_CERTIFICATE


async def test_a_binding_changed_in_the_database_opens_nothing(world: World) -> None:
    node = await world.member()
    one, other = (client(CA, node.node_id, world.clock.now_ms()).certificate_pem for _ in range(2))
    token, _ = await node.handshake(one)
    for shown, written in ((other, sha256(other)), (b"", b"")):
        await world.execute("UPDATE sessions SET client_certificate_sha256 = ?", written)
        assert await refused(node.claim(token, node.hello(token), certificate_pem=shown)) is Reason.SESSION_EXPIRED


async def test_a_certificate_is_issued_for_the_node_that_asks_and_audited(world: World) -> None:
    ca = world.sessions.certificates.offer()
    node_id = (await world.member()).node_id
    key = ec.generate_private_key(ec.SECP256R1())
    answer = await world.sessions.certificates.issue(node_id, 0, node_certificate.public_key_bytes(key))
    said = node_certificate.read(answer.certificate)
    assert (said.node_id, said.public_key) == (node_id, node_certificate.public_key_bytes(key))
    assert said.ends_ms - world.clock.now_ms() == 30 * DAY_MS
    assert world.sessions.certificates.offer() == ca
    assert AuditKind.NODE_CERTIFICATE_ISSUED in await world.audited()


async def test_a_node_gets_so_many_certificates_a_day_however_often_it_reconnects(
    world: World, clock: MockClock
) -> None:
    world.sessions.certificates.offer()
    greedy, other = await world.member("greedy"), await world.member("other")
    key = node_certificate.public_key_bytes(ec.generate_private_key(ec.SECP256R1()))
    issue = world.sessions.certificates.issue
    for _ in range(CERTIFICATES_PER_DAY):
        assert (await issue(greedy.node_id, 0, key)).certificate
        await clock.advance(60)
    for _ in range(3):
        refusal = await issue(greedy.node_id, 0, key)
        assert (refusal.certificate, refusal.reason) == (b"", "OVERLOADED")
        assert "minutes" in refusal.detail
    kinds = await world.audited()
    assert kinds.count("node_certificate.issued") == CERTIFICATES_PER_DAY
    assert kinds.count("node.rotation_refused") == 1
    assert (await issue(other.node_id, 0, key)).certificate
    await clock.advance(24 * 3600)
    assert (await issue(greedy.node_id, 0, key)).certificate


async def test_without_a_listener_none_is_issued(world: World) -> None:
    answer = await world.sessions.certificates.issue("n-1", 0, b"")
    assert (answer.certificate, answer.reason) == (b"", "NOT_FOUND")
    assert "mtls_listen" in answer.detail


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"no key",
        os.urandom(1024),
        ec.generate_private_key(ec.SECP384R1())
        .public_key()
        .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    ],
    ids=["none", "bytes", "long", "P-384"],
)
async def test_what_is_no_key_gets_no_certificate(world: World, key: bytes) -> None:
    world.sessions.certificates.offer()
    answer = await world.sessions.certificates.issue("n-1", 0, key)
    assert (answer.certificate, answer.reason) == (b"", "MALFORMED")
    assert AuditKind.NODE_CERTIFICATE_ISSUED not in await world.audited()
