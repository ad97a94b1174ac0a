"""After `fleet-server db restored` every node may come as it is, once."""

import pytest

from fleet.errors import Reason, Refusal
from fleet_server.audit.service import AuditCursor
from fleet_server.nodes.record import NodeState
from fleet_server.restored import note_restored
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
    assert await note_restored(database_url, world.secrets, world.clock, "the disk failed") == 2
    handed_on = await shown(node, ahead)
    assert await shown(other, ahead)
    assert await shown(node, handed_on) != handed_on
    with pytest.raises(Refusal) as refusal:
        await shown(node, ahead)
    assert refusal.value.reason is Reason.QUARANTINED
    assert (await world.nodes.get(node.node_id)).state is NodeState.QUARANTINED
    kinds = [row.kind for row in (await world.audit.page(AuditCursor())).rows]
    assert "database.restored" in kinds
