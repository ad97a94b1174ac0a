"""What a revocation leaves to do, over both databases: it stays, and reminds, until somebody says that it is done."""

from typing import Any

import pytest

from fleet.errors import Reason
from fleet_server.nodes.checklist import ChecklistItem
from tests.unit.fleet_server.nodes.test_service import refused
from tests.unit.fleet_server.sessions.world import World

ITEMS = ["api-keys", "sessions", "join-token", "command-keys", "host-secrets"]


async def revoked(world: World, **token: Any) -> list[ChecklistItem]:
    node = await world.member(**token)
    await node.connect()
    await world.nodes.set_state("ada", ["node-1"], "REVOKED", "stolen")
    return (await world.nodes.checklist("node-1"))[1]


async def test_what_the_revocation_did_is_ticked_and_what_people_have_to_do_is_open(world: World) -> None:
    items = await revoked(world)
    assert [item.item for item in items] == ITEMS
    assert [item.item for item in items if not item.done_at_ms] == ["host-secrets"]
    assert {item.done_by for item in items if item.done_at_ms} == {"server"}
    assert await world.value("SELECT count(*) FROM sessions") == 0
    assert "is USED" in items[2].detail
    assert "public keys alone" in items[3].detail


async def test_a_join_token_that_still_lets_somebody_in_is_left_to_do(world: World) -> None:
    items = await revoked(world, max_uses=5)
    assert [item.item for item in items if not item.done_at_ms] == ["join-token", "host-secrets"]
    assert "still lets in 4 more" in items[2].detail
    assert "fleetctl join-token revoke" in items[2].detail


async def test_it_stays_until_every_item_is_ticked_and_the_audit_has_each(world: World) -> None:
    await revoked(world, max_uses=5)
    assert (await world.node("node-1")).checklist_open == 2
    node, items = await world.nodes.tick("bob", "node-1", "host-secrets", "PLC password changed")
    assert node.checklist_open == 1
    assert (items[-1].done_by, items[-1].note) == ("bob", "PLC password changed")

    _, again = await world.nodes.tick("eve", "node-1", "host-secrets", "me too")
    assert again[-1] == items[-1], "what is done stays as it was said first"
    node, _ = await world.nodes.tick("bob", "node-1", "join-token", "revoked")
    assert node.checklist_open == 0
    assert (await world.audited()).count("node.checklist_ticked") == 2


@pytest.mark.parametrize(
    ("item", "note", "reason"),
    [
        ("nothing", "done", Reason.NOT_FOUND),
        ("host-secrets", "", Reason.INVALID_ARGUMENT),
        ("host-secrets", "  ", Reason.INVALID_ARGUMENT),
        ("host-secrets", "x" * 501, Reason.INVALID_ARGUMENT),
    ],
)
async def test_what_cannot_be_ticked(world: World, item: str, note: str, reason: Reason) -> None:
    await revoked(world)
    assert await refused(world.nodes.tick("ada", "node-1", item, note)) is reason
    assert (await world.node("node-1")).checklist_open == 1


async def test_a_node_that_was_not_revoked_has_none(world: World) -> None:
    await world.member()
    node, items = await world.nodes.checklist("node-1")
    assert (items, node.checklist_open) == ([], 0)
    assert await refused(world.nodes.tick("ada", "node-1", "host-secrets", "done")) is Reason.NOT_FOUND


async def test_revoking_again_keeps_the_list(world: World) -> None:
    await revoked(world)
    await world.nodes.tick("ada", "node-1", "host-secrets", "done")
    await world.nodes.set_state("ada", ["node-1"], "REVOKED", "again")
    assert (await world.node("node-1")).checklist_open == 0
