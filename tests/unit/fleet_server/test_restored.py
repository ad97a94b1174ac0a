"""After `fleet-server db restored` every node may come as it is, once."""

import json

import pytest

from fleet.errors import Reason, Refusal
from fleet_server.audit.acceptance import Accepted
from fleet_server.audit.service import AuditCursor
from fleet_server.nodes.record import NodeState
from fleet_server.restored import note_restored
from fleet_server.sessions.ratchet import RESTORED_FOR_MS
from tests.fakes.audit_export import verify_export
from tests.unit.fleet_server.sessions.conftest import world
from tests.unit.fleet_server.sessions.world import Node, World

__all__ = ["world"]


async def shown(node: Node, ratchet: bytes) -> bytes:
    token, _ = await node.handshake()
    return (await node.claim(token, node.hello(token, ratchet=ratchet))).turn.handed_on


async def test_nodes_that_are_ahead_are_taken_once_and_held_to_the_ratchet_again(
    world: World, database_url: str
) -> None:
    node, other = await world.member(), await world.member("node-2")
    await shown(node, await shown(node, b""))
    ahead = b"a value from after the backup".ljust(32)
    noted = await note_restored(database_url, world.secrets, world.clock, "the disk failed", cluster_name="test")
    assert (noted.nodes, noted.left) == (2, ())
    assert noted.audit == Accepted()
    handed_on = await shown(node, ahead)
    assert await shown(other, ahead)
    assert await shown(node, handed_on) != handed_on
    with pytest.raises(Refusal) as refusal:
        await shown(node, ahead)
    assert refusal.value.reason is Reason.QUARANTINED
    assert (await world.nodes.get(node.node_id)).state is NodeState.QUARANTINED
    kinds = [row.kind for row in (await world.audit.page(AuditCursor())).rows]
    assert "database.restored" in kinds


async def test_what_a_restore_left_of_the_audit_is_taken_as_it_is_and_signed_again(
    world: World, database_url: str
) -> None:
    await world.member()
    trust = world.trust
    assert await world.audit.checkpoint(trust.sign_checkpoint, trust.cluster_id)
    await world.execute("DELETE FROM audit_newest")
    await world.execute("UPDATE audit_heads SET mac = ?", b"")
    await world.execute("INSERT INTO audit_checkpoints (number, position, at_ms, signed) VALUES (2, 1, 1, ?)", b"\xff")
    noted = await note_restored(database_url, world.secrets, world.clock, "the disk failed", cluster_name="test")
    assert set(noted.audit.chains) == {"r1"}  # that of what was spent is written again
    assert (noted.audit.checkpoint, noted.audit.removed) == (1, 1)
    assert await world.audit.checkpoint(trust.sign_checkpoint, trust.cluster_id)
    summary = await verify_export(world.audit, trust.cluster_id, {trust.authority.key_id: trust.authority.public_key})
    assert (summary.checkpoints, summary.uncovered_rows) == (2, 0)
    pages = [page async for page in world.audit.export()]
    told = [json.loads(row.detail) for page in pages for row in page.rows if row.kind == "database.restored"]
    assert told[0]["audit_checkpoint"] == 1


async def test_a_node_that_is_ahead_and_comes_a_month_later_has_to_be_adopted(world: World, database_url: str) -> None:
    node = await world.member()
    await shown(node, await shown(node, b""))
    await note_restored(database_url, world.secrets, world.clock, "the disk failed", cluster_name="test")
    world.clock.step_wall(RESTORED_FOR_MS / 1000)
    with pytest.raises(Refusal) as refusal:
        await shown(node, b"a value from after the backup".ljust(32))
    assert refusal.value.reason is Reason.QUARANTINED


async def test_a_node_whose_record_of_the_ratchet_was_changed_is_named_and_has_to_be_adopted(
    world: World, database_url: str
) -> None:
    node, other = await world.member(), await world.member("node-2")
    await shown(node, b"")
    await world.execute("UPDATE node_ratchets SET any_until_ms = 1 WHERE node_id = ?", other.node_id)
    noted = await note_restored(database_url, world.secrets, world.clock, "the disk failed", cluster_name="test")
    assert (noted.nodes, noted.left) == (1, ("node-2",))
    with pytest.raises(Refusal) as refusal:
        await shown(other, b"")
    assert refusal.value.reason is Reason.QUARANTINED
