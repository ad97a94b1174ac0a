"""Rows of routes that were edited around the server are left out and told of; a restored database; other replicas."""

import pytest

from fleet.errors import Reason, Refusal
from fleet.secrets import Secret
from fleet_server.database.marked import MARKED_TABLES
from fleet_server.routes.restoring import STEP, GenerationRaise
from fleet_server.trust.reseal import TableWalk
from fleet_server.trust.secrets import Secrets
from tests.unit.fleet_server.routes.mesh import SECRETS, Mesh, listener
from tests.unit.fleet_server.routes.test_relays import over_relay, told_leases


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE routes SET destination_node_id = 'nd_evil'",
        "UPDATE routes SET probe_interval_ms = 1",
        "UPDATE routes SET generation = generation + 1",
        "UPDATE routes SET candidates = '[\"nd_evil\"]'",
        "UPDATE routes SET relay_node_id = 'nd_evil'",
        "UPDATE routes SET enabled = 2",
    ],
)
async def test_a_route_that_was_edited_is_in_nobodys_part_and_can_only_be_removed(mesh: Mesh, change: str) -> None:
    await mesh.connect("a", "b")
    await mesh.tamper(change)
    assert list((await mesh.content("a")).routes) == []
    assert [route.intact for route in await mesh.routes.page()] == [False]
    await mesh.routes.quarantine.flush()
    await mesh.routes.quarantine.flush()
    assert [detail["table"] for detail in await mesh.details("route.quarantined")] == ["routes"]
    with pytest.raises(Refusal) as refused:
        await mesh.routes.set_enabled("a-to-b", enabled=False, by="ada")
    assert refused.value.reason is Reason.QUARANTINED
    await mesh.routes.explain("a-to-b")
    await mesh.routes.remove("a-to-b", by="ada")
    assert await mesh.routes.page() == []


async def test_a_member_that_somebody_added_is_shown_nothing(mesh: Mesh) -> None:
    route = await mesh.connect("a", "b")
    await mesh.tamper("INSERT INTO route_members (node_id, route_id) VALUES (?, ?)", mesh.ids["r"], route.route_id)
    await mesh.routes.note_shown(mesh.ids["r"], mesh.epochs["r"], 1)
    assert list((await mesh.content("r")).routes) == []


async def test_a_relay_a_lease_and_a_listener_that_were_edited_count_for_nothing(mesh: Mesh) -> None:
    await mesh.routes.add_relay("r", by="ada")
    await mesh.connect("a", "b")
    await over_relay(mesh)
    await mesh.tamper("UPDATE relays SET capacity = 1000")
    await mesh.tamper("UPDATE route_leases SET expires_at_ms = expires_at_ms + 1000")
    await mesh.tamper("UPDATE route_peers SET endpoints = '[\"evil:1\"]' WHERE node_id = ?", mesh.ids["b"])
    assert [view.why_not[:10] for view in await mesh.routes.list_relays()] == ["its record"]
    assert (await mesh.routes.explain("a-to-b")).pool == []
    assert await told_leases(mesh, "r") == []
    part = await mesh.content("r")
    assert list(part.leases) == []
    assert [list(peer.probe_endpoints) for peer in part.peers if peer.node_id == mesh.ids["b"]] == [[]]
    await mesh.routes.quarantine.flush()
    kinds = ("relay.quarantined", "route_lease.quarantined", "probe_listener.quarantined")
    assert {row.kind for row in await mesh.audited(*kinds)} == set(kinds)
    # Its next hello mends it.
    await mesh.routes.note_listener(mesh.ids["b"], mesh.epochs["b"], listener("b:7450", name="b"))
    peers = (await mesh.content("r")).peers
    assert [list(peer.probe_endpoints) for peer in peers if peer.node_id == mesh.ids["b"]] == [["b:7450"]]


async def test_after_a_restore_every_generation_is_above_what_nodes_hold(mesh: Mesh) -> None:
    await mesh.connect("a", "b")
    await mesh.connect("b", "a")
    await over_relay(mesh)
    before = await mesh.version("a")
    raising = GenerationRaise(SECRETS.row_mac)
    raised = await mesh.database.write(lambda tx: raising.raise_some(tx.conn, "", mesh.clock.now_ms()))
    assert raised == (2, "")
    view = await mesh.routes.get("a-to-b")
    assert view.route.intact
    assert view.route.generation == 2 + STEP
    assert view.lease is not None
    assert (view.lease.generation, view.lease.withdrawn) == (1 + STEP, True)
    assert await mesh.version("a") == before + 1


@pytest.mark.parametrize("name", ["routes", "relays", "route_leases", "route_peers"])
async def test_a_change_of_the_secret_encryption_key_marks_the_rows_anew(mesh: Mesh, name: str) -> None:
    await mesh.routes.add_relay("r", by="ada")
    await mesh.connect("a", "b")
    await over_relay(mesh)
    (table,) = (each for each in MARKED_TABLES if each.name == name)
    walk = TableWalk(table, SECRETS, Secrets(Secret(b"\x06" * 32)))
    batch = await mesh.database.write(lambda tx: walk.batch(tx.conn, None, 100))
    assert (batch.done, batch.refused) == (batch.seen, ())
    assert batch.seen == {"route_peers": 3}.get(name, 1)


async def test_another_replica_hears_of_what_was_changed_here(mesh: Mesh) -> None:
    other = await mesh.another_replica()
    await other.routes.news.configs.poll()
    await other.routes.news.leases.poll()
    assert not other.routes.concerns(mesh.ids["a"])
    await mesh.connect("a", "b")
    await other.routes.news.configs.poll()
    assert set(other.woken) == {mesh.ids["a"], mesh.ids["b"]}
    assert other.routes.concerns(mesh.ids["a"])
    other.woken.clear()
    await over_relay(mesh)
    await other.routes.news.leases.poll()
    assert set(other.woken) == {mesh.ids["a"], mesh.ids["r"]}
    other.woken.clear()
    await other.routes.news.leases.poll()
    assert other.woken == []


async def test_a_replica_that_starts_knows_who_is_concerned(mesh: Mesh) -> None:
    await mesh.connect("a", "b")
    other = await mesh.another_replica()
    assert [other.routes.concerns(mesh.ids[name]) for name in ("a", "b", "r")] == [True, True, False]
