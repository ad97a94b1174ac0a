"""Protected actions of a node under test, the people who may order them, and what they order."""

from typing import Any

from fleet.people import People
from fleet.v1 import command_pb2, trust_pb2
from tests.properties.persons import ADA, BEN, intent, known, policy, rule, signed_by
from tests.unit.fleet_node.commands.node import TestNode

SEALED = "probe.sealed"  # its driver says so
GATE = "probe.gate"  # the node's configuration says so
BOOM = "probe.boom"  # the policy says so
RULES = (rule("probe.sealed"), rule("probe.gate"), rule("probe.boom"), rule("probe.again"))


class Persons:
    """Implements `PeoplePort`."""

    def __init__(self) -> None:
        self.people: People = known(ruled=policy(*RULES))
        self.latest_signed_ms = 0


def wished(
    node: TestNode, ordered: str = SEALED, *, signed: trust_pb2.Signed | None = None, **changes: Any
) -> command_pb2.Command:
    """A command with an intent that fits it."""
    command: command_pb2.Command = node.command(ordered, ttl_ms=changes.pop("ttl_ms", 60_000))
    statement = intent(**({"action": ordered, "arguments": command.arguments} | changes))
    command.intent.CopyFrom(signed or signed_by(ADA, BEN, statement=statement))
    return command


async def refused(node: TestNode, command: command_pb2.Command) -> str:
    await node.give(command)
    report = await node.wait_reported(command, "REJECTED")
    assert report.error
    assert command.command_id not in node.probe.runs
    assert node.metrics.intent_refusals.labels(report.reason).value >= 1
    return str(report.reason)
