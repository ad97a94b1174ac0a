"""The handshake, over both databases, with real keys, and all that must not get through."""

import asyncio
import dataclasses
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fleet.errors import Reason
from fleet.identity import NodeKeys
from fleet.v1 import session_pb2
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.sessions.world import ADDRESS, Node, World, refused


async def test_a_node_shakes_hands_and_claims_its_stream(world: World) -> None:
    node = await world.member()
    token, frame_keys = await node.handshake()
    hello = node.hello(token, takeover_of="old")
    claim = await node.claim(token, hello)
    assert claim.node.node_id == node.node_id
    assert claim.epoch == 1
    assert claim.frame_keys == frame_keys
    assert claim.binding == hashlib.sha256(hello.proof.statement).digest()
    assert claim.takeover_of == "old"
    record = await world.node(node.node_id)
    assert (record.online, record.stream_id, record.replica_id) == (True, "s1", "r1")
    assert record.version == "1.0"
    assert "stream.opened" in await world.audited()


async def test_nothing_about_secrets_prints(world: World) -> None:
    node = await world.member()
    claim = await node.connect()
    assert claim.frame_keys.node_to_server.hex() not in repr(claim)
    assert repr(claim.frame_keys.node_to_server) not in repr(claim)


async def test_the_database_holds_neither_token_nor_frame_keys_nor_api_key(world: World) -> None:
    node = await world.member()
    token, frame_keys = await node.handshake()
    rows = await world.database.read(
        lambda conn: [
            tuple(row)
            for table in ("sessions", "api_keys", "enrollments")
            for row in conn.exec_driver_sql(f"SELECT * FROM {table}")
        ]
    )
    text = repr(rows)
    for secret in (token, frame_keys.pack(), frame_keys.node_to_server, node.api_key.encode()):
        assert repr(secret)[2:-1] not in text
    assert node.api_key not in text


async def test_each_stream_takes_the_next_epoch(world: World) -> None:
    node = await world.member()
    assert [(await node.connect(stream_id=f"s{number}")).epoch for number in (1, 2, 3)] == [1, 2, 3]


async def test_garbage_for_an_api_key_costs_no_query(world: World) -> None:
    queries = world.count_reads()
    node = Node(world, node_id="nd_x")
    for text in ("", "garbage", "fak1.", "fak1." + "A" * 64, "fak1.ä", "fak1." + "A" * 5000):
        assert await refused(node.begin(api_key=text)) is Reason.UNKNOWN_CREDENTIAL
    assert queries == []


async def test_begin_reads_no_table(world: World) -> None:
    node = await world.member()

    async def forbidden(_: object) -> object:
        raise AssertionError("BeginHandshake must stay out of the database")

    world.database.read = forbidden  # type: ignore[method-assign,assignment]
    world.database.write = forbidden  # type: ignore[method-assign,assignment]
    assert len(await node.begin()) == 64


async def test_begin_hands_out_bundles_that_the_node_lacks(world: World) -> None:
    node = await world.member()
    fields = {"api_key": node.api_key, "node_id": node.node_id, "protocol_version": 1}
    old = await world.sessions.begin(session_pb2.BeginHandshakeRequest(**fields), ADDRESS)
    assert [bundle.statement for bundle in old.bundle_chain] == [world.trust.bundle.signed.statement]
    held = session_pb2.BundleVersion(generation=1, number=world.trust.bundle.number)
    new = await world.sessions.begin(session_pb2.BeginHandshakeRequest(**fields, bundle_version=held), ADDRESS)
    assert not new.bundle_chain


async def test_too_old_a_protocol_is_told_so(world: World) -> None:
    node = await world.member()
    assert await refused(node.begin(protocol_version=0)) is Reason.PROTOCOL_TOO_OLD
    proof = node.prove(await node.begin(), X25519PrivateKey.generate(), protocol_version=0)
    assert await refused(node.complete(proof)) is Reason.PROTOCOL_TOO_OLD


async def test_wrong_identity_key(world: World) -> None:
    node = await world.member()
    thief = dataclasses.replace(node, keys=NodeKeys.generate())
    proof = thief.prove(await thief.begin(), X25519PrivateKey.generate())
    assert await refused(thief.complete(proof)) is Reason.BAD_PROOF
    await world.sessions.flush_audit()
    assert "session.refused" in await world.audited()


async def test_a_failed_answer_does_not_use_up_the_challenge(world: World) -> None:
    node = await world.member()
    challenge = await node.begin()
    thief = dataclasses.replace(node, keys=NodeKeys.generate())
    assert await refused(thief.complete(thief.prove(challenge, X25519PrivateKey.generate()))) is Reason.BAD_PROOF
    await node.complete(node.prove(challenge, X25519PrivateKey.generate()))


async def test_old_challenge(world: World, clock: MockClock) -> None:
    node = await world.member()
    proof = node.prove(await node.begin(), X25519PrivateKey.generate())
    await clock.advance(30)
    assert await refused(node.complete(proof)) is Reason.CHALLENGE_EXPIRED


@pytest.mark.parametrize("position", [0, 8, 40, 63])
async def test_a_forged_challenge(world: World, position: int) -> None:
    node = await world.member()
    challenge = bytearray(await node.begin())
    challenge[position] ^= 1
    proof = node.prove(bytes(challenge), X25519PrivateKey.generate())
    assert await refused(node.complete(proof)) is Reason.BAD_PROOF


async def test_a_challenge_of_another_node(world: World) -> None:
    first, second = await world.member("a"), await world.member("b")
    proof = second.prove(await first.begin(), X25519PrivateKey.generate())
    assert await refused(second.complete(proof)) is Reason.BAD_PROOF


async def test_a_replayed_answer_gets_no_second_session(world: World) -> None:
    node = await world.member()
    proof = node.prove(await node.begin(), X25519PrivateKey.generate())
    await node.complete(proof)
    assert await refused(node.complete(proof)) is Reason.CHALLENGE_EXPIRED
    assert await world.value("SELECT COUNT(*) FROM sessions") == 1


async def test_a_replay_to_another_replica_meets_the_first_in_the_database(world: World) -> None:
    node = await world.member()
    other = await World(world.database, world.clock, replica_id="r2").start()
    proof = node.prove(await node.begin(), X25519PrivateKey.generate())
    await node.complete(proof)
    there = dataclasses.replace(node, world=other)
    assert await refused(there.complete(proof)) is Reason.CHALLENGE_EXPIRED


async def test_two_answers_at_the_same_moment(world: World) -> None:
    node = await world.member()
    challenge = await node.begin()
    proofs = [node.prove(challenge, X25519PrivateKey.generate()) for _ in range(5)]
    answers = await asyncio.gather(*(node.complete(proof) for proof in proofs), return_exceptions=True)
    assert sum(not isinstance(answer, BaseException) for answer in answers) == 1


async def test_another_nodes_api_key(world: World) -> None:
    first, second = await world.member("a"), await world.member("b")
    proof = first.prove(await first.begin(), X25519PrivateKey.generate())
    assert await refused(first.complete(proof, api_key=second.api_key)) is Reason.UNKNOWN_CREDENTIAL
    token, _ = await first.handshake()
    assert await refused(first.claim(token, first.hello(token), api_key=second.api_key)) is Reason.UNKNOWN_CREDENTIAL


async def test_another_tls_certificate(world: World) -> None:
    node = await world.member()
    seen = hashlib.sha256(b"a terminator nobody named").digest()
    proof = node.prove(await node.begin(), X25519PrivateKey.generate(), server_leaf_sha256=seen)
    assert await refused(node.complete(proof)) is Reason.WRONG_CERTIFICATE
    world.leaves |= {seen}
    proof = node.prove(await node.begin(), X25519PrivateKey.generate(), server_leaf_sha256=seen)
    await node.complete(proof)


async def test_another_cluster(world: World) -> None:
    node = await world.member()
    proof = node.prove(await node.begin(), X25519PrivateKey.generate(), cluster_id="c-else")
    assert await refused(node.complete(proof)) is Reason.WRONG_CLUSTER


async def test_an_unusable_x25519_share(world: World) -> None:
    node = await world.member()
    for share in (b"", b"\x00" * 32, b"\x01" * 31):
        proof = node.prove(await node.begin(), X25519PrivateKey.generate(), x25519_share=share)
        assert await refused(node.complete(proof)) is Reason.BAD_PROOF
