"""What a source says, and what rows of findings hold, costs no more than its own routes: floods, planted rows."""

import pytest

from fleet.v1 import route_pb2
from fleet_server.admin.route_views import route_view
from fleet_server.routes.restoring import GenerationRaise
from fleet_server.routes.turn_rules import AT_ONCE, Turns
from tests.unit.fleet_server.routes.mesh import SECRETS, Mesh
from tests.unit.fleet_server.routes.walks import (
    CANDIDATE,
    LEASE,
    add_relays,
    decisions,
    dropped,
    lease_of,
    observation,
    route_of,
    tell,
    walk,
)

PEER = route_pb2.OBSERVATION_TYPE_PEER_CONNECTION


@pytest.mark.parametrize(
    "planted",
    [
        "state = 'FOO'",
        "rtt_us = -1",
        "samples = 9223372036854775807",
        "observed_at_ms = 9223372036854775807",
        "penalty = 1e308",
        "stale_since_ms = -9223372036854775807",
        "rtt_us = 1e308",
    ],
)
async def test_a_planted_row_of_a_way_stops_neither_reports_nor_the_sweep(mesh: Mesh, planted: str) -> None:
    route_id = (await mesh.connect("a", "b")).route_id
    other = (await mesh.connect("b", "a")).route_id
    await walk(mesh, route_id, direct=2_000)
    await mesh.tamper(f"UPDATE route_candidates SET {planted} WHERE route_id = ?", route_id)
    await mesh.clock.advance(40)
    await mesh.routes.sweep()
    told = [await observation(mesh, each) for each in (route_id, other)]
    await tell(mesh, "a", told[0])
    await tell(mesh, "b", told[1])
    assert [(await route_of(mesh, each)).state for each in (route_id, other)] == ["HEALTHY"] * 2
    await mesh.routes.explain(route_id)
    assert dropped(mesh) == {}


async def test_planted_health_of_a_route_hides_no_other(mesh: Mesh) -> None:
    route_id = (await mesh.connect("a", "b")).route_id
    await mesh.connect("b", "a")
    await walk(mesh, route_id, direct=2_000)
    for planted in ("rtt_us = -1", "state = 'FOO'", "loss_permille = -5", "observed_at_ms = -5"):
        await mesh.tamper(f"UPDATE routes SET {planted} WHERE route_id = ?", route_id)
    assert [route_view(route, {}).state for route in await mesh.routes.page()] == ["UNKNOWN"] * 2
    await mesh.clock.advance(1)
    await walk(mesh, route_id, direct=2_000)
    assert (await route_of(mesh, route_id)).state == "HEALTHY"


async def test_a_source_that_makes_nodes_up_fills_no_table(mesh: Mesh) -> None:
    await add_relays(mesh, "r", "s", "t")
    await mesh.add_nodes("x")
    route_id = (await mesh.connect("a", "b")).route_id
    await mesh.routes.remove_relay("t", by="ada")
    a, b = mesh.ids["a"], mesh.ids["b"]
    made_up = [
        await observation(mesh, route_id, observation_type=kind, expected_hops=hops, observed_hops=hops)
        for number in range(20)
        for kind, hops in (
            (PEER, [a, f"nd_{number}"]),
            (LEASE, [a, f"nd_{number}", b]),
            (PEER, [f"nd_{number}", b]),
        )
    ]
    await tell(mesh, "a", *made_up)
    view = await mesh.routes.get(route_id)
    assert view.latest == []


async def test_a_way_that_was_never_offered_is_no_finding(mesh: Mesh) -> None:
    names = [f"r{number}" for number in range(8)]
    await add_relays(mesh, *names)
    route_id = (await mesh.connect("a", "b")).route_id
    offered = (await route_of(mesh, route_id)).candidates
    assert len(offered) == 4
    told = [await observation(mesh, route_id, name, observation_type=CANDIDATE) for name in names]
    await tell(mesh, "a", *told)
    known = (await mesh.routes.explain(route_id)).known
    assert known.keys() == set(offered)
    assert dropped(mesh) == {"unknown_relay": 4}


async def test_a_way_that_was_offered_before_still_counts(mesh: Mesh) -> None:
    await add_relays(mesh, "r", "s")
    route_id = (await mesh.connect("a", "b")).route_id
    await walk(mesh, route_id, direct=2_000, r=3_000, s=3_000)
    await mesh.clock.advance(1)
    await walk(mesh, route_id, direct=None, r=3_000)
    await mesh.clock.advance(1)
    await walk(mesh, route_id, s=3_000)
    assert dropped(mesh) == {}


async def test_the_sweep_writes_nothing_where_nothing_is_due(mesh: Mesh) -> None:
    await add_relays(mesh, "r")
    route_id = (await mesh.connect("a", "b")).route_id
    await walk(mesh, route_id, direct=None, r=7_000)
    await mesh.nodes.close_stream(mesh.ids["r"], mesh.epochs["r"])
    await mesh.clock.advance(200)
    await mesh.routes.sweep()
    assert (await route_of(mesh, route_id)).relay_id == ""
    due = await mesh.database.read(mesh.routes._sweep._due)
    assert due == []


async def test_a_route_whose_lease_was_withdrawn_around_it_gets_one_without_a_report(mesh: Mesh) -> None:
    await add_relays(mesh, "r")
    route_id = (await mesh.connect("a", "b")).route_id
    await walk(mesh, route_id, direct=None, r=7_000)
    raising = GenerationRaise(SECRETS.row_mac)
    await mesh.database.write(lambda tx: raising.raise_some(tx.conn, "", mesh.clock.now_ms()))
    raised = await route_of(mesh, route_id)
    await mesh.routes.sweep()
    lease = await lease_of(mesh, route_id)
    assert lease.holds(mesh.clock.now_ms())
    assert (await route_of(mesh, route_id)).generation == raised.generation + 1
    assert await mesh.database.read(mesh.routes._sweep._due) == []


async def test_relays_that_are_out_are_explained(mesh: Mesh) -> None:
    await add_relays(mesh, "r", "s")
    route_id = (await mesh.connect("a", "b")).route_id
    await mesh.nodes.close_stream(mesh.ids["s"], mesh.epochs["s"])
    await mesh.clock.advance(60)
    await mesh.routes.sweep()
    told = await observation(mesh, route_id)
    await tell(mesh, "a", told)
    held = {way.relay_id: way.held_out for way in (await mesh.routes.explain(route_id)).live.scores}
    assert "offline" in held[mesh.ids["s"]]


async def test_a_source_that_tells_of_breaks_without_end_has_as_many_turns_as_there_is_evidence(mesh: Mesh) -> None:
    await add_relays(mesh, "r")
    route_id = (await mesh.connect("a", "b")).route_id
    for number in range(40):  # in 10 seconds, which is one interval
        ways = {"direct": None, "r": 7_000} if number % 2 == 0 else {"direct": 2_000, "r": None}
        await walk(mesh, route_id, **ways)
        await mesh.clock.advance(0.25)
    made = len(await decisions(mesh))
    assert AT_ONCE <= made <= AT_ONCE + 2
    # What it says from then on counts as soon as evidence can be new.
    await mesh.clock.advance(10)
    await walk(mesh, route_id, direct=None, r=7_000)
    assert (await route_of(mesh, route_id)).relay_id == mesh.ids["r"]
    await mesh.clock.advance(10)
    await walk(mesh, route_id, direct=2_000, r=None)
    assert (await route_of(mesh, route_id)).relay_id == ""


def test_turns_come_back_and_a_clock_that_went_back_takes_none() -> None:
    turns = Turns()
    for _ in range(AT_ONCE):
        assert turns.may("r", 1_000, 50_000)
        turns.take("r", 1_000, 50_000)
    assert not turns.may("r", 1_000, 50_999)
    assert turns.may("other", 1_000, 50_000)
    assert turns.may("r", 1_000, 51_000)
    assert turns.may("r", 1_000, 20_000)
