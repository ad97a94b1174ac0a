"""Running: concurrency, order, limits, cancels, drains and the end of the process."""

import asyncio

import pytest

from fleet.v1 import gateway_pb2
from fleet.v1.command_pb2 import CancelOutcome
from fleet_node.commands.runner import CANCEL_GRACE_S
from tests.unit.fleet_node.commands.node import TestNode

DRAIN = gateway_pb2.DrainNode(drain=True)
RESUME = gateway_pb2.DrainNode(drain=False)


async def test_no_more_run_at_once_than_the_limit(node: TestNode) -> None:
    commands = [node.command("probe.gate", gate="g") for _ in range(10)]

    await node.give(*commands)
    await node.wait_reported(commands[9], "ACCEPTED")
    await node.probe.wait_started(4)
    node.probe.release("g")

    for command in commands:
        await node.wait_reported(command, "SUCCEEDED")
    assert node.probe.most_running == 4
    assert node.probe.runs == [command.command_id for command in commands]


async def test_commands_for_one_device_run_one_after_the_other_and_others_pass(node: TestNode) -> None:
    first = node.command("probe.gate", gate="g", device="arm")
    second = node.command("probe.echo", device="arm")
    other = node.command("probe.echo", device="leg")

    await node.give(first, second)
    await node.give(other)
    await node.wait_reported(other, "SUCCEEDED")
    assert node.probe.runs == [first.command_id, other.command_id]
    node.probe.release("g")

    await node.wait_reported(second, "SUCCEEDED")
    assert node.probe.runs == [first.command_id, other.command_id, second.command_id]


async def test_a_failing_driver_tells_nothing_of_its_inside(node: TestNode) -> None:
    command = node.command("probe.boom")

    await node.give(command)

    report = await node.wait_reported(command, "FAILED")
    assert report.reason == "DRIVER_ERROR"
    assert "hunter2" not in report.error


async def test_output_over_the_limit_is_left_out_and_said_to_be(node: TestNode) -> None:
    command = node.command("probe.large")

    await node.give(command)

    report = await node.wait_reported(command, "SUCCEEDED")
    assert report.output_truncated
    assert len(report.output) <= 256


async def test_over_its_time_a_run_is_stopped_and_failed(node: TestNode) -> None:
    command = node.command("probe.gate", gate="g")
    await node.give(command)
    await node.probe.wait_started(1)

    await node.clock.advance(30)

    assert (await node.wait_reported(command, "FAILED")).reason == "TIMEOUT"


@pytest.mark.parametrize("action", ["probe.stubborn", "probe.deaf"])
async def test_a_run_that_does_not_stop_is_given_up_and_its_slot_is_free(node: TestNode, action: str) -> None:
    commands = [node.command(action) for _ in range(4)]
    after = node.command("probe.echo")
    await node.give(*commands, after)
    await node.probe.wait_started(4)

    await node.clock.advance(30 + node.limits.stop_grace_s + CANCEL_GRACE_S)

    for command in commands:
        assert (await node.wait_reported(command, "INTERRUPTED")).reason == "TIMEOUT"
    await node.wait_reported(after, "SUCCEEDED")


async def test_a_cancel_stops_a_run(node: TestNode) -> None:
    command = node.command("probe.gate", gate="g")
    await node.give(command)
    await node.probe.wait_started(1)

    assert await node.cancel(command) == CancelOutcome.CANCEL_OUTCOME_STOPPING

    assert (await node.wait_reported(command, "CANCELLED")).reason == "CANCELLED"
    assert await node.cancel(command) == CancelOutcome.CANCEL_OUTCOME_ALREADY_FINISHED


async def test_a_cancelled_run_that_ended_in_time_keeps_its_result(node: TestNode) -> None:
    command = node.command("probe.deaf")
    await node.give(command)
    await node.probe.wait_started(1)

    assert await node.cancel(command) == CancelOutcome.CANCEL_OUTCOME_STOPPING
    node.probe.release("deaf")

    await node.wait_reported(command, "SUCCEEDED")


async def test_a_cancel_before_the_turn_keeps_a_command_from_running(node: TestNode) -> None:
    running = [node.command("probe.gate", gate="g") for _ in range(4)]
    waiting = node.command()
    await node.give(*running, waiting)

    assert await node.cancel(waiting) == CancelOutcome.CANCEL_OUTCOME_CANCELLED

    await node.wait_reported(waiting, "CANCELLED")
    node.probe.release("g")
    for command in running:
        await node.wait_reported(command, "SUCCEEDED")
    assert waiting.command_id not in node.probe.runs


async def test_a_cancel_behind_a_device_frees_those_behind_it(node: TestNode) -> None:
    first = node.command("probe.gate", gate="g", device="arm")
    second, third = node.command(device="arm"), node.command(device="arm")
    await node.give(first, second, third)

    assert await node.cancel(second) == CancelOutcome.CANCEL_OUTCOME_CANCELLED
    node.probe.release("g")

    await node.wait_reported(third, "SUCCEEDED")
    assert node.probe.runs == [first.command_id, third.command_id]


async def test_a_cancel_that_comes_first_leaves_a_tombstone_that_outlives_the_process(node: TestNode) -> None:
    command = node.command()

    assert await node.cancel(command) == CancelOutcome.CANCEL_OUTCOME_TOMBSTONED
    await node.crash()
    await node.restart()
    node.open_stream()
    await node.give(command)

    assert (await node.wait_reported(command, "CANCELLED")).reason == "CANCELLED"
    assert node.probe.runs == []


async def test_a_tombstone_stops_no_other_command(node: TestNode) -> None:
    cancelled = node.command()
    await node.cancel(cancelled)
    other = node.command(seq=cancelled.monotonic_seq)
    other.command_id = b"o" * 16

    await node.give(other)

    await node.wait_reported(other, "SUCCEEDED")


async def test_a_cancel_of_what_is_forgotten_or_another_says_so(node: TestNode) -> None:
    await node.give(node.command(seq=5))
    other = node.command(seq=5)
    other.command_id = b"o" * 16

    assert await node.cancel(node.command(seq=2)) == CancelOutcome.CANCEL_OUTCOME_FORGOTTEN
    assert await node.cancel(other) == CancelOutcome.CANCEL_OUTCOME_FORGOTTEN


async def test_a_cancel_gets_past_statements_that_wait_for_room(node: TestNode) -> None:
    node.limits = type(node.limits)(concurrency=1, max_waiting=2)
    await node.crash()
    await node.restart()
    node.open_stream()
    running = node.command("probe.gate", gate="g")
    waiting = [node.command() for _ in range(2)]
    late = node.command()
    await node.give(running, *waiting)
    blocked = asyncio.ensure_future(node.give(late))
    await node.clock.advance(0)
    assert node.service.hello().last_accepted_seq == 3

    assert await node.cancel(late) == CancelOutcome.CANCEL_OUTCOME_TOMBSTONED
    assert await node.cancel(waiting[0]) == CancelOutcome.CANCEL_OUTCOME_CANCELLED

    await blocked
    await node.wait_reported(late, "CANCELLED")
    node.probe.release("g")
    await node.wait_reported(waiting[1], "SUCCEEDED")


async def test_a_forged_cancel_stops_nothing(node: TestNode) -> None:
    command = node.command("probe.gate", gate="g")
    await node.give(command)
    frame = node.cancel_frame(command)
    frame.signed.signatures[0].value = bytes(64)

    await node.stream.cancel_frame(frame)

    assert (await node.wait_control("statement_refused")).reason == "BAD_SIGNATURE"
    node.probe.release("g")
    await node.wait_reported(command, "SUCCEEDED")


async def test_a_command_that_waits_too_long_expires(node: TestNode) -> None:
    running = [node.command("probe.gate", gate="g") for _ in range(4)]
    waiting = node.command(ttl_ms=3000)
    await node.give(*running, waiting)

    await node.clock.advance(5)

    await node.wait_reported(waiting, "EXPIRED")
    node.probe.release("g")
    await node.wait_reported(running[0], "SUCCEEDED")
    assert waiting.command_id not in node.probe.runs


async def test_a_draining_node_finishes_what_runs_and_keeps_what_waits(node: TestNode) -> None:
    running, late = node.command("probe.gate", gate="g"), node.command()
    await node.give(running)
    await node.probe.wait_started(1)

    node.service.drain(DRAIN)
    progress = await node.wait_control("drained")
    assert (progress.drained, progress.running) == (True, 1)
    await node.give(late)
    node.probe.release("g")
    await node.wait_reported(running, "SUCCEEDED")
    assert node.uplink.pop("drained") is None, "the server does not have its result yet"
    node.ack()
    done = await node.wait_control("drained")

    assert done.running == 0
    assert (done.drained, done.last_accepted_seq) == (True, 2)
    assert node.service.hello().drained
    assert late.command_id not in node.probe.runs
    node.service.drain(RESUME)
    assert not (await node.wait_control("drained")).drained
    await node.wait_reported(late, "SUCCEEDED")


async def test_the_drains_deadline_stops_what_runs(node: TestNode) -> None:
    command = node.command("probe.gate", gate="g")
    await node.give(command)
    await node.probe.wait_started(1)

    node.service.drain(gateway_pb2.DrainNode(drain=True, deadline_ms=5000))
    await node.clock.advance(5)

    assert (await node.wait_reported(command, "CANCELLED")).reason == "DRAIN_DEADLINE"


async def test_a_node_that_is_welcomed_drained_starts_nothing(node: TestNode) -> None:
    node.open_stream(binding=b"n" * 32, drained=True)
    command = node.command()

    await node.give(command)

    await node.wait_reported(command, "ACCEPTED")
    node.ack()
    assert (await node.wait_control("drained")).running == 0
    node.open_stream(binding=b"m" * 32, drained=False)
    await node.wait_reported(command, "SUCCEEDED")


async def test_an_orderly_end_stops_what_runs_and_reports_it_later(node: TestNode) -> None:
    command = node.command("probe.gate", gate="g")
    await node.give(command)
    await node.probe.wait_started(1)

    await node.service.close()
    await node.restart()
    node.open_stream()

    assert (await node.wait_reported(command, "CANCELLED")).reason == "NODE_SHUTDOWN"
    assert node.probe.runs == []


async def test_what_does_not_stop_at_the_end_is_interrupted_at_the_next_start(node: TestNode) -> None:
    command = node.command("probe.stubborn")
    await node.give(command)
    await node.probe.wait_started(1)

    closing = asyncio.ensure_future(node.service.close())
    await node.clock.advance(node.limits.stop_grace_s / 2)
    assert not closing.done()
    node.service._execution._runner._watchdog.cancel()  # type: ignore[union-attr]
    await node.clock.advance(node.limits.stop_grace_s + CANCEL_GRACE_S)
    await closing
    await node.restart()
    node.open_stream()

    assert (await node.wait_reported(command, "INTERRUPTED")).reason == "NODE_RESTARTED"
