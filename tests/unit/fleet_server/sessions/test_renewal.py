"""Sessions on live streams, sessions that ended, and rows that were written around the server."""

import asyncio

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fleet.envelope import Domain
from fleet.errors import Reason
from fleet.identity import NodeKeys
from fleet.v1 import session_pb2
from tests.fakes.client_certificate import client, stranger_ca
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.sessions.world import World, refused


async def test_a_session_is_renewed_on_its_stream(world: World, clock: MockClock) -> None:
    node = await world.member()
    claim = await node.connect()
    await clock.advance(600)
    challenge = world.sessions.reauth_challenge(node.node_id, "s1")
    statement = session_pb2.ReauthStatement(challenge=challenge, stream_id="s1").SerializeToString()
    proof = node.keys.identity.sign(Domain.REAUTH, statement)
    assert await world.sessions.reauth(claim.session, "s1", proof) == clock.now_ms() + 15 * 60 * 1000
    assert world.metrics.sessions.reauths.labels("ok").value == 1


async def test_a_renewal_that_is_not_one(world: World, clock: MockClock) -> None:
    node = await world.member()
    claim = await node.connect()

    async def attempt(challenge: bytes, stream_id: str = "s1", keys: NodeKeys = node.keys) -> Reason:
        statement = session_pb2.ReauthStatement(challenge=challenge, stream_id=stream_id).SerializeToString()
        return await refused(world.sessions.reauth(claim.session, "s1", keys.identity.sign(Domain.REAUTH, statement)))

    good = world.sessions.reauth_challenge(node.node_id, "s1")
    assert await attempt(good, keys=NodeKeys.generate()) is Reason.BAD_PROOF
    assert await attempt(good, stream_id="s2") is Reason.BAD_PROOF
    assert await attempt(world.sessions.reauth_challenge(node.node_id, "s2")) is Reason.BAD_PROOF
    assert await attempt(await node.begin()) is Reason.BAD_PROOF
    await clock.advance(61)
    assert await attempt(good) is Reason.CHALLENGE_EXPIRED
    await world.nodes.set_state("ada", [node.name], "SUSPENDED", "")
    assert await attempt(world.sessions.reauth_challenge(node.node_id, "s1")) is Reason.SUSPENDED
    assert world.metrics.sessions.reauths.labels("BAD_PROOF").value == 4
    await world.sessions.flush_audit()
    assert (await world.audited())[-1] == "session.refused"


async def test_no_session_is_renewed_after_its_certificate(world: World, clock: MockClock) -> None:
    node = await world.member()
    now_ms = clock.now_ms()
    certificate = client(stranger_ca(now_ms), node.node_id, now_ms).certificate_pem
    token, _ = await node.handshake(certificate)
    claim = await node.claim(token, node.hello(token), certificate_pem=certificate)

    async def renew() -> int:
        challenge = world.sessions.reauth_challenge(node.node_id, "s1")
        statement = session_pb2.ReauthStatement(challenge=challenge, stream_id="s1").SerializeToString()
        return await world.sessions.reauth(claim.session, "s1", node.keys.identity.sign(Domain.REAUTH, statement))

    lasts_s = (claim.session.certificate_ends_ms - now_ms) / 1000
    await clock.advance(lasts_s - 1)
    await renew()
    await clock.advance(1)
    assert await refused(renew()) is Reason.CLIENT_CERTIFICATE


async def test_sessions_that_ended_long_ago_are_deleted(world: World, clock: MockClock) -> None:
    node = await world.member()
    await node.handshake()
    await clock.advance(2 * 3600)
    cleanup = asyncio.create_task(world.sessions.run_cleanup())
    await clock.wait_sleepers(1)
    await clock.advance(60)
    while await world.value("SELECT COUNT(*) FROM sessions"):
        await asyncio.sleep(0)
    cleanup.cancel()


TAMPERINGS = [
    ("UPDATE api_keys SET node_id = ? WHERE node_id = ?", ("OTHER", "OWN"), Reason.QUARANTINED),
    ("UPDATE api_keys SET created_at_ms = 1 WHERE node_id = ?", ("OWN",), Reason.QUARANTINED),
    ("UPDATE nodes SET labels = ? WHERE node_id = ?", ('{"role":"db"}', "OWN"), Reason.QUARANTINED),
    ("UPDATE nodes SET identity_key = ? WHERE node_id = ?", ("KEY", "OWN"), Reason.BAD_PROOF),
    ("UPDATE nodes SET site = 'vault' WHERE node_id = ?", ("OWN",), Reason.QUARANTINED),
]


@pytest.mark.parametrize(("text", "fields", "reason"), TAMPERINGS)
async def test_rows_written_around_the_server_open_nothing(
    world: World, text: str, fields: tuple[str, ...], reason: Reason
) -> None:
    node, other = await world.member("a"), await world.member("b")
    meant = {"OTHER": other.node_id, "OWN": node.node_id, "KEY": NodeKeys.generate().identity.public_key}
    await world.execute(text, *(meant.get(text, text) for text in fields))
    proof = node.prove(await node.begin(), X25519PrivateKey.generate())
    assert await refused(node.complete(proof)) is reason
    await world.sessions.flush_audit()
    await world.nodes.flush()
    assert {"api_key.quarantined", "node.quarantined"} & set(await world.audited())


async def test_a_revoked_api_key_is_not_revived_by_an_update(world: World) -> None:
    node = await world.member()
    await world.nodes.set_state("ada", [node.name], "REVOKED", "")
    await world.execute("UPDATE api_keys SET revoked_at_ms = 0")
    await world.execute("UPDATE nodes SET state = 'ACTIVE'")
    proof = node.prove(await node.begin(), X25519PrivateKey.generate())
    assert await refused(node.complete(proof)) is Reason.QUARANTINED


async def test_a_session_row_moved_to_another_node_opens_nothing(world: World) -> None:
    first, second = await world.member("a"), await world.member("b")
    token, _ = await first.handshake()
    await world.execute("UPDATE sessions SET node_id = ?", second.node_id)
    assert await refused(second.claim(token, second.hello(token))) is Reason.SESSION_EXPIRED
