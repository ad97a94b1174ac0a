"""What a hello shows of the ratchet decides whether its machine is the node."""

import json

import pytest

from fleet.errors import Reason, Refusal
from fleet.people import CLOCK_SLACK_MS
from fleet_server.audit.service import AuditCursor
from fleet_server.database.engine import sql
from fleet_server.nodes.record import NodeState
from fleet_server.sessions.ratchet import ADOPTED_FOR_MS, Verdict
from tests.unit.fleet_server.sessions.world import Node, World, hello_body


async def shown(node: Node, ratchet: bytes, boot_id: bytes = b"") -> bytes:
    """Connect and show a value; what the welcome would hand on."""
    token, _ = await node.handshake()
    hello = node.hello(token, ratchet=ratchet, body=hello_body(boot_id=boot_id))
    return (await node.claim(token, hello)).turn.handed_on


async def quarantined(node: Node, ratchet: bytes, boot_id: bytes = b"") -> str:
    with pytest.raises(Refusal) as refusal:
        await shown(node, ratchet, boot_id)
    assert refusal.value.reason is Reason.QUARANTINED
    return refusal.value.detail


async def test_each_welcome_hands_on_a_fresh_value_once_the_last_one_is_confirmed(world: World) -> None:
    node = await world.member()
    first = await shown(node, b"")
    assert len(first) == 32
    assert await shown(node, b"") == first  # the welcome got lost
    second = await shown(node, first)
    assert second != first
    assert await shown(node, first) == second
    assert await shown(node, second) not in (first, second)


@pytest.mark.parametrize("stale", [b"", b"made up", b"\x00" * 32])
async def test_anything_else_sets_the_node_aside_and_the_right_value_too_from_then_on(
    world: World, stale: bytes
) -> None:
    node = await world.member()
    first = await shown(node, b"")
    second = await shown(node, first)
    assert "aside" in await quarantined(node, stale)
    record = await world.nodes.get(node.node_id)
    assert (record.state, record.intact) == (NodeState.QUARANTINED, True)
    with pytest.raises(Refusal) as refusal:
        await shown(node, second)
    assert refusal.value.reason is Reason.QUARANTINED
    assert "adopt" in refusal.value.detail


async def test_an_adopted_node_is_whoever_comes_next_and_nobody_after(world: World) -> None:
    node = await world.member()
    first = await shown(node, b"")
    await shown(node, await shown(node, first))
    await quarantined(node, first)
    world.sessions.adopt_nodes(lambda _tx, node_id, _replaced: 7 if node_id == node.node_id else 0)
    [adopted] = await world.nodes.adopt("carol", [node.name], "restored from the image of Monday")
    assert adopted.state is NodeState.ACTIVE
    token, _ = await node.handshake()
    turn = (await node.claim(token, node.hello(token, ratchet=first))).turn
    assert (turn.seq_floor, turn.floor_at_ms) == (7, world.clock.now_ms() + CLOCK_SLACK_MS)
    assert (turn.audit_chain, turn.starts_over) == (1, Verdict.FOREIGN)
    handed_on = turn.handed_on
    assert await shown(node, handed_on) != handed_on
    await quarantined(node, b"the other machine")


@pytest.mark.parametrize(("told", "chain"), [(0, 1), (4, 5), (2**32 - 1, 1001)])
async def test_a_machine_that_is_let_in_writes_a_chain_behind_every_one_that_is_known(
    world: World, told: int, chain: int
) -> None:
    node = await world.member()
    await shown(node, await shown(node, await shown(node, b"")))
    await quarantined(node, b"")
    world.sessions.adopt_nodes(lambda _tx, _node_id, _replaced: 0)
    await world.nodes.adopt("carol", [node.name], "")

    token, _ = await node.handshake()
    turn = (await node.claim(token, node.hello(token, ratchet=b"", body=hello_body(audit_chain=told)))).turn
    token, _ = await node.handshake()
    body = hello_body(audit_chain=chain + 7)
    after = (await node.claim(token, node.hello(token, ratchet=turn.handed_on, body=body))).turn

    assert (turn.audit_chain, after.audit_chain, after.starts_over) == (chain, chain, None)


async def test_only_a_node_with_a_sound_record_that_was_set_aside_is_adopted(world: World) -> None:
    node = await world.member()
    with pytest.raises(Refusal) as refusal:
        await world.nodes.adopt("carol", [node.name], "")
    assert refusal.value.reason is Reason.CONFLICT
    assert f"nothing was adopted: {node.name} is ACTIVE" in refusal.value.detail
    await world.database.write(lambda tx: tx.conn.exec_driver_sql("UPDATE nodes SET site = 'elsewhere'").rowcount)
    with pytest.raises(Refusal) as refusal:
        await world.nodes.adopt("carol", [node.name], "")
    assert refusal.value.reason is Reason.CONFLICT


async def test_resuming_is_no_way_around_adopting(world: World) -> None:
    node = await world.member()
    await shown(node, await shown(node, b""))
    await quarantined(node, b"")
    with pytest.raises(Refusal) as refusal:
        await world.nodes.set_state("carol", [node.name], "ACTIVE", "")
    assert refusal.value.reason is Reason.CONFLICT
    assert "adopt" in refusal.value.detail


@pytest.mark.parametrize("change", ["confirmed_sha256 = ?", "sealed_offer = ?", "any_until_ms = 9999999999999"])
async def test_a_record_that_was_changed_around_the_server_lets_nobody_in(world: World, change: str) -> None:
    node = await world.member()
    first = await shown(node, b"")
    fields = (b"x" * 32,) if "?" in change else ()
    text = f"UPDATE node_ratchets SET {change}"
    await world.database.write(lambda tx: tx.conn.exec_driver_sql(sql(tx.conn, text), fields).rowcount)
    assert "changed or removed outside" in await quarantined(node, first)


@pytest.mark.parametrize("connected_before", [True, False])
async def test_a_record_that_was_removed_lets_nobody_in(world: World, connected_before: bool) -> None:
    """Not even who shows nothing, as a node before its first welcome does."""
    node = await world.member()
    if connected_before:
        await shown(node, b"")
    await world.execute("DELETE FROM node_ratchets")
    assert "changed or removed outside" in await quarantined(node, b"")
    world.sessions.adopt_nodes(lambda _tx, _node_id, _replaced: 7)
    await world.nodes.adopt("carol", [node.name], "")
    token, _ = await node.handshake()
    assert (await node.claim(token, node.hello(token, ratchet=b""))).turn.seq_floor == 7


async def test_a_machine_is_not_taken_for_an_older_one_by_a_head_that_no_server_wrote(world: World) -> None:
    """Else who writes the database sets every node aside, and the message sends people after clones."""
    node = await world.member()
    first = await shown(node, b"")
    text = "INSERT INTO audit_heads (writer, number, hash, mac) VALUES (?, ?, ?, ?)"
    head = (f"node:{node.node_id}", 7, b"h" * 32, b"m" * 32)
    await world.database.write(lambda tx: tx.conn.exec_driver_sql(sql(tx.conn, text), head).rowcount)
    await shown(node, await shown(node, first))
    rows = (await world.audit.page(AuditCursor(), limit=1000)).rows
    assert [row.subject for row in rows if row.kind == "audit.tampered"] == [f"node:{node.node_id}"]


async def test_whoever_is_let_in_is_audited_with_what_its_ratchet_said(world: World) -> None:
    node = await world.member()
    first = await shown(node, b"")
    await shown(node, await shown(node, first))
    await quarantined(node, first)
    world.sessions.adopt_nodes(lambda _tx, _node_id, _replaced: 0)
    for ratchet in (first, b""):
        await world.nodes.adopt("carol", [node.name], "")
        handed_on = await shown(node, ratchet)
        await shown(node, await shown(node, handed_on))
        await quarantined(node, handed_on)
    rows = (await world.audit.page(AuditCursor(), limit=1000)).rows
    told = [(row.subject, json.loads(row.detail)) for row in rows if row.kind == "node.rebaselined"]
    assert told == [(f"node:{node.node_id}", {"ratchet": "FOREIGN"})] * 2


async def test_the_machine_that_a_person_decided_for_has_its_time_to_come_and_no_more(world: World) -> None:
    node = await world.member()
    first = await shown(node, b"")
    await shown(node, await shown(node, first))
    await quarantined(node, first)
    world.sessions.adopt_nodes(lambda _tx, _node_id, _replaced: 0)
    await world.nodes.adopt("carol", [node.name], "")
    until_ms = world.clock.now_ms() + ADOPTED_FOR_MS
    assert await world.sessions.any_machine_until_ms(node.node_id) == until_ms
    world.clock.step_wall(ADOPTED_FOR_MS / 1000)
    assert await world.sessions.any_machine_until_ms(node.node_id) == 0
    await quarantined(node, first)


async def test_two_machines_that_push_each_other_off_keep_up_and_are_found_out_all_the_same(world: World) -> None:
    node = await world.member()
    one, other, restarted = b"1" * 16, b"2" * 16, b"3" * 16
    held = await shown(node, await shown(node, b"", one), one)
    moved = await shown(node, held, other)
    assert "another machine" in await quarantined(node, held, one), "its value alone only lags behind"

    world.sessions.adopt_nodes(lambda _tx, _node_id, _replaced: 0)
    await world.nodes.adopt("carol", [node.name], "")
    held = await shown(node, held, one)
    await shown(node, await shown(node, held, restarted), restarted)  # on one machine, one process follows another
    await quarantined(node, moved, other)


async def test_a_process_that_came_back_to_a_value_that_got_lost_is_found_out(world: World) -> None:
    """Both were handed the same value, for neither was known to hold it."""
    node = await world.member()
    first = await shown(node, b"", b"1" * 16)
    assert await shown(node, b"", b"2" * 16) == first
    await quarantined(node, b"", b"1" * 16)


async def test_a_copy_that_tells_no_process_is_found_out_when_the_original_comes_back(world: World) -> None:
    node = await world.member()
    one = b"1" * 16
    held = await shown(node, await shown(node, b"", one), one)
    await shown(node, held, b"")
    await quarantined(node, held, one)


@pytest.mark.parametrize("process", ["the same", "one that was killed"])
async def test_a_hello_that_comes_late_is_nobody_elses(world: World, process: str) -> None:
    """It lay in a replica that was frozen, or waited for the database, while its node opened other streams."""
    node = await world.member()
    old, new = b"a" * 16, b"a" * 16 if process == "the same" else b"b" * 16
    first = await shown(node, b"", old)
    late, _ = await node.handshake()
    await world.clock.advance(1)
    second = await shown(node, first, new)
    third = await shown(node, second, new)

    with pytest.raises(Refusal) as refusal:
        await node.claim(late, node.hello(late, ratchet=b"", body=hello_body(boot_id=old)))

    assert refusal.value.reason is Reason.SUPERSEDED
    assert (await world.nodes.get(node.node_id)).state is NodeState.ACTIVE
    await shown(node, third, new)


async def test_a_copy_gains_nothing_by_a_session_of_before(world: World) -> None:
    """It stays out with it, and is found out with the next one."""
    node = await world.member()
    first = await shown(node, b"")
    before, _ = await node.handshake()
    await world.clock.advance(1)
    await shown(node, await shown(node, first))
    with pytest.raises(Refusal):
        await node.claim(before, node.hello(before, ratchet=b"", body=hello_body()))
    assert "aside" in await quarantined(node, b"")
