"""Fault: statements that are withheld, repeated, reordered, truncated, or meant for somebody else.

The gateway is in the wrong hands and holds every key of the installation; the node is the product's own. Must hold:
each is refused with its reason, nothing of it runs, and what is repeated is reported again and not run again.
"""

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fleet.envelope import Domain, Signer
from fleet.errors import Reason
from fleet.v1 import command_pb2, trust_pb2
from tests.fakes.rogue import FINAL_STATES, RogueGateway, RogueStream, command, tampered
from tests.integration.installation import Installation, RunningNode

SUCCEEDED = command_pb2.COMMAND_STATE_SUCCEEDED
NOOP = "simulated.noop"


@pytest.fixture
async def rogue(installation: Installation) -> AsyncIterator[RogueGateway]:
    """The gateway, taken over."""
    async with RogueGateway(installation.stolen()) as gateway:
        yield gateway


@pytest.fixture
async def node(installation: Installation, rogue: RogueGateway) -> RunningNode:
    """A node that was enrolled with the true server, and is led to the other one."""
    return await installation.add_node("n-1", endpoints=(rogue.endpoint,))


@pytest.fixture
async def stream(rogue: RogueGateway, node: RunningNode) -> RogueStream:
    """Its stream."""
    return await rogue.wait_stream()


async def runs_alone(node: RunningNode, stream: RogueStream, seq: int = 1) -> None:
    """The stream still works, and what was refused before has left no trace."""
    before = node.runs()
    order = command(NOOP, seq)
    stream.send_statement([order], prev_seq=seq - 1)
    await stream.wait_report(order, FINAL_STATES)
    assert node.runs() - before == {order.command_id.hex(): 1}


async def refused(stream: RogueStream, signed: trust_pb2.Signed) -> str:
    digest = hashlib.sha256(signed.statement).digest()
    answer = await stream.wait_control("statement_refused", lambda body: body.statement_sha256 == digest)
    assert answer.detail
    assert answer.bundle_version.generation == 1
    return str(answer.reason)


async def test_withheld_and_released_on_a_later_stream(
    rogue: RogueGateway, node: RunningNode, stream: RogueStream
) -> None:
    order = command(NOOP, 1)
    statement = stream.statement([order]).SerializeToString()
    withheld = rogue.trust.command_key.sign(Domain.COMMAND, statement)
    stream.end()
    later = await rogue.wait_stream(2)

    later.send_signed(withheld)

    assert await refused(later, withheld) == "WRONG_STREAM"
    await runs_alone(node, later)


async def test_duplicates_are_reported_again_and_run_once(node: RunningNode, stream: RogueStream) -> None:
    order = command(NOOP, 1)
    signed = stream.send_statement([order])
    await stream.wait_report(order, FINAL_STATES)
    for _ in range(5):
        stream.send_signed(signed)
    await runs_alone(node, stream, seq=2)
    assert node.runs()[order.command_id.hex()] == 1
    finals = [report for report in stream.reports(order) if report.state in FINAL_STATES]
    assert {report.state for report in finals} == {SUCCEEDED}


async def test_reordered_statements_are_a_gap_until_what_is_missing_comes(
    node: RunningNode, stream: RogueStream
) -> None:
    first, second = command(NOOP, 1), command(NOOP, 2)
    early = stream.send_statement([second], prev_seq=1)
    assert await refused(stream, early) == "GAP"
    assert not node.runs()

    stream.send_statement([first], prev_seq=0)
    stream.send_signed(early)

    await stream.wait_report(second, FINAL_STATES)
    assert node.runs() == {first.command_id.hex(): 1, second.command_id.hex(): 1}


@pytest.mark.parametrize("keep", [0, 1, 10, -1])
async def test_truncated(node: RunningNode, stream: RogueStream, keep: int) -> None:
    statement = stream.statement([command(NOOP, 1)]).SerializeToString()
    whole = stream.trust.command_key.sign(Domain.COMMAND, statement)
    torn = trust_pb2.Signed(statement=statement[:keep], signatures=whole.signatures)
    stream.send_signed(torn)
    assert await refused(stream, torn) == "BAD_SIGNATURE"
    await runs_alone(node, stream)


async def test_truncated_and_signed_again(node: RunningNode, stream: RogueStream) -> None:
    statement = stream.statement([command(NOOP, 1)]).SerializeToString()[:-3]
    torn = stream.trust.command_key.sign(Domain.COMMAND, statement)
    stream.send_signed(torn)
    assert await refused(stream, torn) == "MALFORMED"
    await runs_alone(node, stream)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"node_id": "nd_other"}, "WRONG_NODE"),
        ({"cluster_id": "c-other"}, "WRONG_CLUSTER"),
        ({"stream_binding": bytes(32)}, "WRONG_STREAM"),
        ({"prev_seq": 7}, "MALFORMED"),
    ],
    ids=["foreign node", "foreign cluster", "foreign stream", "prev"],
)
async def test_not_for_this_node(node: RunningNode, stream: RogueStream, changes: dict[str, Any], reason: str) -> None:
    signed = stream.send_statement([command(NOOP, 1)], **changes)
    assert await refused(stream, signed) == reason
    await runs_alone(node, stream)


@pytest.mark.parametrize(
    "commands",
    [
        [],
        [command(NOOP, seq) for seq in range(1, 34)],
        [command(NOOP, 2), command(NOOP, 1)],
        [command(NOOP, 1), command(NOOP, 1)],
        [command(NOOP, 1, command_id=b"same" * 4), command(NOOP, 2, command_id=b"same" * 4)],
        [command(NOOP, 1, command_id=b"short")],
    ],
    ids=["empty", "too many", "unordered", "seq twice", "id twice", "short id"],
)
async def test_badly_made(node: RunningNode, stream: RogueStream, commands: list[command_pb2.Command]) -> None:
    signed = stream.send_statement(commands)
    assert await refused(stream, signed) == "MALFORMED"
    await runs_alone(node, stream)


async def test_signed_by_somebody_else(node: RunningNode, stream: RogueStream) -> None:
    stranger = stream.send_statement([command(NOOP, 1)], signer=Signer.generate())
    assert await refused(stream, stranger) == "UNKNOWN_KEY"
    stream.sent_seq = 0
    authority = stream.send_statement([command(NOOP, 1)], signer=stream.trust.authority)
    assert await refused(stream, authority) in ("UNKNOWN_KEY", "WRONG_SIGNER")
    stream.sent_seq = 0
    other_domain = stream.send_statement([command(NOOP, 1)], domain=Domain.CANCEL)
    assert await refused(stream, other_domain) == "BAD_SIGNATURE"
    await runs_alone(node, stream)


async def test_changed_after_signing(node: RunningNode, stream: RogueStream) -> None:
    def change(statement: command_pb2.CommandStatement) -> None:
        statement.commands[0].action = "simulated.work"

    statement = stream.statement([command(NOOP, 1)]).SerializeToString()
    changed = tampered(stream.trust.command_key.sign(Domain.COMMAND, statement), change)
    stream.send_signed(changed)
    assert await refused(stream, changed) == "BAD_SIGNATURE"
    await runs_alone(node, stream)


async def test_another_command_under_a_used_seq_is_loud_and_runs_nothing(
    node: RunningNode, stream: RogueStream
) -> None:
    order = command(NOOP, 1)
    stream.send_statement([order])
    await stream.wait_report(order, FINAL_STATES)

    impostor = command(NOOP, 1)
    stream.send_statement([impostor], prev_seq=0)

    answer = await stream.wait_control("command_refused")
    assert (answer.command_id, answer.reason) == (impostor.command_id, "SEQ_CONFLICT")
    assert "went back in time" in answer.detail
    assert node.runs() == {order.command_id.hex(): 1}


async def test_commands_whose_time_has_passed_are_journaled_and_not_run(node: RunningNode, stream: RogueStream) -> None:
    late = command(NOOP, 1, not_after_ms=1)
    stream.send_statement([late])
    report = await stream.wait_report(late, FINAL_STATES)
    assert report.state == command_pb2.COMMAND_STATE_EXPIRED
    await runs_alone(node, stream, seq=2)


async def test_a_seq_far_ahead_locks_nobody_out(node: RunningNode, stream: RogueStream) -> None:
    far = command(NOOP, 2**33)
    stream.send_statement([far])
    report = await stream.wait_report(far, FINAL_STATES)
    assert report.state == command_pb2.COMMAND_STATE_REJECTED
    await runs_alone(node, stream)


async def test_a_replayed_frame_ends_the_stream(rogue: RogueGateway, node: RunningNode, stream: RogueStream) -> None:
    """One layer below: whoever terminates TLS in between can repeat bytes, and gains nothing."""
    frame = stream.sealed(ping={"number": 1})
    stream.send_frame(frame)
    stream.send_frame(frame)
    await stream.wait_ended()
    await runs_alone(node, await rogue.wait_stream(2))


async def test_the_true_server_takes_over_where_the_rogue_one_left(
    installation: Installation, node: RunningNode, stream: RogueStream
) -> None:
    """Counters rise at hello: a seq that was used, by whomever, is never used again."""
    orders = [command(NOOP, seq) for seq in (1, 2, 3)]
    stream.send_statement(orders)
    await stream.wait_report(orders[-1], FINAL_STATES)
    await node.stop()
    object.__setattr__(node.settings, "endpoints", (installation.gateway,))

    await node.start(wait_live=False)
    await node.wait_refused(Reason.QUARANTINED)  # it shows a ratchet that the true server never handed on
    await installation.owner.adopt("n-1")
    await node.wait_live()

    (view,) = await installation.owner.run("n-1")
    assert (view.monotonic_seq, view.state) == (4, SUCCEEDED)
