"""The handshake and the claim, over both databases, with real keys, and all that must not get through."""

import asyncio
import dataclasses
import hashlib
import json
from contextlib import ExitStack

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fleet.envelope import Domain
from fleet.errors import Reason, Refusal
from fleet.identity import NodeKeys
from fleet.v1 import gateway_pb2, session_pb2
from fleet_server.audit.service import AuditCursor
from fleet_server.sessions.service import MAX_WAITING_HELLOS
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.sessions.world import ADDRESS, Node, World, hello_body


async def refused(work: object) -> Reason:
    with pytest.raises(Refusal) as caught:
        await work  # type: ignore[misc]
    assert caught.value.detail
    return caught.value.reason


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


async def test_the_audit_tells_a_restart_from_a_reconnect(world: World) -> None:
    node = await world.member()
    for boot_id in (b"a" * 16, b"a" * 16, b"b" * 16):
        await node.connect(hello_body(boot_id=boot_id))
    rows = (await world.audit.page(AuditCursor())).rows
    boots = [json.loads(row.detail)["boot"] for row in rows if row.kind == "stream.opened"]
    assert boots == [(b"a" * 16).hex()] * 2 + [(b"b" * 16).hex()]


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
    queries = 0
    original = world.database.read

    async def counting(query: object) -> object:
        nonlocal queries
        queries += 1
        return await original(query)  # type: ignore[arg-type]

    world.database.read = counting  # type: ignore[method-assign,assignment]
    node = Node(world, node_id="nd_x")
    for text in ("", "garbage", "fak1.", "fak1." + "A" * 64, "fak1.ä", "fak1." + "A" * 5000):
        assert await refused(node.begin(api_key=text)) is Reason.UNKNOWN_CREDENTIAL
    assert queries == 0


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


@pytest.mark.parametrize(("state", "reason"), [("SUSPENDED", Reason.SUSPENDED), ("REVOKED", Reason.REVOKED)])
async def test_the_state_of_the_node_decides(world: World, state: str, reason: Reason) -> None:
    node = await world.member()
    token, _ = await node.handshake()
    await world.nodes.set_state("ada", [node.name], state, "maintenance")
    proof = node.prove(await node.begin(), X25519PrivateKey.generate())
    assert await refused(node.complete(proof)) is reason
    assert await refused(node.claim(token, node.hello(token))) is reason


@pytest.mark.parametrize("overtaken_by", ["suspend", "revoke_key"])
async def test_a_decision_overtakes_a_claim_between_its_checks_and_its_write(world: World, overtaken_by: str) -> None:
    node = await world.member()
    token, _ = await node.handshake()
    write = world.database.write

    async def decide_first(work: object) -> object:
        world.database.write = write  # type: ignore[method-assign]
        if overtaken_by == "suspend":
            await world.nodes.set_state("ada", [node.name], "SUSPENDED", "")
        else:
            await write(lambda tx: world.sessions.revoke_api_keys(tx, node.node_id))
        return await write(work)  # type: ignore[arg-type]

    world.database.write = decide_first  # type: ignore[method-assign,assignment]
    assert await refused(node.claim(token, node.hello(token))) is Reason.UNAVAILABLE
    assert (await world.node(node.node_id)).stream_epoch == 0


async def test_a_stolen_token_opens_one_stream_once(world: World) -> None:
    node = await world.member()
    token, _ = await node.handshake()
    hello = node.hello(token)
    claims = await asyncio.gather(*(node.claim(token, hello) for _ in range(4)), return_exceptions=True)
    won = [claim for claim in claims if not isinstance(claim, BaseException)]
    assert len(won) == 1
    assert {claim.reason for claim in claims if isinstance(claim, Refusal)} == {Reason.TOKEN_USED}
    assert (await world.node(node.node_id)).stream_epoch == 1


async def test_a_stolen_token_and_api_key_open_nothing_without_the_identity_key(world: World) -> None:
    node = await world.member()
    token, _ = await node.handshake()
    thief = dataclasses.replace(node, keys=NodeKeys.generate())
    assert await refused(thief.claim(token, thief.hello(token))) is Reason.BAD_PROOF
    assert (await node.claim(token, node.hello(token))).epoch == 1


async def test_another_nodes_session(world: World) -> None:
    first, second = await world.member("a"), await world.member("b")
    token, _ = await first.handshake()
    assert await refused(second.claim(token, second.hello(token))) is Reason.BAD_PROOF


async def test_an_expired_session(world: World, clock: MockClock) -> None:
    node = await world.member()
    token, _ = await node.handshake()
    await clock.advance(15 * 60)
    assert await refused(node.claim(token, node.hello(token))) is Reason.SESSION_EXPIRED
    assert await refused(node.claim(b"x" * 32, node.hello(b"x" * 32))) is Reason.SESSION_EXPIRED


async def test_a_hello_that_was_exchanged_behind_its_proof(world: World) -> None:
    node = await world.member()
    token, _ = await node.handshake()
    hello = node.hello(token)
    hello.body = hello_body(last_accepted_seq=7).SerializeToString()
    assert await refused(node.claim(token, hello)) is Reason.BAD_PROOF


async def test_a_proof_of_another_domain(world: World) -> None:
    node = await world.member()
    token, _ = await node.handshake()
    hello = node.hello(token)
    hello.proof.CopyFrom(node.keys.identity.sign(Domain.REAUTH, hello.proof.statement))
    assert await refused(node.claim(token, hello)) is Reason.BAD_PROOF


async def test_a_hello_raises_the_seq_counter_after_a_restore(world: World) -> None:
    node = await world.member()
    await node.connect(hello_body(last_accepted_seq=41))
    record = await world.node(node.node_id)
    assert (record.last_seq, record.last_accepted_seq) == (41, 41)
    await node.connect(hello_body(last_accepted_seq=40))
    assert (await world.node(node.node_id)).last_seq == 41


def bad_bodies() -> list[gateway_pb2.HelloBody]:
    def offering(*actions: gateway_pb2.ActionDescriptor) -> gateway_pb2.HelloBody:
        return hello_body(drivers=[gateway_pb2.DriverDescriptor(name="d", version="1", actions=actions)])

    def action(name: str = "d.a", schema: bytes = b"") -> gateway_pb2.ActionDescriptor:
        return gateway_pb2.ActionDescriptor(action=name, arguments_schema=schema)

    return [
        hello_body(software_version="v" * 65),
        hello_body(labels={"k" * 64: "v"}),
        hello_body(labels={"k": "line\nbreak"}),
        hello_body(labels={f"k{number}": "" for number in range(65)}),
        hello_body(max_in_flight=0),
        hello_body(max_in_flight=100_000),
        hello_body(boot_id=bytes(17)),
        hello_body(last_accepted_seq=2**63),
        offering(action(), action()),
        offering(action("no dot")),
        offering(action(schema=b"not json")),
        offering(action(schema=b'{"properties":{"a":{"pattern":"(a+)+$"}}}')),
        offering(action(schema=b'{"$ref":"http://example.com/"}')),
        offering(*(action(f"d.a{n}", b'{"title":"' + b"x" * 30_000 + b'"}') for n in range(3))),
    ]


@pytest.mark.parametrize("number", range(len(bad_bodies())))
async def test_a_hello_that_says_too_much_is_refused_and_may_be_corrected(world: World, number: int) -> None:
    node = await world.member()
    token, _ = await node.handshake()
    assert await refused(node.claim(token, node.hello(token, bad_bodies()[number]))) is Reason.MALFORMED
    await node.claim(token, node.hello(token))


async def test_few_streams_of_one_api_key_wait_for_their_hello_and_none_of_a_strangers(world: World) -> None:
    node, other = await world.member(), await world.member("node-2")
    with pytest.raises(Refusal) as stranger, world.sessions.waiting_for_hello("fak1.made-up", "192.0.2.1"):
        pass
    assert stranger.value.reason is Reason.UNKNOWN_CREDENTIAL
    with ExitStack() as waiting:
        for _ in range(MAX_WAITING_HELLOS):
            waiting.enter_context(world.sessions.waiting_for_hello(node.api_key, "192.0.2.1"))
        with pytest.raises(Refusal) as caught, world.sessions.waiting_for_hello(node.api_key, "192.0.2.1"):
            pass
        assert caught.value.reason is Reason.OVERLOADED
        assert caught.value.retry_after_s
        with world.sessions.waiting_for_hello(other.api_key, "192.0.2.1"):
            pass
    with world.sessions.waiting_for_hello(node.api_key, "192.0.2.1"):
        pass


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
