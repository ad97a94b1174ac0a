"""Protected commands that wait on a node: people are asked again when the turn comes (docs/protocol.md, "Intents")."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from fleet.intents import IntentVerdict
from fleet.people import take
from fleet.v1 import command_pb2, gateway_pb2
from fleet_node.commands.protection import Verifier
from tests.fakes.clock import MockClock
from tests.properties.persons import (
    BEN,
    DAY_MS,
    NEXT_OWNER,
    NOW_MS,
    OWNER,
    grant,
    owner_statement,
    policy,
    rule,
)
from tests.unit.fleet_node.commands.node import TestNode, state_name
from tests.unit.fleet_node.commands.protected import RULES, Persons, wished


@pytest_asyncio.fixture
async def node(tmp_path: Path, verifier: Verifier) -> AsyncIterator[TestNode]:
    node = TestNode(tmp_path, MockClock(NOW_MS), verifier=verifier)
    node.open_stream()
    yield node
    await node.close()


async def _held(node: TestNode, command: command_pb2.Command) -> None:
    node.service.drain(gateway_pb2.DrainNode(drain=True))
    await node.give(command)
    await node.wait_reported(command, "ACCEPTED")


async def _turn_comes(node: TestNode, command: command_pb2.Command) -> str:
    """Why it is rejected; empty when it runs."""
    refusals = sum(node.metrics.intent_refusals.labels(verdict.value).value for verdict in IntentVerdict)
    node.service.drain(gateway_pb2.DrainNode(drain=False))
    report = await node.wait_report(command, lambda report: report.state > command_pb2.COMMAND_STATE_RUNNING)
    ran = node.probe.runs == [command.command_id]
    assert (state_name(report) == "REJECTED") is not ran
    counted = sum(node.metrics.intent_refusals.labels(verdict.value).value for verdict in IntentVerdict)
    assert counted - refusals == (0 if ran else 1)
    return report.reason


async def test_what_became_protected_while_it_waited_does_not_run(node: TestNode, persons: Persons) -> None:
    command = node.command("probe.echo", ttl_ms=DAY_MS)
    await _held(node, command)
    persons.people = take(persons.people, policy=policy(rule("probe.*"), version=2))[0]
    assert await _turn_comes(node, command) == IntentVerdict.INTENT_MISSING


LATER = {
    "nothing": ({}, ""),
    "a role is taken away": (
        {"grants": [grant(BEN, "ben", issued_at_ms=NOW_MS, not_after_ms=NOW_MS)]},
        "GRANT_EXPIRED",
    ),
    "a third person is wanted": ({"policy": policy(rule("probe.*", 3), version=2)}, "NOT_ENOUGH_SIGNERS"),
    "another role is wanted": ({"policy": policy(rule("probe.*", 2, ["owner"]), version=2)}, "NOT_ENOUGH_SIGNERS"),
    "the rule is gone": ({"policy": policy(rule("gate.*"), version=2)}, "NO_RULE"),
    "another owner": ({"owners": [owner_statement(NEXT_OWNER, 2, OWNER)]}, "NO_POLICY"),
    "another owner, who granted nothing": (
        {
            "owners": [owner_statement(NEXT_OWNER, 2, OWNER)],
            "policy": policy(*RULES, owner=NEXT_OWNER),
        },
        "NOT_ENOUGH_SIGNERS",
    ),
}


@pytest.mark.parametrize("restarted", [False, True], ids=["", "restarted"])
@pytest.mark.parametrize(("later", "reason"), LATER.values(), ids=LATER.keys())
async def test_who_signed_is_counted_again_when_the_turn_comes(
    node: TestNode, persons: Persons, later: dict[str, Any], reason: str, restarted: bool
) -> None:
    command = wished(node, ttl_ms=DAY_MS)
    await _held(node, command)
    if restarted:
        await node.crash()
        await node.restart()
        node.open_stream(drained=True)
    persons.people = take(persons.people, **later)[0]
    assert await _turn_comes(node, command) == reason


async def test_a_role_that_ends_while_a_command_waits_counts_no_more(node: TestNode, persons: Persons) -> None:
    ends = grant(BEN, "ben", issued_at_ms=NOW_MS - 1, not_after_ms=NOW_MS + 1000)
    persons.people = take(persons.people, grants=[ends])[0]
    command = wished(node, ttl_ms=DAY_MS)
    await _held(node, command)
    await node.clock.advance(2)
    assert await _turn_comes(node, command) == IntentVerdict.GRANT_EXPIRED


async def test_what_became_protected_while_the_node_was_down_does_not_run(node: TestNode, persons: Persons) -> None:
    node.service.drain(gateway_pb2.DrainNode(drain=True))
    command = node.command("probe.echo")
    await node.give(command)
    await node.crash()
    persons.people = take(persons.people, policy=policy(rule("probe.*"), version=2))[0]
    await node.restart()
    node.open_stream()
    assert (await node.wait_reported(command, "REJECTED")).reason == IntentVerdict.INTENT_MISSING
    assert node.probe.runs == []
