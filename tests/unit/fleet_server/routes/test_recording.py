"""What nodes report becomes rows and decisions, in one transaction, on both databases."""

import asyncio

import pytest

from fleet.v1 import route_pb2
from fleet_server.database.engine import Database
from fleet_server.database.writer import Transaction
from tests.unit.fleet_server.routes.mesh import Mesh
from tests.unit.fleet_server.routes.walks import (
    HEALTHY,
    LEASE,
    UNREACHABLE,
    add_relays,
    another_process,
    decisions,
    dropped,
    lease_of,
    observation,
    recording,
    route_of,
    tell,
    waiting,
    walk,
    writing_later,
)


async def test_a_cut_direct_path_is_replaced_by_a_relay_with_a_lease_before_the_report_is_answered(mesh: Mesh) -> None:
    await add_relays(mesh, "r", "s")
    route_id = (await mesh.connect("a", "b")).route_id
    await walk(mesh, route_id, direct=2_000, r=9_000, s=7_000)
    before = await route_of(mesh, route_id)
    await mesh.clock.advance(10)
    mesh.woken.clear()
    told = [
        await observation(mesh, route_id, state=UNREACHABLE),
        await observation(mesh, route_id, "r", rtt_us=9_000),
        await observation(mesh, route_id, "s", rtt_us=7_000),
    ]
    health = route_pb2.RouteHealth(observations=told, refresh_routes=[route_id])
    async with recording(mesh.routes):
        # The clock stands still: what broke is recorded at once.
        await mesh.routes.record(mesh.ids["a"], mesh.epochs["a"], health)
    after, lease = await route_of(mesh, route_id), await lease_of(mesh, route_id)
    assert (after.relay_id, after.generation, after.state) == (mesh.ids["s"], before.generation + 1, "HEALTHY")
    assert after.waiting_rendezvous
    assert (lease.relay_id, lease.generation) == (mesh.ids["s"], 1)
    assert lease.holds(mesh.clock.now_ms())
    assert {mesh.ids[name] for name in ("a", "b", "s")} <= set(mesh.woken)
    assert list((await mesh.content("s")).routes[0].path) == [mesh.ids[name] for name in ("a", "s", "b")]
    assert (await decisions(mesh))[-1] == {
        "route": route_id,
        "generation": after.generation,
        "relay": mesh.ids["s"],
        "rule": "UNHEALTHY",
    }
    assert mesh.metrics.refreshes.labels("asked").value == 1
    assert mesh.metrics.leases.labels("granted").value == 1


@pytest.mark.parametrize(
    ("interval_ms", "known", "asks", "waits_s"),
    [
        (10_000, False, False, 0.5),  # news
        (10_000, True, False, 2.0),
        (10_000, True, True, 0.5),
        (1_000, True, False, 0.5),
        (60_000, True, False, 2.0),
    ],
)
async def test_what_broke_not_waits_for_more_and_what_is_no_news_longer(
    mesh: Mesh, interval_ms: int, *, known: bool, asks: bool, waits_s: float
) -> None:
    route_id = (await mesh.connect("a", "b", probe_interval_ms=interval_ms)).route_id
    if known:
        await walk(mesh, route_id, direct=2_000)
        await mesh.clock.advance(interval_ms / 1000)
    before = await route_of(mesh, route_id)
    health = route_pb2.RouteHealth(
        observations=[await observation(mesh, route_id)], refresh_routes=[route_id] if asks else []
    )
    async with recording(mesh.routes):
        told = asyncio.ensure_future(mesh.routes.record(mesh.ids["a"], mesh.epochs["a"], health))
        await mesh.clock.wait_sleepers(1)
        await mesh.clock.advance(waits_s - 0.01)
        assert await route_of(mesh, route_id) == before
        await mesh.clock.advance(0.01)
        await told
    after = await route_of(mesh, route_id)
    assert (after.state, after.observed_at_ms > before.observed_at_ms) == ("HEALTHY", True)


async def test_news_takes_what_waits_with_it(mesh: Mesh) -> None:
    routes = [(await mesh.connect("a", name)).route_id for name in ("b", "r")]
    await walk(mesh, routes[0], direct=2_000)
    await mesh.clock.advance(10)
    async with recording(mesh.routes):
        told = []
        for route_id, state in zip(routes, (HEALTHY, UNREACHABLE), strict=True):
            health = route_pb2.RouteHealth(observations=[await observation(mesh, route_id, state=state)])
            told.append(asyncio.ensure_future(mesh.routes.record(mesh.ids["a"], mesh.epochs["a"], health)))
            await mesh.clock.wait_sleepers(1)
        # The clock stands still.
        await asyncio.gather(*told)
    assert [(await route_of(mesh, each)).state for each in routes] == ["HEALTHY", "UNREACHABLE"]


async def test_what_comes_while_others_are_recorded_goes_with_the_next(mesh: Mesh) -> None:
    routes = [(await mesh.connect("a", name)).route_id for name in ("b", "r")]
    seen = [await observation(mesh, each) for each in routes]
    async with writing_later(mesh, 1):
        first = asyncio.ensure_future(tell(mesh, "a", seen[0]))
        await waiting(mesh, 1)
        health = route_pb2.RouteHealth(observations=seen[1:])
        beside = asyncio.ensure_future(mesh.routes.record(mesh.ids["a"], mesh.epochs["a"], health))
        await asyncio.sleep(0)
    await first
    assert [(await route_of(mesh, each)).state for each in routes] == ["HEALTHY", "UNKNOWN"]
    await mesh.routes.flush()
    await beside
    assert (await route_of(mesh, routes[1])).state == "HEALTHY"


async def test_a_switch_is_decided_again_when_its_transaction_was_undone_for_a_neighbour(mesh: Mesh) -> None:
    await add_relays(mesh, "r")
    route_id = (await mesh.connect("a", "b")).route_id
    for _ in range(3):
        await walk(mesh, route_id, direct=30_000, r=25_000)
        await mesh.clock.advance(10)
    slower = await observation(mesh, route_id, rtt_us=200_000)

    def fails(_: Transaction) -> None:
        raise ZeroDivisionError

    async with writing_later(mesh, 2):
        told = asyncio.ensure_future(tell(mesh, "a", slower))
        await waiting(mesh, 1)
        beside = asyncio.ensure_future(mesh.database.write(fails))
    with pytest.raises(ZeroDivisionError):
        await beside
    await told
    after = await route_of(mesh, route_id)
    assert (after.relay_id, (await decisions(mesh))[-1]["rule"]) == (mesh.ids["r"], "FASTER")


async def test_who_is_no_source_of_a_route_steers_nothing(mesh: Mesh) -> None:
    await add_relays(mesh, "r")
    route_id = (await mesh.connect("a", "b")).route_id
    await walk(mesh, route_id, direct=2_000, r=9_000)
    before = await route_of(mesh, route_id)
    await mesh.clock.advance(10)
    for liar in ("b", "r"):
        await walk(mesh, route_id, liar, direct=None)
    missing = await observation(mesh, route_id)
    missing.route_id = "rt_none"
    await tell(mesh, "a", missing)
    assert await route_of(mesh, route_id) == before
    assert dropped(mesh) == {"not_its_route": 2, "unknown_route": 1}


async def test_what_came_on_a_superseded_stream_is_not_written(mesh: Mesh) -> None:
    await add_relays(mesh, "r")
    route_id = (await mesh.connect("a", "b")).route_id
    await walk(mesh, route_id, direct=2_000, r=9_000)
    before = await route_of(mesh, route_id)
    await mesh.clock.advance(10)
    cut = await observation(mesh, route_id, state=UNREACHABLE)
    await tell(mesh, "a", cut, epoch=mesh.epochs["a"] - 1)
    assert await route_of(mesh, route_id) == before
    assert dropped(mesh) == {"superseded": 1}


async def test_what_is_known_outlives_a_restart(mesh: Mesh) -> None:
    await add_relays(mesh, "r")
    route_id = (await mesh.connect("a", "b")).route_id
    for _ in range(3):
        await walk(mesh, route_id, direct=2_000, r=9_000)
        await mesh.clock.advance(10)
    await walk(mesh, route_id, direct=None, r=9_000)
    before = await route_of(mesh, route_id)
    again = another_process(mesh)
    explained = await again.explain(route_id)
    assert explained.known[""].penalty == 1000
    assert explained.known[mesh.ids["r"]].samples == 4
    assert explained.decision is not None
    assert (explained.decision.generation, explained.decision.rule) == (before.generation, "UNHEALTHY")
    await mesh.clock.advance(10)
    await walk(mesh, route_id, routes=again, r=9_000)
    assert (await route_of(mesh, route_id)).generation == before.generation


async def test_replicas_that_decide_about_one_route_at_once_make_one_generation(mesh: Mesh, database_url: str) -> None:
    await add_relays(mesh, "r")
    route_id = (await mesh.connect("a", "b")).route_id
    await walk(mesh, route_id, direct=2_000, r=9_000)
    before = await route_of(mesh, route_id)
    await mesh.clock.advance(10)
    cut = [await observation(mesh, route_id, state=UNREACHABLE), await observation(mesh, route_id, "r", rtt_us=9_000)]
    second = Database(database_url, readers=1)
    second.start()
    try:
        both = (mesh.routes, another_process(mesh, second))
        async with recording(*both):
            # Each believes to have the node's newest stream.
            health = route_pb2.RouteHealth(observations=cut)
            await asyncio.gather(*(each.record(mesh.ids["a"], mesh.epochs["a"], health) for each in both))
    finally:
        await second.close()
    after = await route_of(mesh, route_id)
    assert (after.relay_id, after.generation) == (mesh.ids["r"], before.generation + 1)
    assert (await lease_of(mesh, route_id)).generation == 1


async def test_a_tampered_route_is_left_out_and_told_once(mesh: Mesh) -> None:
    route_id = (await mesh.connect("a", "b")).route_id
    other = (await mesh.connect("b", "a")).route_id
    told = [await observation(mesh, each) for each in (route_id, other)]
    await mesh.tamper("UPDATE routes SET relay_node_id = 'nd_evil' WHERE route_id = ?", route_id)
    await tell(mesh, "a", told[0])
    await tell(mesh, "b", told[1])
    for _ in range(2):
        await mesh.routes.sweep()
    assert dropped(mesh) == {"unknown_route": 1}
    assert (await route_of(mesh, other)).state == "HEALTHY"
    assert [detail["row"] for detail in await mesh.details("route.quarantined")] == [route_id]


async def test_a_missed_lease_is_sent_again_and_a_tampered_one_replaced(mesh: Mesh) -> None:
    await add_relays(mesh, "r")
    route_id = (await mesh.connect("a", "b")).route_id
    await walk(mesh, route_id, direct=None, r=9_000)
    lease = await lease_of(mesh, route_id)
    await mesh.clock.advance(1)
    mesh.woken.clear()
    await tell(mesh, "r", await observation(mesh, route_id, "r", state=UNREACHABLE, observation_type=LEASE))
    assert mesh.ids["r"] in mesh.woken
    assert await lease_of(mesh, route_id) == lease
    await mesh.tamper("UPDATE route_leases SET expires_at_ms = expires_at_ms + 1 WHERE route_id = ?", route_id)
    await mesh.clock.advance(1)
    await walk(mesh, route_id, r=9_000)
    again = await lease_of(mesh, route_id)
    assert again.intact
    assert again.generation > lease.generation
    assert again.generation == (await route_of(mesh, route_id)).generation


async def test_a_row_that_somebody_holds_keeps_up_nothing_but_what_is_told_of_it(
    mesh: Mesh, request: pytest.FixtureRequest
) -> None:
    if "sqlite" in request.node.name:
        pytest.skip("SQLite has one writer")
    route_id = (await mesh.connect("a", "b")).route_id
    other = (await mesh.connect("b", "a")).route_id
    told = [await observation(mesh, each) for each in (route_id, other)]
    with mesh.database.writer._engine.connect() as holding:
        holding.exec_driver_sql("SELECT 1 FROM routes WHERE route_id = %s FOR UPDATE", (route_id,)).all()
        await tell(mesh, "a", told[0])
        await tell(mesh, "b", told[1])
        assert (await route_of(mesh, other)).state == "HEALTHY"
        assert (await route_of(mesh, route_id)).state == "UNKNOWN"
    await mesh.routes.flush()
    assert (await route_of(mesh, route_id)).state == "HEALTHY"
    assert dropped(mesh) == {}
