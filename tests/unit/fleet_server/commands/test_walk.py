"""The way of a command from issue to result."""

from fleet.v1 import command_pb2 as wire
from tests.unit.fleet_server.commands.room import Room, order, report


async def test_issued_claimed_reported(room: Room) -> None:
    node = await room.add_node("n1")
    epoch = await room.open_stream(node.node_id)
    issued = await room.commands.issue("alice", order("n1", count=3))
    assert not issued.refused, issued.refused
    assert [command.monotonic_seq for command in issued.issued] == [1, 2, 3]
    assert issued.issued_count == 3
    assert not issued.refused

    claimed = await room.commands.claim_pending(node.node_id, epoch, after_seq=0, limit=32, key_id=b"k" * 16)
    assert [(each.seq, each.terms.actor, each.terms.action, each.terms.arguments) for each in claimed] == [
        (seq, "alice", "host.set", b'{"level": 1}') for seq in (1, 2, 3)
    ]
    assert [each.command_id for each in claimed] == [each.command_id for each in issued.issued]
    assert await room.commands.claim_pending(node.node_id, epoch, after_seq=3, limit=32) == []

    await room.commands.record_reports(
        node.node_id,
        [report(each, wire.COMMAND_STATE_ACCEPTED, accepted_at_ms=5) for each in claimed]
        + [report(claimed[0], wire.COMMAND_STATE_SUCCEEDED, output=b'{"ok":true}', finished_at_ms=7)],
    )
    views = await room.views(issued.issue_id)
    assert [view.state for view in views] == [
        wire.COMMAND_STATE_SUCCEEDED,
        wire.COMMAND_STATE_ACCEPTED,
        wire.COMMAND_STATE_ACCEPTED,
    ]
    assert (views[0].output, views[0].node_name, views[0].key_id) == (b'{"ok":true}', "n1", b"k" * 16)
    assert room.commands.open_counts(None, [node.node_id]) == {node.node_id: 2}  # type: ignore[arg-type]
    assert await room.commands.get(views[0].command_id) == views[0]
