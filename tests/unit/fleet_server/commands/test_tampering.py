"""Writing to the database commands nothing: what was changed around the server is set aside, audited, never signed."""

from collections.abc import Sequence
from typing import Any

import pytest

from fleet.v1 import admin_pb2
from fleet.v1 import command_pb2 as wire
from fleet_server.commands.service import CommandService
from fleet_server.trust.secrets import RowMac
from tests.unit.fleet_server.commands.room import CLUSTER, ROW_KEY, Room, order


def restarted(room: Room) -> CommandService:
    """The same database under a process that remembers nothing."""
    room.commands = CommandService(
        database=room.database,
        clock=room.clock,
        wakeup=room.wakeup,
        audit=room.audit,
        nodes=room.nodes,
        metrics=room.metrics.commands,
        row_mac=RowMac(ROW_KEY, "commands"),
        cluster_id=CLUSTER,
    )
    return room.commands


OTHER_SPECS = admin_pb2.IssueCommandsRequest(
    commands=[admin_pb2.CommandSpec(action="host.set", arguments=b'{"level": 10}')] * 2
).SerializeToString()
OTHER_ACTION = admin_pb2.IssueCommandsRequest(
    commands=[admin_pb2.CommandSpec(action="host.wipe", arguments=b'{"level": 1}')] * 2
).SerializeToString()


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ("UPDATE command_issues SET specs = ?", [OTHER_SPECS]),
        ("UPDATE command_issues SET specs = ?", [OTHER_ACTION]),
        ("UPDATE command_issues SET specs = ?", [b"\xff\xff"]),
        ("UPDATE command_issues SET actor = ?", ["owner"]),
        ("UPDATE command_issues SET issued_at_ms = issued_at_ms + 1", []),
        ("UPDATE command_issues SET not_after_ms = not_after_ms + 1000", []),
        ("UPDATE command_issues SET cluster_id = ?", ["other"]),
        ("UPDATE commands SET not_after_ms = not_after_ms + 1000", []),
        ("UPDATE commands SET seq = seq + 10", []),
        ("UPDATE commands SET spec_no = 1 - spec_no", []),
        ("UPDATE commands SET spec_no = 7", []),
        ("UPDATE commands SET issue_id = ?", ["none"]),
        ("UPDATE commands SET cancel_requested_by = ?", ["mallory"]),
        ("UPDATE commands SET mac = ?", [bytes(32)]),
    ],
)
async def test_a_changed_row_is_never_handed_out(room: Room, change: str, fields: Sequence[Any]) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    issued = await room.commands.issue("alice", order("n1", count=2))
    shown = [await room.commands.get(command.command_id) for command in issued.issued]
    assert [view.unverified for view in shown] == [False, False]
    await room.tamper(change, *fields)
    restarted(room)
    shown = [await room.commands.get(command.command_id) for command in issued.issued]
    shown += (await room.commands.list_page(admin_pb2.ListCommandsRequest(node="n1"))).commands
    assert [view.unverified for view in shown] == [True] * 4
    assert await room.claim(node.node_id) == []
    states = await room.query("SELECT state FROM commands")
    assert states == [(wire.COMMAND_STATE_QUARANTINED,)] * 2
    assert len(await room.audited("command.quarantined")) == 2
    for command in issued.issued:
        assert (await room.commands.get(command.command_id)).state == wire.COMMAND_STATE_QUARANTINED


async def test_what_is_in_memory_is_what_was_ordered(room: Room) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1"))
    await room.tamper("UPDATE command_issues SET specs = ?", OTHER_SPECS)
    assert [each.terms.arguments for each in await room.claim(node.node_id)] == [b'{"level": 1}']


async def test_a_row_copied_to_another_node_is_never_handed_out(room: Room) -> None:
    first, second = await room.add_node("n1"), await room.add_node("n2")
    await room.open_stream(second.node_id)
    await room.commands.issue("alice", order("n1"))
    await room.tamper(
        "INSERT INTO commands (node_id, seq, command_id, issue_id, spec_no, not_after_ms, mac, state)"
        " SELECT ?, seq, ?, issue_id, spec_no, not_after_ms, mac, 1 FROM commands WHERE node_id = ?",
        second.node_id,
        b"c" * 16,
        first.node_id,
    )
    assert await room.claim(second.node_id) == []
    assert await room.state(second.node_id, 1) == wire.COMMAND_STATE_QUARANTINED
    assert await room.state(first.node_id, 1) == wire.COMMAND_STATE_QUEUED


async def test_a_row_written_by_hand_is_set_aside_and_the_true_ones_go_on(room: Room) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    issued = await room.commands.issue("alice", order("n1"))
    await room.tamper(
        "INSERT INTO commands (node_id, seq, command_id, issue_id, spec_no, not_after_ms, mac, state)"
        " SELECT node_id, seq + 1, ?, issue_id, spec_no, not_after_ms, mac, 1 FROM commands",
        b"h" * 16,
    )
    claimed = await room.claim(node.node_id)
    assert [each.command_id for each in claimed] == [issued.issued[0].command_id]
    assert await room.state(node.node_id, 2) == wire.COMMAND_STATE_QUARANTINED
    assert room.metrics.audit.quarantined.labels("commands").value == 1


async def test_a_cancel_written_by_hand_is_not_signed(room: Room) -> None:
    node = await room.add_node("n1")
    epoch = await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1"))
    await room.claim(node.node_id)
    await room.tamper("UPDATE commands SET cancel_requested_by = 'mallory'")
    await room.commands.load()
    assert await room.commands.pending_cancels(node.node_id, epoch) == []
    assert len(await room.audited("command.quarantined")) == 1


async def test_a_forged_row_gets_no_true_mac_by_cancelling_it(room: Room) -> None:
    node = await room.add_node("n1")
    epoch = await room.open_stream(node.node_id)
    issued = await room.commands.issue("alice", order("n1"))
    await room.claim(node.node_id)
    await room.tamper("UPDATE commands SET not_after_ms = not_after_ms + 1000")
    await room.commands.cancel("alice", [issued.issued[0].command_id])
    assert await room.commands.pending_cancels(node.node_id, epoch) == []
    assert await room.state(node.node_id, 1) == wire.COMMAND_STATE_QUARANTINED


async def test_values_of_the_wrong_type_stop_nothing(room: Room) -> None:
    if room.database.dialect != "sqlite":
        pytest.skip("PostgreSQL refuses them itself")
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1", count=4))
    await room.tamper("UPDATE commands SET mac = 'text' WHERE seq = 1")
    await room.tamper("UPDATE commands SET spec_no = 'text' WHERE seq = 2")
    await room.tamper("UPDATE commands SET command_id = 'sixteen letters!' WHERE seq = 3")
    assert [each.seq for each in await room.claim(node.node_id)] == [4]
