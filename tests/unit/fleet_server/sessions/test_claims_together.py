"""Whoever says hello at one moment shares one transaction, and neither a refusal nor a deed with the others."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import pytest

from fleet.errors import Reason, Refusal
from fleet_server.database.engine import sql
from fleet_server.nodes.record import NodeState
from fleet_server.sessions import store
from fleet_server.sessions.claim import StreamClaim
from fleet_server.sessions.store import SessionRow
from tests.unit.fleet_server.sessions.world import Node, World, hello_body

MEMBERS = 40


async def members(world: World, count: int) -> list[Node]:
    return [await world.member(f"node-{number}") for number in range(1, count + 1)]


async def handshake(world: World, node: Node) -> bytes:
    await world.clock.advance(0.1)  # so many come in
    token, _ = await node.handshake()
    return token


async def claims(*asked: Coroutine[Any, Any, StreamClaim]) -> list[StreamClaim | Refusal]:
    async def answer(claim: Coroutine[Any, Any, StreamClaim]) -> StreamClaim | Refusal:
        try:
            return await claim
        except Refusal as refusal:
            return refusal

    return await asyncio.gather(*map(answer, asked))


async def test_a_fleet_comes_back_twice_and_each_node_keeps_its_own(world: World) -> None:
    nodes = await members(world, MEMBERS)
    ratchets = dict.fromkeys((node.node_id for node in nodes), b"")
    for epoch in (1, 2, 3):
        shown = [
            (node, token, node.hello(token, ratchet=ratchets[node.node_id], body=hello_body(last_accepted_seq=number)))
            for number, node in enumerate(nodes)
            for token in [await handshake(world, node)]
        ]
        reads = world.count_reads()
        won = await claims(*(node.claim(token, hello) for node, token, hello in shown))
        assert len(reads) < MEMBERS / 2
        for number, (node, claim) in enumerate(zip(nodes, won, strict=True)):
            assert isinstance(claim, StreamClaim)
            assert (claim.node.node_id, claim.epoch) == (node.node_id, epoch)
            record = await world.node(node.node_id)
            assert (record.stream_epoch, record.online, record.last_seq) == (epoch, True, number)
            ratchets[node.node_id] = claim.turn.handed_on
    assert len(set(ratchets.values())) == MEMBERS


async def test_what_keeps_one_out_keeps_nobody_else_out(world: World) -> None:
    nodes = await members(world, MEMBERS)
    tokens = {node.node_id: await handshake(world, node) for node in nodes}
    foreign, tampered, suspended, gone, *rest = nodes
    text = "UPDATE node_ratchets SET seq_floor = 7 WHERE node_id = ?"
    await world.database.write(lambda tx: tx.conn.exec_driver_sql(sql(tx.conn, text), (tampered.node_id,)).rowcount)

    def claim(node: Node) -> Coroutine[Any, Any, StreamClaim]:
        token = tokens[node.node_id]
        hello = node.hello(token, ratchet=b"of another machine" if node is foreign else b"")
        fields = {"stream_id": "s", "replica_id": "r1", "is_gone": lambda: node is gone}
        return world.sessions.claim(node.api_key, token, hello, node.address, **fields)  # type: ignore[arg-type]

    submit, decided = world.database.writer.submit, False

    async def decide_first(work: object, **_: object) -> object:
        nonlocal decided
        if not decided:  # behind every check, before the first write
            decided = True
            await world.nodes.set_state("ada", [suspended.name], "SUSPENDED", "")
        return await submit(work)  # type: ignore[arg-type]

    world.database.writer.submit = decide_first  # type: ignore[method-assign,assignment]
    answers = await claims(*(claim(node) for node in nodes))
    reasons = [answer.reason for answer in answers if isinstance(answer, Refusal)]
    assert reasons == [Reason.QUARANTINED, Reason.QUARANTINED, Reason.UNAVAILABLE, Reason.UNAVAILABLE]
    assert all(isinstance(answer, Refusal) for answer in answers[:4])
    states = [(await world.node(node.node_id)).state for node in (foreign, tampered, suspended, gone)]
    assert states == [NodeState.QUARANTINED, NodeState.QUARANTINED, NodeState.SUSPENDED, NodeState.ACTIVE]
    assert {(await world.node(node.node_id)).stream_epoch for node in (foreign, tampered, suspended, gone)} == {0}
    assert Counter(await world.audited())["stream.opened"] == len(rest)


async def test_two_hellos_of_one_node_at_one_moment_have_an_epoch_each(world: World) -> None:
    node, other = await members(world, 2)
    first, second = [(await node.handshake())[0] for _ in range(2)]
    token, _ = await other.handshake()
    won = await claims(
        other.claim(token, other.hello(token)),
        node.claim(first, node.hello(first)),
        node.claim(second, node.hello(second)),
        node.claim(second, node.hello(second)),
    )
    assert [claim.epoch for claim in won if isinstance(claim, StreamClaim)] == [1, 1, 2]
    assert [claim.reason for claim in won if isinstance(claim, Refusal)] == [Reason.TOKEN_USED]
    assert (await world.node(node.node_id)).stream_epoch == 2


async def test_of_answers_to_one_challenge_at_one_moment_one_counts(world: World) -> None:
    """As of two replicas: either looks, and finds none."""
    node = await world.member()
    rows = [SessionRow(bytes(32), node.node_id, sealed, 60_000, 0) for sealed in (b"one", b"another", b"late")]
    assert await world.database.write(lambda tx: store.insert_sessions(tx.conn, rows[:2])) == [True, False]
    assert await world.database.write(lambda tx: store.insert_sessions(tx.conn, rows[2:])) == [False]


async def test_a_node_whose_profile_is_held_elsewhere_keeps_nobody_elses_hello_waiting(
    world: World, request: pytest.FixtureRequest
) -> None:
    """Another replica was frozen while it noted which bundle a node holds, and the node comes here."""
    if "sqlite" in request.node.name:
        pytest.skip("SQLite has one writer")
    nodes = await members(world, 6)
    ratchets = {node.node_id: (await node.connect()).turn.handed_on for node in nodes}
    tokens = {node.node_id: await handshake(world, node) for node in nodes}

    def claim(node: Node) -> Coroutine[Any, Any, StreamClaim]:
        token, news = tokens[node.node_id], hello_body(software_version="1.1")
        return node.claim(token, node.hello(token, news, ratchet=ratchets[node.node_id]))

    held, *rest = nodes
    with world.database.writer._engine.connect() as frozen:
        text = "UPDATE node_profiles SET bundle_number = 7 WHERE node_id = ?"
        frozen.exec_driver_sql(sql(frozen, text), (held.node_id,))
        waiting = asyncio.create_task(claim(held))
        won = await claims(*map(claim, rest))
        assert all(isinstance(each, StreamClaim) for each in won)
        assert not waiting.done()
    assert (await waiting).epoch == 2
    assert Counter(await world.audited())["stream.opened"] == 2 * len(nodes)


async def test_a_node_whose_row_is_held_elsewhere_keeps_nobody_elses_hello_waiting(
    world: World, request: pytest.FixtureRequest
) -> None:
    """Another replica gives orders to some of those that come back."""
    if "sqlite" in request.node.name:
        pytest.skip("SQLite has one writer")
    nodes = await members(world, 6)
    tokens = {node.node_id: await handshake(world, node) for node in nodes}

    def claim(node: Node) -> Coroutine[Any, Any, StreamClaim]:
        return node.claim(tokens[node.node_id], node.hello(tokens[node.node_id]))

    held, *rest = nodes
    with world.database.writer._engine.connect() as issuing:
        world.nodes.take_seqs(issuing, {held.node_id: 1})
        waiting = asyncio.create_task(claim(held))
        won = await claims(*map(claim, rest))
        assert all(isinstance(each, StreamClaim) for each in won)
        assert not waiting.done()
    assert (await waiting).epoch == 1
