"""Protected actions on a node with a real journal: who may order them, once, also over restarts and against a server
that says what it likes (docs/protocol.md, "Intents")."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from fleet.envelope import Domain
from fleet.intents import IntentVerdict
from fleet.people import CLOCK_SLACK_MS, People, take
from fleet.sequence import MAX_SEQ_STEP
from fleet.v1 import command_pb2, gateway_pb2, trust_pb2
from fleet_node.commands.protection import Verifier
from fleet_node.commands.store import JournalStore
from tests.fakes.clock import MockClock
from tests.properties.persons import (
    ADA,
    BEN,
    DAN,
    DAY_MS,
    HOUR_MS,
    NEXT_OWNER,
    NODE,
    NOW_MS,
    OWNER,
    STRANGER,
    grant,
    intent,
    owner_statement,
    policy,
    rule,
    signed_by,
    target,
)
from tests.unit.fleet_node.commands.node import TestNode
from tests.unit.fleet_node.commands.protected import BOOM, GATE, RULES, SEALED, Persons, refused, wished


@pytest_asyncio.fixture
async def node(tmp_path: Path, verifier: Verifier) -> AsyncIterator[TestNode]:
    node = TestNode(tmp_path, MockClock(NOW_MS), verifier=verifier)
    node.open_stream()
    yield node
    await node.close()


@pytest.mark.parametrize("action", [SEALED, BOOM])
async def test_two_people_let_a_protected_action_run_once(node: TestNode, action: str) -> None:
    command = wished(node, action)
    await node.give(command)
    await node.wait_reported(command, "SUCCEEDED" if action == SEALED else "FAILED")
    assert node.probe.runs == [command.command_id]
    replay = wished(node, action, signed=command.intent)
    assert await refused(node, replay) == IntentVerdict.INTENT_REPLAYED


@pytest.mark.parametrize("action", [SEALED, GATE, BOOM])
async def test_driver_configuration_and_policy_protect(node: TestNode, action: str) -> None:
    assert await refused(node, node.command(action)) == IntentVerdict.INTENT_MISSING


async def test_what_nobody_protects_needs_no_intent_and_no_pin(node: TestNode, persons: Persons) -> None:
    persons.people = People("cluster-1", b"")
    command = node.command()
    await node.give(command)
    await node.wait_reported(command, "SUCCEEDED")
    assert await refused(node, wished(node)) == IntentVerdict.NO_OWNER_PIN


async def test_what_is_protected_and_has_no_rule_is_refused(node: TestNode) -> None:
    assert await refused(node, wished(node, "probe.large")) == IntentVerdict.NO_RULE


CHANGED = {
    "other arguments": ({"arguments": b'{"value":1}'}, IntentVerdict.INTENT_WRONG_ARGUMENTS),
    "another action": ({"action": GATE}, IntentVerdict.INTENT_WRONG_ACTION),
    "another node": ({"targets": [target("node-9")]}, IntentVerdict.INTENT_WRONG_TARGET),
    "other keys": ({"targets": [target(fingerprint=bytes(20))]}, IntentVerdict.INTENT_WRONG_TARGET),
    "another name": ({"targets": [target(name="press-2")]}, IntentVerdict.INTENT_WRONG_TARGET),
    "another cluster": ({"cluster_id": "cluster-9"}, IntentVerdict.INTENT_WRONG_CLUSTER),
    "too late": ({"not_after_ms": NOW_MS}, IntentVerdict.INTENT_EXPIRED),
}


@pytest.mark.parametrize(("changes", "verdict"), CHANGED.values(), ids=CHANGED.keys())
async def test_an_intent_for_something_else_runs_nothing(
    node: TestNode, changes: dict[str, Any], verdict: IntentVerdict
) -> None:
    assert await refused(node, wished(node, **changes)) == verdict


@pytest.mark.parametrize(
    ("people", "verdict"),
    [
        ((ADA,), IntentVerdict.NOT_ENOUGH_SIGNERS),
        ((ADA, DAN), IntentVerdict.GRANT_EXPIRED),
        ((STRANGER,), IntentVerdict.WRONG_SIGNER),
    ],
)
async def test_too_few_people(node: TestNode, people: Any, verdict: IntentVerdict) -> None:
    command: command_pb2.Command = node.command(SEALED)
    statement = intent(action=SEALED, arguments=command.arguments)
    command.intent.CopyFrom(signed_by(*people, statement=statement))
    assert await refused(node, command) == verdict


async def test_an_intent_counts_once_within_a_statement(node: TestNode) -> None:
    first = wished(node)
    second = wished(node, signed=first.intent)
    await node.give(first, second)
    await node.wait_reported(first, "SUCCEEDED")
    assert (await node.wait_reported(second, "REJECTED")).reason == IntentVerdict.INTENT_REPLAYED
    assert node.probe.runs == [first.command_id]


async def test_a_command_that_comes_again_is_told_again_and_runs_once(node: TestNode) -> None:
    command = wished(node)
    await node.give(command)
    await node.wait_reported(command, "SUCCEEDED")
    node.states.clear()
    await node.give(command, prev_seq=0)
    await node.wait_reported(command, "SUCCEEDED")
    assert node.probe.runs == [command.command_id]


async def test_an_intent_is_not_used_up_by_a_command_that_did_not_get_in(node: TestNode) -> None:
    command = wished(node, ttl_ms=1000)
    await node.clock.advance(2)
    await node.give(command)
    await node.wait_reported(command, "EXPIRED")
    again = wished(node, signed=command.intent)
    await node.give(again)
    await node.wait_reported(again, "SUCCEEDED")


async def test_people_are_asked_last_so_that_the_reason_is_the_right_one(node: TestNode) -> None:
    late = node.command(SEALED, ttl_ms=1000)
    far = node.command(SEALED, seq=MAX_SEQ_STEP + 9)
    cancelled = node.command(SEALED, seq=2)
    assert await node.cancel(cancelled) == command_pb2.CANCEL_OUTCOME_TOMBSTONED
    await node.clock.advance(2)
    await node.give(late, cancelled, far)
    assert (await node.wait_reported(late, "EXPIRED")).reason == "EXPIRED"
    assert (await node.wait_reported(cancelled, "CANCELLED")).reason == "CANCELLED"
    assert (await node.wait_reported(far, "REJECTED")).reason == "SEQ_TOO_FAR"
    assert node.metrics.intent_refusals.labels(IntentVerdict.INTENT_MISSING).value == 0


@pytest.mark.parametrize("orderly", [True, False], ids=["stopped", "killed"])
async def test_no_intent_passes_twice_over_a_restart(node: TestNode, orderly: bool) -> None:
    command = wished(node)
    await node.give(command)
    await node.wait_reported(command, "SUCCEEDED")
    await (node.service.close() if orderly else node.crash())
    await node.restart()
    node.open_stream()
    replay = wished(node, signed=command.intent)
    assert await refused(node, replay) == IntentVerdict.INTENT_REPLAYED
    assert node.probe.runs == []


async def _killed_before_it_ran(node: TestNode) -> command_pb2.Command:
    node.service.drain(gateway_pb2.DrainNode(drain=True))
    command = wished(node, ttl_ms=DAY_MS)
    await node.give(command)
    await node.wait_reported(command, "ACCEPTED")
    await node.crash()
    return command


async def test_killed_between_accept_and_run_it_runs_once_after_the_restart(node: TestNode) -> None:
    command = await _killed_before_it_ran(node)
    await node.restart()
    node.open_stream()
    await node.wait_reported(command, "SUCCEEDED")
    assert node.probe.runs == [command.command_id]
    assert await refused(node, wished(node, signed=command.intent)) == IntentVerdict.INTENT_REPLAYED


async def test_killed_between_accept_and_run_and_back_after_the_intents_end_it_does_not_run(node: TestNode) -> None:
    command = await _killed_before_it_ran(node)
    await node.clock.advance(HOUR_MS / 1000)
    await node.restart()
    node.server_time.observe(NOW_MS)  # the server says that no time has passed
    node.stream = node.service.opened(node.context, gateway_pb2.Welcome(), node.uplink)
    assert (await node.wait_reported(command, "REJECTED")).reason == IntentVerdict.INTENT_EXPIRED
    assert node.probe.runs == []


async def test_held_until_after_the_intents_end_it_does_not_run(node: TestNode) -> None:
    node.service.drain(gateway_pb2.DrainNode(drain=True))
    command = wished(node, ttl_ms=DAY_MS)
    await node.give(command)
    await node.clock.advance(HOUR_MS / 1000 + 1)
    node.service.drain(gateway_pb2.DrainNode(drain=False))
    await node.wait_reported(command, "EXPIRED")
    assert node.probe.runs == []


async def test_an_idempotent_one_runs_again_under_its_own_intent(node: TestNode) -> None:
    gates = [wished(node, GATE) for _ in range(4)]
    again = wished(node, "probe.again")
    for gate in gates:
        await node.give(gate)
    await node.give(again)
    await node.crash()
    await node.restart()
    node.open_stream()
    for gate in gates:
        assert (await node.wait_reported(gate, "INTERRUPTED")).reason == "NODE_RESTARTED"
    await node.wait_reported(again, "SUCCEEDED")
    assert node.probe.runs == [again.command_id]


async def test_a_policy_that_changes_counts_at_once(node: TestNode, persons: Persons) -> None:
    echo = node.command()
    await node.give(echo)
    await node.wait_reported(echo, "SUCCEEDED")
    persons.people = take(persons.people, policy=policy(rule("probe.*", required=3), version=2))[0]
    assert await refused(node, node.command()) == IntentVerdict.INTENT_MISSING
    assert await refused(node, wished(node)) == IntentVerdict.NOT_ENOUGH_SIGNERS


async def test_a_server_that_stops_its_clock_keeps_nothing_alive(node: TestNode, persons: Persons) -> None:
    """Server time and local clock say that it is still early; somebody has signed something later."""
    later = wished(node, issued_at_ms=NOW_MS + 9 * 60_000, not_after_ms=NOW_MS + HOUR_MS)
    ends_before = wished(node, not_after_ms=NOW_MS + 5 * 60_000)
    await node.give(later)
    await node.wait_reported(later, "SUCCEEDED")
    assert await refused(node, ends_before) == IntentVerdict.INTENT_EXPIRED
    await node.crash()
    await node.restart()  # what people signed is on the disk
    node.open_stream()
    assert await refused(node, wished(node, not_after_ms=NOW_MS + 5 * 60_000)) == IntentVerdict.INTENT_EXPIRED
    persons.latest_signed_ms = NOW_MS + 2 * HOUR_MS
    assert await refused(node, wished(node)) == IntentVerdict.INTENT_EXPIRED


async def test_the_next_owners_word_counts_and_the_owner_befores_no_more(node: TestNode, persons: Persons) -> None:
    persons.people = take(persons.people, owners=[owner_statement(NEXT_OWNER, 2, OWNER)])[0]
    assert await refused(node, wished(node)) == IntentVerdict.NO_POLICY
    persons.people, refusals = take(
        persons.people,
        policy=policy(*RULES, owner=NEXT_OWNER),
        grants=[grant(ADA, "ada", owner=NEXT_OWNER), grant(BEN, "ben", owner=NEXT_OWNER)],
    )
    assert not refusals
    command = wished(node)
    await node.give(command)
    await node.wait_reported(command, "SUCCEEDED")


async def test_ids_are_remembered_until_people_signed_something_later_than_their_end(node: TestNode) -> None:
    short = wished(node, not_after_ms=NOW_MS + 1000)
    await node.give(short)
    await node.wait_reported(short, "SUCCEEDED")
    await node.clock.advance(3600)  # a clock alone makes it forget nothing
    await node.crash()
    assert [use.seq for use in _kept(node)] == [1]
    await node.restart()
    node.open_stream()
    longer = wished(node, issued_at_ms=NOW_MS + HOUR_MS, not_after_ms=NOW_MS + 2 * HOUR_MS)
    await node.give(longer)
    await node.wait_reported(longer, "SUCCEEDED")
    await node.crash()
    assert [use.seq for use in _kept(node)] == [2]
    await node.restart()


def _kept(node: TestNode) -> Any:
    store = JournalStore(node.path, NODE)
    try:
        return list(store.recover().used)
    finally:
        store.close()


async def _floor(node: TestNode, intents_after_ms: int) -> None:
    floor = trust_pb2.FloorStatement(cluster_id="cluster-1", node_id=NODE, intents_after_ms=intents_after_ms)
    await node.stream.floor_frame(node.authority.sign(Domain.FLOOR, floor.SerializeToString()))


async def test_no_floor_ends_protected_actions_for_ever(node: TestNode) -> None:
    node.server_time.observe(NOW_MS + 1000 * DAY_MS)  # whoever lies in the floor lies about the time
    await _floor(node, 2**63 - 1)
    await node.crash()
    await node.restart()
    node.open_stream()
    assert (
        await refused(node, wished(node, issued_at_ms=NOW_MS + CLOCK_SLACK_MS)) == IntentVerdict.INTENT_BEFORE_RESTORE
    )
    new = wished(node, issued_at_ms=NOW_MS + CLOCK_SLACK_MS + 1)
    await node.clock.advance(1)
    await node.give(new)
    await node.wait_reported(new, "SUCCEEDED")


async def test_a_node_whose_clock_is_behind_takes_the_rest_of_a_floor_once_it_is_set(node: TestNode) -> None:
    node.clock.step_wall(-HOUR_MS / 1000)
    await _floor(node, NOW_MS + CLOCK_SLACK_MS)
    node.clock.step_wall(HOUR_MS / 1000)
    node.open_stream(binding=b"n" * 32)
    await _floor(node, NOW_MS + CLOCK_SLACK_MS)
    assert (
        await refused(node, wished(node, issued_at_ms=NOW_MS + CLOCK_SLACK_MS)) == IntentVerdict.INTENT_BEFORE_RESTORE
    )


async def test_an_adopted_node_refuses_intents_from_before(node: TestNode) -> None:
    old = wished(node)
    await _floor(node, NOW_MS - 1)
    assert await refused(node, old) == IntentVerdict.INTENT_BEFORE_RESTORE
    await node.crash()
    await node.restart()
    node.open_stream()
    assert await refused(node, wished(node)) == IntentVerdict.INTENT_BEFORE_RESTORE
    new = wished(node, issued_at_ms=NOW_MS)
    await node.give(new)
    await node.wait_reported(new, "SUCCEEDED")


async def test_nothing_is_judged_before_a_floor_that_could_not_be_written(node: TestNode) -> None:
    old = wished(node)
    node.store.connection.execute("PRAGMA query_only = ON")
    await _floor(node, NOW_MS - 1)
    await node.give(old)
    assert (await node.wait_control("statement_refused")).reason == "JOURNAL_UNAVAILABLE"
    node.store.connection.execute("PRAGMA query_only = OFF")
    assert await refused(node, old) == IntentVerdict.INTENT_BEFORE_RESTORE


async def test_a_disk_that_fails_uses_nothing_up(node: TestNode) -> None:
    command = wished(node)
    node.store.connection.execute("PRAGMA query_only = ON")
    await node.give(command)
    assert (await node.wait_control("statement_refused")).reason == "JOURNAL_UNAVAILABLE"
    node.store.connection.execute("PRAGMA query_only = OFF")
    await node.give(command)
    await node.wait_reported(command, "SUCCEEDED")
