"""What a restarted process does with what the journal holds, and what a new stream is told again."""

import pytest

from fleet.v1 import command_pb2, gateway_pb2
from tests.unit.fleet_node.commands.node import TestNode


async def test_nothing_from_the_journal_runs_before_the_first_welcome(node: TestNode) -> None:
    running = [node.command("probe.gate", gate="g") for _ in range(4)]
    waiting = node.command()
    await node.give(*running, waiting)
    await node.crash()

    await node.restart()
    await node.clock.advance(10)
    assert node.probe.runs == []
    node.open_stream()

    await node.wait_reported(waiting, "SUCCEEDED")
    assert node.probe.runs == [waiting.command_id]


async def test_what_ran_is_interrupted_unless_it_is_idempotent(node: TestNode) -> None:
    gone, again = node.command("probe.gate", gate="g"), node.command("probe.again")
    await node.give(gone)
    await node.wait_reported(gone, "RUNNING")
    await node.give(again)
    await node.crash()  # the result of `again` never reached the disk, or it did: both are right

    await node.restart()
    node.open_stream()

    assert (await node.wait_reported(gone, "INTERRUPTED")).reason == "NODE_RESTARTED"
    await node.wait_reported(again, "SUCCEEDED")
    assert gone.command_id not in node.probe.runs


async def test_a_cancel_of_what_waits_to_run_again_leaves_its_first_run_unknown(node: TestNode) -> None:
    """Its report says INTERRUPTED; an answer that it never started would reach the server before that."""
    again = node.command("probe.again", gate="g")
    await node.give(again)
    await node.wait_reported(again, "RUNNING")
    await node.crash()
    await node.restart()
    node.open_stream(drained=True)

    assert await node.cancel(again) == command_pb2.CANCEL_OUTCOME_STOPPING

    assert (await node.wait_reported(again, "INTERRUPTED")).reason == "CANCELLED"


async def test_what_waited_too_long_while_the_node_was_away_expires(node: TestNode) -> None:
    running = [node.command("probe.gate", gate="g") for _ in range(4)]
    waiting = node.command(ttl_ms=5000)
    await node.give(*running, waiting)
    await node.crash()

    await node.clock.advance(6)
    await node.restart()
    node.open_stream()

    await node.wait_reported(waiting, "EXPIRED")
    assert waiting.command_id not in node.probe.runs


async def test_what_was_accepted_and_its_driver_is_gone_is_rejected(node: TestNode) -> None:
    node.service.drain(gateway_pb2.DrainNode(drain=True))
    command = node.command("probe.echo")
    await node.give(command)
    await node.crash()

    await node.restart()
    node.registry._offers.pop("probe.echo")
    node.open_stream()

    assert (await node.wait_reported(command, "REJECTED")).reason == "UNKNOWN_ACTION"


async def test_unacknowledged_reports_go_out_again_on_each_stream_and_after_a_restart(node: TestNode) -> None:
    commands = [node.command() for _ in range(3)]
    await node.give(*commands)
    for command in commands:
        await node.wait_reported(command, "SUCCEEDED")
    last = max(report.report_no for report in node.seen)
    node.service.acked(min(report.report_no for report in node.seen))

    node.seen.clear()
    node.open_stream(binding=b"n" * 32)
    assert [report.command_id for report in node.seen] == [command.command_id for command in commands[1:]]

    await node.service.close()
    await node.restart()
    hello = node.service.hello()
    assert (hello.first_report_no, hello.last_report_no) == (last - 1, last)
    assert hello.last_accepted_seq == 3
    node.open_stream()
    await node.wait_reported(commands[2], "SUCCEEDED")
    assert [report.command_id for report in node.seen] == [command.command_id for command in commands[1:]]


async def test_acknowledged_reports_are_gone(node: TestNode) -> None:
    command = node.command()
    await node.give(command)
    await node.wait_reported(command, "SUCCEEDED")

    node.ack()

    assert node.service.hello().first_report_no == 0
    node.open_stream(binding=b"n" * 32)
    assert node.collect() == []


async def test_an_acknowledgement_cannot_reach_beyond_what_was_given_out(node: TestNode) -> None:
    node.service.acked(10**6)
    command = node.command()

    await node.give(command)
    await node.wait_reported(command, "SUCCEEDED")

    assert node.service.hello().first_report_no > 0


@pytest.mark.parametrize("rounds", [3])
async def test_report_numbers_grow_over_restarts(node: TestNode, rounds: int) -> None:
    numbers: list[int] = []
    for _ in range(rounds):
        command = node.command()
        await node.give(command)
        numbers.append((await node.wait_reported(command, "SUCCEEDED")).report_no)
        node.ack()
        await node.service.close()
        await node.restart()
        node.open_stream()

    assert numbers == sorted(set(numbers))
