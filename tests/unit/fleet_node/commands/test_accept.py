"""Statements and their commands: what is taken, and what is refused with which reason."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from fleet.envelope import Domain, Signer
from fleet.sequence import MAX_DETAIL_CHARS, MAX_SEQ_STEP
from fleet.v1 import command_pb2
from tests.unit.fleet_node.commands.node import TestNode


async def test_a_statement_runs_and_is_reported_in_order(node: TestNode) -> None:
    commands = [node.command(value=number) for number in range(5)]

    await node.give(*commands)

    reports = [await node.wait_reported(command, "SUCCEEDED") for command in commands]
    assert [report.output for report in reports] == [b'{"value":%d}' % number for number in range(5)]
    assert node.probe.runs == [command.command_id for command in commands]
    assert [report.report_no for report in node.seen] == sorted(report.report_no for report in node.seen)
    assert node.service.hello().last_accepted_seq == 5


async def test_what_ends_at_once_is_reported_once(node: TestNode) -> None:
    command = node.command()

    await node.give(command)
    await node.wait_reported(command, "SUCCEEDED")

    assert len(node.seen) == 1
    report = node.seen[0]
    assert report.accepted_at_ms == report.started_at_ms == report.finished_at_ms == node.clock.now_ms()


async def test_what_takes_its_time_is_reported_when_it_starts(node: TestNode) -> None:
    command = node.command("probe.gate", gate="g")

    await node.give(command)
    await node.wait_reported(command, "RUNNING")
    node.probe.release("g")

    assert (await node.wait_reported(command, "SUCCEEDED")).output == b"{}"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cluster_id": "other"}, "WRONG_CLUSTER"),
        ({"node_id": "other"}, "WRONG_NODE"),
        ({"stream_binding": b"x" * 32}, "WRONG_STREAM"),
        ({"prev_seq": 1}, "GAP"),
        ({"commands": []}, "MALFORMED"),
    ],
)
async def test_a_statement_that_is_not_for_this_stream_changes_nothing(
    node: TestNode, changes: dict[str, Any], reason: str
) -> None:
    command = node.command(seq=2)

    await node.stream.command_frame(node.frame(command, **{"prev_seq": 0} | changes))

    refused = await node.wait_control("statement_refused")
    assert refused.reason == reason
    assert refused.last_accepted_seq == 0
    assert refused.key_id == node.signer.key_id
    assert (refused.bundle_version.generation, refused.bundle_version.number) == (1, 7)
    assert node.probe.runs == []


async def test_forged_truncated_and_foreign_signatures_are_refused(node: TestNode) -> None:
    good = node.frame(node.command()).signed
    forged = command_pb2.CommandFrame()
    forged.signed.CopyFrom(good)
    forged.signed.statement += b"\x00"
    stranger = Signer.generate().sign(Domain.COMMAND, good.statement)
    wrong_domain = node.signer.sign(Domain.CANCEL, good.statement)
    garbage = node.signer.sign(Domain.COMMAND, b"\xff\xff\xff")

    reasons = []
    for frame in (
        forged,
        command_pb2.CommandFrame(signed=stranger),
        command_pb2.CommandFrame(signed=wrong_domain),
        command_pb2.CommandFrame(signed=garbage),
        command_pb2.CommandFrame(),
    ):
        await node.stream.command_frame(frame)
        reasons.append((await node.wait_control("statement_refused")).reason)

    assert reasons == ["BAD_SIGNATURE", "UNKNOWN_KEY", "BAD_SIGNATURE", "MALFORMED", "MALFORMED"]
    assert node.probe.runs == []


async def test_a_statement_of_no_time_disables_nothing(node: TestNode) -> None:
    command = node.command()
    await node.give(command, signed_at_ms=2**63 - 1)
    assert (await node.wait_control("statement_refused")).reason == "MALFORMED"
    await node.stream.command_frame(node.frame(command))
    await node.wait_reported(command, "SUCCEEDED")


async def test_what_a_refusal_quotes_is_cut_before_it_is_logged_audited_or_answered(
    node: TestNode,
) -> None:
    foreign = node.frame(node.command(), node_id="\x01" * 100_000)
    stranger = node.frame(node.command())
    stranger.signed.signatures[0].key_id = b"k" * 100_000
    with capture_logs() as logs:
        for frame in (foreign, stranger):
            await node.stream.command_frame(frame)
            refused = await node.wait_control("statement_refused")
            assert len(refused.SerializeToString()) < 2 * MAX_DETAIL_CHARS
    assert logs
    assert len(str(logs)) < 20 * MAX_DETAIL_CHARS


async def test_an_older_streams_statement_is_ignored_once_a_newer_one_was_welcomed(node: TestNode) -> None:
    older, frame = node.stream, node.frame(node.command())
    node.open_stream(binding=b"n" * 32)

    await older.command_frame(frame)

    assert node.service.hello().last_accepted_seq == 0
    assert node.uplink.controls == []
    assert older.next_reports() == []


@pytest.mark.parametrize(
    ("action", "arguments", "reason"),
    [
        ("probe.nothing", {}, "UNKNOWN_ACTION"),
        ("x" * 5000, {}, "UNKNOWN_ACTION"),
        ("probe.echo", {"value": "text"}, "ARGUMENTS_INVALID"),
        ("probe.sealed", {}, "NO_OWNER_PIN"),
    ],
)
async def test_a_command_that_cannot_be_taken_is_rejected_and_its_neighbours_run(
    node: TestNode, action: str, arguments: dict[str, Any], reason: str
) -> None:
    before, bad, after = node.command(), node.command(action, **arguments), node.command()

    await node.give(before, bad, after)

    report = await node.wait_reported(bad, "REJECTED")
    assert report.reason == reason
    assert report.error
    await node.wait_reported(after, "SUCCEEDED")
    assert node.probe.runs == [before.command_id, after.command_id]
    assert node.service.hello().last_accepted_seq == 3


async def test_a_late_command_expires_and_its_seq_counts(node: TestNode) -> None:
    command = node.command(ttl_ms=1000)
    await node.clock.advance(2)

    await node.give(command)

    assert (await node.wait_reported(command, "EXPIRED")).started_at_ms == 0
    assert node.service.hello().last_accepted_seq == 1


async def test_a_statements_own_time_of_signing_is_a_floor_for_server_time(node: TestNode) -> None:
    command = node.command(ttl_ms=1000)
    later_ms = node.clock.now_ms() + 5000

    await node.give(command, signed_at_ms=later_ms)

    await node.wait_reported(command, "EXPIRED")


async def test_a_seq_too_far_ahead_is_rejected_and_does_not_count(node: TestNode) -> None:
    far = node.command(seq=MAX_SEQ_STEP + 1)

    await node.give(far)

    assert (await node.wait_reported(far, "REJECTED")).reason == "SEQ_TOO_FAR"
    assert node.service.hello().last_accepted_seq == 0


async def test_a_seq_that_the_journal_cannot_hold_is_malformed(node: TestNode) -> None:
    await node.give(node.command(seq=2**63))

    assert (await node.wait_control("statement_refused")).reason == "MALFORMED"


async def test_a_replay_is_reported_again_and_does_not_run(node: TestNode) -> None:
    command = node.command()
    await node.give(command)
    first = await node.wait_reported(command, "SUCCEEDED")
    node.ack()

    await node.give(command)

    again = await node.wait_report(command, lambda report: report.report_no > first.report_no)
    assert (again.state, again.output) == (first.state, first.output)
    assert len(node.probe.runs) == 1


async def test_another_command_at_a_used_seq_is_a_conflict(node: TestNode) -> None:
    first = node.command(value=1)
    await node.give(first)
    await node.wait_reported(first, "SUCCEEDED")

    await node.give(node.command(seq=1, value=2))

    assert (await node.wait_control("command_refused")).reason == "SEQ_CONFLICT"
    assert len(node.probe.runs) == 1


async def test_what_the_journal_has_trimmed_is_forgotten_and_does_not_run(node: TestNode) -> None:
    first, second = node.command(), node.command(seq=5)
    await node.give(second)

    await node.give(first)

    refused = await node.wait_control("command_refused")
    assert (refused.reason, refused.monotonic_seq) == ("FORGOTTEN", 1)
    assert node.probe.runs == [second.command_id]


async def test_a_statement_may_mix_replays_and_new_commands(node: TestNode) -> None:
    first = node.command()
    await node.give(first)
    second = node.command()

    await node.give(first, second)

    await node.wait_reported(second, "SUCCEEDED")
    assert node.probe.runs == [first.command_id, second.command_id]


async def test_frames_taken_at_once_keep_their_order(node: TestNode) -> None:
    commands = [node.command() for _ in range(20)]
    frames = [node.frame(command, prev_seq=command.monotonic_seq - 1) for command in commands]

    await asyncio.gather(*(node.stream.command_frame(frame) for frame in frames))

    await node.wait_reported(commands[-1], "SUCCEEDED")
    assert node.probe.runs == [command.command_id for command in commands]
    assert node.uplink.controls == []
