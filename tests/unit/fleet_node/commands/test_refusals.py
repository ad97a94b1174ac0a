"""Refusals in the node's audit: each attempt shows, and no server fills or wears the disk with them."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio

from fleet.envelope import Domain
from fleet.intents import IntentVerdict
from fleet.node_audit import NodeAuditKind
from fleet.people import take
from fleet.v1 import gateway_pb2, trust_pb2
from fleet_node.commands.journal import MAX_ROWS_WAITING
from fleet_node.commands.protection import Verifier
from fleet_node.link.key_audit import ROW_EVERY_S
from tests.fakes.clock import MockClock
from tests.properties.persons import ADA, BEN, DAY_MS, NOW_MS, STRANGER, intent, policy, rule, signed_by
from tests.unit.fleet_node.commands.audit_reader import read_audit
from tests.unit.fleet_node.commands.node import CLUSTER, NODE, TestNode
from tests.unit.fleet_node.commands.protected import GATE, SEALED, Persons, refused, wished


@pytest_asyncio.fixture
async def node(tmp_path: Path, verifier: Verifier) -> AsyncIterator[TestNode]:
    node = TestNode(tmp_path, MockClock(NOW_MS), verifier=verifier)
    node.open_stream()
    yield node
    await node.close()


async def details(node: TestNode, kind: str) -> list[Any]:
    return await node.journal.query(lambda store: read_audit(store, NODE).details(kind))


async def test_an_order_of_a_protected_action_that_is_refused_says_whose_it_was(node: TestNode) -> None:
    used = wished(node)
    await node.give(used)
    await node.wait_reported(used, "SUCCEEDED")
    replay = wished(node, signed=used.intent)
    replay.actor = "mallory\x1b[2J"
    assert await refused(node, replay) == IntentVerdict.INTENT_REPLAYED

    intent_id = trust_pb2.IntentStatement.FromString(used.intent.statement).intent_id.hex()
    (ran,) = await details(node, "intent.used")
    assert ran == {"action": SEALED, "intent_id": intent_id, "people": ["ada", "ben"], "seq": used.monotonic_seq}
    (attempt,) = await details(node, "protected.refused")
    assert attempt == {
        "actor": "mallory\\x1b[2J",
        "command_id": replay.command_id.hex(),
        "count": 1,
        "intent_id": intent_id,
        "people": ["ada", "ben"],
        "reason": "INTENT_REPLAYED",
        "seq": replay.monotonic_seq,
        "signers": [ADA.key_id.hex(), BEN.key_id.hex()],
        "subject": SEALED,
    }


async def test_what_a_stranger_signed_is_told_and_names_nobody(node: TestNode) -> None:
    signed = signed_by(STRANGER, statement=intent(action=SEALED, arguments=b"{}"))
    signed.signatures[0].key_id = bytes(16)
    command = wished(node, signed=signed)
    assert await refused(node, command) == IntentVerdict.WRONG_SIGNER
    (attempt,) = await details(node, "protected.refused")
    claimed = trust_pb2.IntentStatement.FromString(signed.statement).intent_id.hex()
    assert (attempt["people"], attempt["intent_id"]) == ([], claimed)
    assert attempt["signers"] == [bytes(16).hex()]


async def test_attempts_that_are_alike_are_counted_and_others_told_apart(node: TestNode) -> None:
    for _ in range(20):
        await refused(node, node.command(SEALED))
    await refused(node, node.command(GATE))
    await node.clock.advance(ROW_EVERY_S)
    last = node.command(SEALED)
    await refused(node, last)
    told = await details(node, "protected.refused")
    assert [(one["subject"], one["count"]) for one in told] == [(SEALED, 1), (GATE, 1), (SEALED, 20)]
    assert told[-1]["seq"] == last.monotonic_seq


async def test_what_may_not_start_any_more_is_told_with_its_intent(node: TestNode, persons: Persons) -> None:
    node.service.drain(gateway_pb2.DrainNode(drain=True))
    waiting = wished(node, ttl_ms=DAY_MS)
    await node.give(waiting)
    await node.wait_reported(waiting, "ACCEPTED")
    persons.people = take(persons.people, policy=policy(rule(SEALED, 3), version=2))[0]
    node.service.drain(gateway_pb2.DrainNode(drain=False))
    await node.wait_reported(waiting, "REJECTED")
    (attempt,) = await details(node, "protected.refused")
    assert (attempt["seq"], attempt["people"]) == (waiting.monotonic_seq, ["ada", "ben"])
    assert attempt["intent_id"] == trust_pb2.IntentStatement.FromString(waiting.intent.statement).intent_id.hex()


async def test_a_flood_of_bad_statements_writes_a_row_and_a_count(node: TestNode) -> None:
    before = node.metrics.commit_duration.count
    for seq in range(100_000, 100_300):
        await node.stream.command_frame(node.frame(node.command(seq=seq), node_id="other"))
    floor = trust_pb2.FloorStatement(cluster_id=CLUSTER, node_id="other")
    for _ in range(300):
        await node.stream.floor_frame(node.authority.sign(Domain.FLOOR, floor.SerializeToString()))
    assert [(one["reason"], one["count"]) for one in await details(node, "statement.refused")] == [("WRONG_NODE", 1)]
    assert len(await details(node, "floor.refused")) == 1
    assert node.metrics.commit_duration.count - before <= 4
    node.key_audit.settle()
    assert sum(one["count"] for one in await details(node, "statement.refused")) == 300


async def test_rows_do_not_pile_up_while_the_disk_hangs(node: TestNode) -> None:
    hanging, goes_on = threading.Event(), threading.Event()

    def hang(_: object) -> None:
        hanging.set()
        goes_on.wait(30)

    asked = node.journal.query(hang)
    waiting = asyncio.ensure_future(asked)
    await asyncio.to_thread(hanging.wait, 30)
    for number in range(3 * MAX_ROWS_WAITING):
        node.service.audit(NodeAuditKind.BUNDLE_APPLIED, version=[1, number])
        if number == MAX_ROWS_WAITING // 2:
            await asyncio.sleep(0)  # a turn ends: what came until now is handed over
    goes_on.set()
    await waiting
    commits = node.metrics.commit_duration.count
    while True:
        audit = await node.journal.query(lambda store: read_audit(store, NODE))
        told = len(audit.details("bundle.applied"))
        counted = sum(one["not_written"] for one in audit.details("audit.gap"))
        if told + counted == 3 * MAX_ROWS_WAITING:
            break
    assert told <= 2 * MAX_ROWS_WAITING
    assert node.metrics.commit_duration.count - commits <= 3
