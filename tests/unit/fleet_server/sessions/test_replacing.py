"""Another machine takes a node's place: what stays, what ends at once, and what the former machine is told."""

import json

import pytest

from fleet.errors import Reason, Refusal
from fleet.identity import show_fingerprint
from fleet_server.audit.service import AuditCursor
from fleet_server.nodes.record import NodeState
from tests.unit.fleet_server.sessions.world import Node, World, hello_body


async def waiting(world: World, name: str = "spare") -> Node:
    """A machine that asks to join and waits."""
    machine = Node(world, name=name)
    await machine.enroll(await world.token(site="elsewhere"))
    return machine


@pytest.fixture
def world(world: World) -> World:
    world.sessions.adopt_nodes(lambda _tx, _node_id, _replaced: 41)
    return world


async def refused(node: Node) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        await node.handshake()
    return refusal.value


async def test_the_node_stays_what_it_is_and_knows_the_new_machine_alone(world: World) -> None:
    old = await world.member("press-7", site="hall-2")
    await world.nodes.label("ada", ["press-7"], {"rack": "4"}, [])
    epoch = (await old.connect()).epoch
    before = await world.node("press-7")
    await world.clock.advance(5)
    new = await waiting(world)

    after = await world.enrollment.replace_node(
        "carol", "press-7", new.enrollment_id, fingerprint=new.keys.fingerprint, reason="stolen"
    )
    bootstrap = await new.fetch_bootstrap()

    assert (bootstrap.node_id, bootstrap.name, bootstrap.site) == (old.node_id, "press-7", "hall-2")
    kept = ("node_id", "name", "site", "labels", "last_seq")
    assert [getattr(after, field) for field in kept] == [getattr(before, field) for field in kept]
    assert after.fingerprint == new.keys.fingerprint
    assert (after.state, after.online, after.stream_epoch) == (NodeState.ACTIVE, False, epoch + 1)
    claim = await new.connect(hello_body())
    assert (claim.turn.seq_floor, claim.turn.audit_chain, claim.epoch) == (41, 1, epoch + 2)
    assert claim.turn.floor_at_ms == 0, "no intent of before names its fingerprint: what people sign now counts"


async def test_the_former_machine_is_out_at_once_and_told_why(world: World) -> None:
    old = await world.member("press-7")
    token, _ = await old.handshake()
    await world.clock.advance(5)
    new = await waiting(world)
    await world.enrollment.replace_node("carol", "press-7", new.enrollment_id, reason="stolen from hall 2")

    refusal = await refused(old)
    assert refusal.reason is Reason.REVOKED
    assert "another machine has taken this one's place" in refusal.detail
    assert "stolen from hall 2" in refusal.detail
    with pytest.raises(Refusal):
        await old.claim(token, old.hello(token))
    await new.fetch_bootstrap()
    old.api_key = new.api_key  # whoever has only the api_key of the new one proves nothing with the old keys
    assert (await refused(old)).reason is Reason.BAD_PROOF


async def test_said_again_it_changes_nothing_and_issues_nothing(world: World) -> None:
    await world.member("press-7")
    new = await waiting(world)
    first = await world.enrollment.replace_node("carol", "press-7", new.enrollment_id, reason="dead")
    audited = await world.audited()

    again = await world.enrollment.replace_node("carol", first.node_id, new.enrollment_id, reason="dead")

    assert (again.mac, again.stream_epoch) == (first.mac, first.stream_epoch)
    assert await world.audited() == audited


@pytest.mark.parametrize("state", ["ACTIVE", "SUSPENDED", "REVOKED", "QUARANTINED"])
async def test_whatever_state_the_machine_left_it_in(world: World, state: str) -> None:
    old = await world.member("press-7")
    if state == "QUARANTINED":
        await old.connect()
        with pytest.raises(Refusal):
            token, _ = await old.handshake()
            await old.claim(token, old.hello(token, ratchet=b"another"))
    elif state != "ACTIVE":
        await world.nodes.set_state("ada", ["press-7"], state, "lost")
    if state == "REVOKED":
        await world.nodes.tick("ada", "press-7", "host-secrets", "passwords changed")
    assert (await world.node("press-7")).state == state
    new = await waiting(world)

    after = await world.enrollment.replace_node("carol", "press-7", new.enrollment_id, reason="dead")

    assert after.state is NodeState.ACTIVE
    _, items = await world.nodes.checklist("press-7")
    assert {item.item for item in items} == {"api-keys", "sessions", "join-token", "command-keys", "host-secrets"}
    open_items = [item.item for item in items if not item.done_at_ms]
    assert open_items == ([] if state == "REVOKED" else ["host-secrets"]), "what was done for the machine stays done"
    await new.fetch_bootstrap()
    await new.connect()


async def test_a_second_machine_that_dies_has_a_list_of_its_own(world: World) -> None:
    await world.member("press-7")
    first, second = await waiting(world, "spare-1"), await waiting(world, "spare-2")
    await world.enrollment.replace_node("carol", "press-7", first.enrollment_id, reason="dead")
    await world.nodes.tick("ada", "press-7", "host-secrets", "done")
    await world.clock.advance(5)
    await first.fetch_bootstrap()

    await world.enrollment.replace_node("carol", "press-7", second.enrollment_id, reason="dead, too")

    assert (await world.node("press-7")).checklist_open == 1
    assert (await refused(first)).reason is Reason.REVOKED


async def test_what_does_not_fit_is_refused_and_leaves_the_node_alone(world: World) -> None:
    old = await world.member("press-7")
    new, decided, rejected = [await waiting(world, f"spare-{number}") for number in range(3)]
    await world.enrollment.decide("ada", decided.enrollment_id, approve=True)
    await world.enrollment.decide("ada", rejected.enrollment_id, approve=False)
    good = {"ref": "press-7", "enrollment_id": new.enrollment_id, "fingerprint": b"", "reason": ""}
    for change, reason in (
        ({"ref": "press-8"}, Reason.NOT_FOUND),
        ({"enrollment_id": "made-up"}, Reason.NOT_FOUND),
        ({"enrollment_id": decided.enrollment_id}, Reason.ALREADY_DECIDED),
        ({"enrollment_id": rejected.enrollment_id}, Reason.ALREADY_DECIDED),
        ({"fingerprint": bytes(20)}, Reason.FINGERPRINT_MISMATCH),
        ({"reason": "two\nlines"}, Reason.INVALID_ARGUMENT),
    ):
        with pytest.raises(Refusal) as refusal:
            await world.enrollment.replace_node("carol", **(good | change))  # type: ignore[arg-type]
        assert refusal.value.reason is reason, change
    await old.connect()
    await world.execute("UPDATE nodes SET site = 'elsewhere' WHERE name = 'press-7'")
    with pytest.raises(Refusal) as refusal:
        await world.enrollment.replace_node("carol", **good)  # type: ignore[arg-type]
    assert refusal.value.reason is Reason.CONFLICT


async def test_the_audit_says_who_replaced_what_by_what(world: World) -> None:
    old = await world.member("press-7")
    new = await waiting(world)
    await world.enrollment.replace_node("carol", "press-7", new.enrollment_id, reason="dead")

    rows = (await world.audit.page(AuditCursor(), limit=1000)).rows
    (row,) = [row for row in rows if row.kind == "node.replaced"]
    assert (row.actor, row.subject) == ("carol", f"node:{old.node_id}")
    assert json.loads(row.detail) == {
        "fingerprint": show_fingerprint(new.keys.fingerprint),
        "former_fingerprint": show_fingerprint(old.keys.fingerprint),
        "nodes": [old.node_id],
        "reason": "dead",
        "state": "ACTIVE",
    }
    assert {"api_key.revoked", "api_key.issued", "enrollment.approved"} <= {row.kind for row in rows}


async def test_its_audit_chain_is_none_that_has_rows_whatever_became_of_the_ratchet_row(world: World) -> None:
    old = await world.member("press-7")
    await world.execute(
        "INSERT INTO node_audits (node_id, chain, last_at_ms, day, day_rows, day_bytes, finding,"
        " finding_at_ms) VALUES (?, 6, 0, 0, 0, 0, '', 0)",
        old.node_id,
    )
    await world.execute("DELETE FROM node_ratchets")
    new = await waiting(world)
    await world.enrollment.replace_node("carol", "press-7", new.enrollment_id, reason="dead")
    await new.fetch_bootstrap()

    assert (await new.connect()).turn.audit_chain == 7
