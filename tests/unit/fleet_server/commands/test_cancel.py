"""A cancel and a command have one truth between them, whoever is first."""

import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import command_pb2 as wire
from fleet_server.commands.service import CancelOrder, PendingCommand
from tests.unit.fleet_server.commands.room import Room, order, report


async def sent(room: Room) -> tuple[str, int, PendingCommand]:
    """A node, its epoch, and a command that was signed for it."""
    node = await room.add_node("n1")
    epoch = await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1"))
    return node.node_id, epoch, (await room.claim(node.node_id))[0]


def answer(command: PendingCommand, outcome: int) -> wire.CancelResult:
    return wire.CancelResult(
        command_id=command.command_id,
        monotonic_seq=command.seq,
        outcome=wire.CancelOutcome.ValueType(outcome),
    )


async def test_before_the_first_signature_the_server_decides(room: Room) -> None:
    node = await room.add_node("n1")
    epoch = await room.open_stream(node.node_id)
    issued = await room.commands.issue("alice", order("n1", count=2))
    view = (await room.commands.cancel("bob", [issued.issued[0].command_id]))[0]
    assert (view.state, view.reason, view.cancel_requested) == (
        wire.COMMAND_STATE_CANCELLED,
        "CANCELLED_BEFORE_SENDING",
        False,
    )
    assert [each.seq for each in await room.claim(node.node_id)] == [2]
    assert await room.commands.pending_cancels(node.node_id, epoch) == []


async def test_after_it_only_the_node_answers(room: Room) -> None:
    node_id, epoch, command = await sent(room)
    woken: list[None] = []
    room.wakeup.subscribe(f"cancel:{node_id}", lambda: woken.append(None))
    view = (await room.commands.cancel("bob", [command.command_id]))[0]
    assert (view.state, view.cancel_requested) == (wire.COMMAND_STATE_SENT, True)
    assert woken
    wanted = [CancelOrder(command.command_id, 1, "bob")]
    assert await room.commands.pending_cancels(node_id, epoch) == wanted
    assert await room.commands.pending_cancels(node_id, epoch) == wanted  # until it is answered
    await room.commands.record_cancel_result(node_id, epoch, answer(command, wire.CANCEL_OUTCOME_TOMBSTONED))
    view = await room.commands.get(command.command_id)
    assert (view.state, view.cancel_requested) == (wire.COMMAND_STATE_CANCELLED, False)
    assert await room.commands.pending_cancels(node_id, epoch) == []


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (wire.CANCEL_OUTCOME_TOMBSTONED, wire.COMMAND_STATE_CANCELLED),
        (wire.CANCEL_OUTCOME_CANCELLED, wire.COMMAND_STATE_CANCELLED),
        (wire.CANCEL_OUTCOME_STOPPING, wire.COMMAND_STATE_SENT),
        (wire.CANCEL_OUTCOME_ALREADY_FINISHED, wire.COMMAND_STATE_SENT),
        (wire.CANCEL_OUTCOME_FORGOTTEN, wire.COMMAND_STATE_INTERRUPTED),
        (99, wire.COMMAND_STATE_SENT),
    ],
)
async def test_every_answer_ends_the_asking(room: Room, outcome: int, state: int) -> None:
    node_id, epoch, command = await sent(room)
    await room.commands.cancel("bob", [command.command_id])
    await room.commands.record_cancel_result(node_id, epoch, answer(command, outcome))
    view = await room.commands.get(command.command_id)
    assert (view.state, view.cancel_requested) == (state, False)
    assert await room.commands.pending_cancels(node_id, epoch) == []
    # The row is whole: it may be signed again on the next stream.
    await room.open_stream(node_id)
    assert len(await room.claim(node_id)) == (1 if state == wire.COMMAND_STATE_SENT else 0)


async def test_it_never_reads_cancelled_for_something_that_ran(room: Room) -> None:
    node_id, epoch, command = await sent(room)
    await room.commands.cancel("bob", [command.command_id])
    await room.commands.record_reports(node_id, [report(command, wire.COMMAND_STATE_SUCCEEDED)])
    await room.commands.record_cancel_result(node_id, epoch, answer(command, wire.CANCEL_OUTCOME_CANCELLED))
    view = await room.commands.get(command.command_id)
    assert (view.state, view.cancel_requested) == (wire.COMMAND_STATE_SUCCEEDED, False)


async def test_a_cancel_that_waits_is_found_after_a_restart(room: Room) -> None:
    node_id, epoch, command = await sent(room)
    await room.commands.cancel("bob", [command.command_id])
    room.commands._cancels._waiting.clear()
    await room.commands.load()
    assert [each.command_id for each in await room.commands.pending_cancels(node_id, epoch)] == [command.command_id]


async def test_cancels_belong_to_the_newest_stream(room: Room) -> None:
    node_id, epoch, command = await sent(room)
    await room.commands.cancel("bob", [command.command_id])
    await room.open_stream(node_id)
    with pytest.raises(Refusal) as refused:
        await room.commands.pending_cancels(node_id, epoch)
    assert refused.value.reason == Reason.SUPERSEDED


async def test_a_whole_issue(room: Room) -> None:
    first, _ = await room.add_node("n1"), await room.add_node("n2")
    await room.open_stream(first.node_id)
    issued = await room.commands.issue("alice", order("*", count=2))
    await room.claim(first.node_id, limit=1)
    await room.commands.cancel("bob", issue_id=issued.issue_id)
    views = await room.views(issued.issue_id)
    assert sorted((view.node_name, view.monotonic_seq, view.state, view.cancel_requested) for view in views) == [
        ("n1", 1, wire.COMMAND_STATE_SENT, True),
        ("n1", 2, wire.COMMAND_STATE_CANCELLED, False),
        ("n2", 1, wire.COMMAND_STATE_CANCELLED, False),
        ("n2", 2, wire.COMMAND_STATE_CANCELLED, False),
    ]
    assert (await room.audited("command.cancel_requested"))[0]["cancelled_count"] == 3


async def test_what_does_not_exist_cannot_be_cancelled(room: Room) -> None:
    issued = (await room.add_node("n1")) and await room.commands.issue("alice", order("n1"))
    cases: list[tuple[list[bytes], str, Reason]] = [
        ([issued.issued[0].command_id, b"x" * 16], "", Reason.NOT_FOUND),
        ([], "no-such-issue", Reason.NOT_FOUND),
        ([], "", Reason.INVALID_ARGUMENT),
        ([b"short"], "", Reason.INVALID_ARGUMENT),
        ([b"x" * 16], issued.issue_id, Reason.INVALID_ARGUMENT),
    ]
    for command_ids, issue_id, reason in cases:
        with pytest.raises(Refusal) as refused:
            await room.commands.cancel("bob", command_ids, issue_id)
        assert refused.value.reason == reason
    assert {view.state for view in await room.views(issued.issue_id)} == {wire.COMMAND_STATE_QUEUED}
