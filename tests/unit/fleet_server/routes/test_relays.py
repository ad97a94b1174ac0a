"""The relay pool: who is in it, what keeps a member from relaying, and what follows when one leaves."""

import os
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from fleet.envelope import Domain, verify_one
from fleet.errors import Reason, Refusal
from fleet.v1 import lease_pb2
from fleet_server.database.statements import fetch
from fleet_server.database.writer import Transaction
from fleet_server.routes.model import Decision, DecisionRule
from fleet_server.routes.model import Reason as Because
from fleet_server.routes.record import LeaseRecord, RouteRecord
from tests.unit.fleet_server.routes.mesh import Mesh
from tests.unit.fleet_server.routes.walks import observation, tell

LEASED = 120_000


async def over_relay(mesh: Mesh, name: str = "a-to-b", relay: str = "r") -> LeaseRecord:
    """A decision that a route goes over a relay, and its lease."""
    lease = LeaseRecord(
        (await mesh.routes.get(name)).route.route_id,
        "ls_1",
        mesh.ids[relay],
        1,
        mesh.clock.now_ms(),
        mesh.clock.now_ms() + LEASED,
        withdrawn=False,
    )

    def work(tx: Transaction) -> None:
        route = mesh.routes.find(tx.conn, name, lock=True)
        because = (Because("the direct path does not answer"),)
        decision = Decision(mesh.ids[relay], True, DecisionRule.UNHEALTHY, because, (), ("",), True)
        _, members = mesh.routes.adopt(tx, route, decision, now_ms=mesh.clock.now_ms(), by="server")
        mesh.routes.leases.save(tx.conn, lease)
        mesh.routes.tell(tx, members)

    await mesh.database.write(work)
    return lease


async def told_leases(mesh: Mesh, name: str) -> list[lease_pb2.LeaseStatement]:
    signed = await mesh.routes.leases_of(mesh.ids[name])
    key = mesh.trust.authority.public_key
    return [
        lease_pb2.LeaseStatement.FromString(verify_one(each, domain=Domain.LEASE, public_key=key)) for each in signed
    ]


async def test_a_relay_is_added_changed_and_removed(mesh: Mesh) -> None:
    added = await mesh.routes.add_relay("r", capacity=20, by="ada")
    assert (added.relay.capacity, added.relay.weight, added.load, added.why_not) == (20, 100, 0, "")
    await mesh.routes.add_relay("r", capacity=20, by="ada")
    changed = await mesh.routes.add_relay("r", capacity=30, weight=200, site="north", by="ben")
    assert (changed.relay.capacity, changed.relay.weight, changed.site) == (30, 200, "north")
    assert [view.relay.node_id for view in await mesh.routes.list_relays()] == [mesh.ids["r"]]
    await mesh.routes.remove_relay("r", by="ada")
    assert await mesh.routes.list_relays() == []
    with pytest.raises(Refusal, match="fleetctl relays list"):
        await mesh.routes.remove_relay("r", by="ada")
    kinds = ("relay.added", "relay.changed", "relay.removed")
    assert [row.kind for row in await mesh.audited(*kinds)] == list(kinds)


async def test_what_keeps_a_member_from_relaying_is_said(mesh: Mesh) -> None:
    await mesh.add_nodes("deaf", "gone", "drained", "held", listening=True)
    for name in ("deaf", "gone", "drained", "held", "r"):
        await mesh.routes.add_relay(name, by="ada")
    await mesh.connect("a", "deaf")  # who has a part is looked at, whatever it says of its listener
    await mesh.routes.note_listener(mesh.ids["deaf"], mesh.epochs["deaf"], None)
    await mesh.nodes.close_stream(mesh.ids["gone"], mesh.epochs["gone"])
    await mesh.nodes.request_drain("ada", ["drained"], 0, "")
    await mesh.nodes.set_state("ada", ["held"], "SUSPENDED", "")
    await mesh.clock.advance(16)
    found = {view.relay.node_id: view.why_not for view in await mesh.routes.list_relays()}
    assert [found[mesh.ids[name]][:24] for name in ("deaf", "gone", "drained", "held", "r")] == [
        "it has no probe listener",
        "the node is offline",
        "the node is drained",
        "the node is SUSPENDED",
        "",
    ]


async def test_who_may_not_connect_may_not_relay(mesh: Mesh) -> None:
    await mesh.nodes.set_state("ada", ["r"], "SUSPENDED", "")
    with pytest.raises(Refusal) as refused:
        await mesh.routes.add_relay("r", by="ada")
    assert refused.value.reason is Reason.SUSPENDED


async def test_a_route_over_a_relay_shows_each_member_its_share(mesh: Mesh) -> None:
    await mesh.connect("a", "b")
    await over_relay(mesh)
    parts = {name: await mesh.content(name) for name in ("a", "r", "b")}
    path = [mesh.ids[name] for name in ("a", "r", "b")]
    assert all(list(part.routes[0].path) == path for part in parts.values())
    assert {name: len(part.routes[0].candidates) for name, part in parts.items()} == {"a": 1, "r": 0, "b": 1}
    assert {name: mesh.names(*(peer.node_id for peer in part.peers)) for name, part in parts.items()} == {
        name: mesh.names(*sorted(mesh.ids[other] for other in ("a", "r", "b") if other != name)) for name in parts
    }
    assert {name: len(part.leases) for name, part in parts.items()} == {"a": 1, "r": 1, "b": 0}
    assert parts["a"].routes[0].reason == "the direct path does not answer"
    assert parts["a"].routes[0].waiting_rendezvous
    assert (await mesh.routes.page(relay="r"))[0].name == "a-to-b"


async def test_the_leases_of_a_relay_that_is_removed_are_taken_back_at_once(mesh: Mesh) -> None:
    await mesh.routes.add_relay("r", by="ada")
    await mesh.connect("a", "b")
    await over_relay(mesh)
    swept: list[int] = []
    mesh.wakeup.subscribe("route-sweep", lambda: swept.append(1))
    assert (await mesh.routes.list_relays())[0].load == 1
    assert [lease.withdrawn for lease in await told_leases(mesh, "r")] == [False]
    mesh.woken.clear()
    await mesh.routes.remove_relay("r", by="ada")
    for name in ("r", "a"):
        assert [lease.withdrawn for lease in await told_leases(mesh, name)] == [True]
    assert set(mesh.woken) == {mesh.ids["r"], mesh.ids["a"]}
    assert swept
    assert list((await mesh.content("a")).leases) == []
    await mesh.clock.advance(LEASED / 1000)
    assert await told_leases(mesh, "r") == []


@pytest.mark.parametrize("ahead_ms", [10 * LEASED, -10 * LEASED])
async def test_a_lease_holds_while_it_does_by_any_clock(mesh: Mesh, ahead_ms: int) -> None:
    route_id = (await mesh.connect("a", "b")).route_id
    await over_relay(mesh)
    clock = mesh.clock
    mesh.database.clock.note(clock.now_ms() + ahead_ms, clock.monotonic(), clock)
    part = await mesh.content("r")
    assert (len(part.leases), part.issued_at_ms) == (1, clock.now_ms())
    assert len(await told_leases(mesh, "a")) == 1
    await mesh.routes.add_relay("r", by="ada")
    await tell(mesh, "a", await observation(mesh, route_id, "r", observed_at_ms=mesh.routes.now_ms()))
    assert (await mesh.routes.explain(route_id)).live.rule is DecisionRule.KEPT


async def test_one_that_is_switched_off_holds_no_lease(mesh: Mesh) -> None:
    await mesh.connect("a", "b")
    await over_relay(mesh)
    await mesh.routes.set_enabled("a-to-b", enabled=False, by="ada")
    assert [lease.withdrawn for lease in await told_leases(mesh, "r")] == [True]
    assert list((await mesh.content("r")).routes) == []
    back = await mesh.routes.set_enabled("a-to-b", enabled=True, by="ada")
    assert back.relay_id == ""


async def test_who_holds_a_lease_says_so(mesh: Mesh) -> None:
    await mesh.connect("a", "b")
    lease = await over_relay(mesh)
    said = lease_pb2.LeaseAck(lease_id=lease.lease_id, generation=1, applied=True)
    await mesh.routes.note_lease(mesh.ids["a"], mesh.epochs["a"], said)  # who is not its holder cannot
    held = (await mesh.routes.get("a-to-b")).lease
    assert held is not None
    assert held.acked_generation == 0
    for ack in (lease_pb2.LeaseAck(lease_id="ls_1", generation=2, applied=False, reason="EXPIRED"), said):
        await mesh.routes.note_lease(mesh.ids["r"], mesh.epochs["r"], ack)
    held = (await mesh.routes.get("a-to-b")).lease
    assert held is not None
    assert (held.acked_generation, held.acked_at_ms) == (1, mesh.clock.now_ms())
    assert mesh.metrics.leases.labels("refused").value == 1


async def test_whoever_ends_a_relay_takes_the_pools_row_before_those_of_routes(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two who take rows the other way round each waits for the other one."""
    await mesh.connect("a", "b")
    taken: list[str] = []

    def noting(store: object, call: str, name: str) -> None:
        before = getattr(store, call)

        def noted(*args: object, **more: object) -> object:
            taken.append(name)
            return before(*args, **more)

        monkeypatch.setattr(store, call, noted)

    noting(mesh.routes.relays, "delete", "pool")
    noting(mesh.routes.routes, "by_ids", "routes")
    ways: list[Callable[[], Awaitable[object]]] = [
        lambda: mesh.routes.remove_relay("r", by="ada"),
        lambda: mesh.nodes.set_state("ada", ["r"], "REVOKED", "stolen"),
    ]
    for ends in ways:
        await mesh.routes.add_relay("r", by="ada")
        await over_relay(mesh)
        taken.clear()
        await ends()
        assert taken[:2] == ["pool", "routes"]


async def test_a_node_that_is_revoked_leaves_pool_and_routes(mesh: Mesh) -> None:
    await mesh.routes.add_relay("r", by="ada")
    await mesh.connect("a", "b")
    await over_relay(mesh)
    await mesh.connect("r", "b")
    await mesh.nodes.set_state("ada", ["r"], "REVOKED", "stolen")
    assert await mesh.routes.list_relays() == []
    assert [lease.withdrawn for lease in await told_leases(mesh, "a")] == [True]
    routes = {route.name: route for route in await mesh.routes.page()}
    assert (routes["a-to-b"].enabled, routes["r-to-b"].enabled) == (True, False)
    assert list((await mesh.content("b")).routes) == []  # nobody walks over a node that is gone
    with pytest.raises(Refusal) as refused:
        await mesh.routes.set_enabled("r-to-b", enabled=True, by="ada")
    assert refused.value.reason is Reason.REVOKED


async def test_another_machine_goes_on_where_the_one_before_was(mesh: Mesh) -> None:
    await mesh.routes.add_relay("r", by="ada")
    await mesh.connect("a", "b")
    await mesh.connect("r", "b")
    await over_relay(mesh)
    node, key = await mesh.nodes.get("r"), os.urandom(32)
    await mesh.database.write(lambda tx: mesh.nodes.replace_machine(tx, "ada", node, key, os.urandom(32), "burnt"))
    assert [lease.withdrawn for lease in await told_leases(mesh, "a")] == [True]
    (view,) = await mesh.routes.list_relays()
    assert "no probe listener" in view.why_not
    assert all(route.enabled for route in await mesh.routes.page())
    peers = {peer.node_id: peer for peer in (await mesh.content("b")).peers}
    assert (peers[node.node_id].identity_key, list(peers[node.node_id].probe_endpoints)) == (key, [])


async def test_a_machine_that_was_revoked_is_no_peer_though_its_row_was_put_back(mesh: Mesh) -> None:
    await mesh.connect("a", "b")
    rows = await mesh.database.read(
        lambda conn: fetch(conn, "SELECT state, state_reason, mac FROM nodes WHERE node_id = ?", (mesh.ids["b"],))
    )
    routes = await mesh.database.read(lambda conn: fetch(conn, "SELECT enabled, generation, mac FROM routes"))
    await mesh.nodes.set_state("ada", ["b"], "REVOKED", "stolen")
    await mesh.tamper(
        "UPDATE nodes SET state = ?, state_reason = ?, mac = ? WHERE node_id = ?", *rows[0], mesh.ids["b"]
    )
    await mesh.tamper("UPDATE routes SET enabled = ?, generation = ?, mac = ?", *routes[0])
    assert list((await mesh.content("a")).peers) == []


async def test_a_suspended_end_takes_its_routes_out_of_all_parts_and_brings_them_back(mesh: Mesh) -> None:
    await mesh.connect("a", "b")
    before = await mesh.version("a")
    mesh.woken.clear()
    await mesh.nodes.set_state("ada", ["b"], "SUSPENDED", "")
    assert mesh.ids["a"] in mesh.woken
    assert (list((await mesh.content("a")).routes), await mesh.version("a")) == ([], before + 1)
    await mesh.nodes.set_state("ada", ["b"], "ACTIVE", "")
    assert [route.generation for route in (await mesh.content("a")).routes] == [1]


async def test_load_counts_what_is_switched_on(mesh: Mesh) -> None:
    await mesh.routes.add_relay("r", by="ada")
    for source, destination in (("a", "b"), ("b", "a")):
        await mesh.connect(source, destination)
        await over_relay(mesh, f"{source}-to-{destination}")
    await mesh.routes.set_enabled("b-to-a", enabled=False, by="ada")
    assert [view.load for view in await mesh.routes.list_relays()] == [1]


def test_members_of_a_record_that_is_not_believed_are_none() -> None:
    route = RouteRecord("rt", "c", "n", "a", "b", "synthetic", 1, True, 0, "ada", 1, "r", ("", "x"), False, 0)
    assert route.members == {"a", "b", "r", "x"}
    assert replace(route, intact=False).members == replace(route, enabled=False).members == frozenset()
