"""What a revocation leaves to do, over both databases: it stays, and reminds, until somebody says that it is done."""

from typing import Any

import pytest

from fleet.errors import Reason
from fleet_server.nodes.checklist import ChecklistItem
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.nodes.test_service import refused
from tests.unit.fleet_server.sessions.world import Node, World

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


async def replaced(world: World, clock: MockClock, name: str) -> None:
    await clock.advance(5)
    spare = Node(world, name=name)
    await spare.enroll(await world.token(max_uses=5))
    await world.enrollment.replace_node("carol", "node-1", spare.enrollment_id, reason="dead")
    await spare.fetch_bootstrap()


async def test_what_is_left_of_a_machine_before_stays_when_the_next_one_goes_as_well(
    world: World, clock: MockClock
) -> None:
    world.sessions.adopt_nodes(lambda _tx, _node_id, _replaced: 41)
    await world.member(max_uses=5)
    await replaced(world, clock, "spare-1")
    _, first = await world.nodes.checklist("node-1")
    await world.nodes.tick("bob", "node-1", "host-secrets", "PLC password changed")
    await replaced(world, clock, "spare-2")

    node, items = await world.nodes.checklist("node-1")

    assert [item.item for item in items] == ITEMS
    assert [item.item for item in items if not item.done_at_ms] == ["join-token", "host-secrets"]
    assert node.checklist_open == 2
    assert items[2].detail.endswith(f"Of a machine before: {first[2].detail}")
    assert "Of a machine before" not in items[4].detail, "that was done"
    await replaced(world, clock, "spare-3")
    _, items = await world.nodes.checklist("node-1")
    assert items[2].detail.count(first[2].detail) == 1
    assert items[2].detail.count("which let the node in") == 3
    assert [item.item for item in items if not item.done_at_ms] == ["join-token", "host-secrets"]


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
