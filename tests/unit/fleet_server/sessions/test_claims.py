"""A session becomes a stream, once: what stands in its way, and what must not get through."""

import asyncio
import dataclasses
import json
import os
from contextlib import ExitStack, suppress

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fleet.envelope import Domain
from fleet.errors import Reason, Refusal
from fleet.identity import NodeKeys
from fleet.v1 import gateway_pb2
from fleet_server.audit.service import AuditCursor
from fleet_server.sessions.service import MAX_WAITING_HELLOS
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.sessions.world import World, hello_body, refused


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
    submit = world.database.writer.submit

    async def decide_first(work: object, **_: object) -> object:
        world.database.writer.submit = submit  # type: ignore[method-assign]
        if overtaken_by == "suspend":
            await world.nodes.set_state("ada", [node.name], "SUSPENDED", "")
        else:
            await submit(lambda tx: world.sessions.rotations.revoke_api_keys(tx, node.node_id))
        return await submit(work)  # type: ignore[arg-type]

    world.database.writer.submit = decide_first  # type: ignore[method-assign,assignment]
    assert await refused(node.claim(token, node.hello(token))) is Reason.UNAVAILABLE
    assert (await world.node(node.node_id)).stream_epoch == 0


async def test_whoever_is_gone_before_it_is_written_opens_nothing(world: World) -> None:
    """The hello waited for the database, and its node has another stream by now, maybe at another replica."""
    node = await world.member()
    token, _ = await node.handshake()
    hello = node.hello(token)
    fields = {"stream_id": "late", "replica_id": "r1", "is_gone": lambda: True}
    late = world.sessions.claim(node.api_key, token, hello, node.address, **fields)  # type: ignore[arg-type]
    assert await refused(late) is Reason.UNAVAILABLE
    assert (await node.claim(token, hello)).epoch == 1, "nothing of it was used up"


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
        places = [
            waiting.enter_context(world.sessions.waiting_for_hello(node.api_key, "192.0.2.1"))
            for _ in range(MAX_WAITING_HELLOS)
        ]
        for api_key, address in ((other.api_key, "192.0.2.1"), (node.api_key, "192.0.2.2")):
            waiting.enter_context(world.sessions.waiting_for_hello(api_key, address))
        assert not any(place.done() for place in places)
        for _ in range(2):  # the node, while a thief waits in all places
            waiting.enter_context(world.sessions.waiting_for_hello(node.api_key, "192.0.2.1"))
        assert [place.done() for place in places] == [True] * 2 + [False] * (MAX_WAITING_HELLOS - 2)
    with world.sessions.waiting_for_hello(node.api_key, "192.0.2.1") as place:
        assert not place.done()


@pytest.mark.parametrize("where", ["elsewhere", "at home"])
async def test_a_stolen_api_key_costs_few_queries_and_keeps_its_node_out_of_nothing(world: World, where: str) -> None:
    node = await world.member()
    address = node.address if where == "at home" else "198.51.100.66"
    thief = dataclasses.replace(node, keys=NodeKeys.generate(), address=address)
    challenge = await thief.begin()
    reads = world.count_reads()
    for _ in range(200):
        with suppress(Refusal):
            await thief.complete(thief.prove(challenge, X25519PrivateKey.generate()))
        with suppress(Refusal):
            token = os.urandom(32)
            await thief.claim(token, thief.hello(token))
        for node_id in (node.node_id, "another"):
            with suppress(Refusal):
                said = await thief.begin(node_id=node_id)
                await thief.complete(thief.prove(said, X25519PrivateKey.generate(), node_id=node_id))
        with suppress(Refusal):
            await thief.complete(thief.prove(os.urandom(64), X25519PrivateKey.generate()))
    assert 0 < len(reads) <= 20
    assert (await node.connect()).epoch == 1


async def test_a_node_in_a_loop_is_slowed_down_though_its_proofs_are_good(world: World) -> None:
    node = await world.member()
    reasons = []
    for _ in range(60):
        try:
            await node.handshake()
        except Refusal as refusal:
            reasons.append(refusal.reason)
            assert refusal.retry_after_s
    assert set(reasons) == {Reason.OVERLOADED}
    assert len(reasons) >= 15


async def test_the_audit_tells_a_restart_from_a_reconnect(world: World) -> None:
    node = await world.member()
    for boot_id in (b"a" * 16, b"a" * 16, b"b" * 16):
        await node.connect(hello_body(boot_id=boot_id))
    rows = (await world.audit.page(AuditCursor())).rows
    boots = [json.loads(row.detail)["boot"] for row in rows if row.kind == "stream.opened"]
    assert boots == [(b"a" * 16).hex()] * 2 + [(b"b" * 16).hex()]
