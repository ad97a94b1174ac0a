"""What time, or somebody else, ends: relays that are gone, leases, ways that nobody walks, history."""

import asyncio
from collections import Counter

from fleet_server.nodes.record import NodeState
from tests.unit.fleet_server.routes.mesh import Mesh
from tests.unit.fleet_server.routes.walks import (
    add_relays,
    another_process,
    decisions,
    lease_of,
    observation,
    route_of,
    tell,
    walk,
)


async def over_relay(mesh: Mesh) -> str:
    """A route that leads over `r`, beside whom there is `s`; its id."""
    await add_relays(mesh, "r", "s")
    route_id = (await mesh.connect("a", "b")).route_id
    await walk(mesh, route_id, direct=None, r=7_000, s=9_000)
    assert (await route_of(mesh, route_id)).relay_id == mesh.ids["r"]
    return route_id


async def test_a_relay_that_was_removed_is_replaced(mesh: Mesh) -> None:
    route_id = await over_relay(mesh)
    before, lease = await route_of(mesh, route_id), await lease_of(mesh, route_id)
    await mesh.routes.remove_relay("r", by="ada")
    await mesh.routes.sweep()
    after, next_lease = await route_of(mesh, route_id), await lease_of(mesh, route_id)
    assert (after.relay_id, after.generation) == (mesh.ids["s"], before.generation + 1)
    assert (next_lease.relay_id, next_lease.generation) == (mesh.ids["s"], lease.generation + 1)
    assert (await mesh.content("r")).routes == []
    assert (await decisions(mesh))[-1]["rule"] == "RELAY_GONE"


async def test_a_relay_that_was_suspended_or_drained_is_replaced(mesh: Mesh) -> None:
    route_id = await over_relay(mesh)
    await mesh.nodes.set_state("ada", ["r"], NodeState.SUSPENDED.value, "")
    await mesh.routes.sweep()
    assert (await route_of(mesh, route_id)).relay_id == mesh.ids["s"]
    await mesh.nodes.set_state("ada", ["r"], NodeState.ACTIVE.value, "")
    await mesh.nodes.request_drain("ada", ["s"], 0, "")
    await walk(mesh, route_id, direct=None, r=7_000)
    assert (await route_of(mesh, route_id)).relay_id == mesh.ids["r"]


async def test_a_lease_is_renewed_while_its_relay_is_there_and_ends_with_it(mesh: Mesh) -> None:
    route_id = await over_relay(mesh)
    before, lease = await route_of(mesh, route_id), await lease_of(mesh, route_id)
    await mesh.clock.advance(30)
    await mesh.routes.sweep()
    assert await lease_of(mesh, route_id) == lease  # less than a third of its life is over
    mesh.woken.clear()
    await mesh.clock.advance(11)
    await mesh.routes.sweep()
    renewed = await lease_of(mesh, route_id)
    assert (renewed.lease_id, renewed.generation) == (lease.lease_id, lease.generation)
    assert renewed.expires_at_ms == mesh.clock.now_ms() + mesh.routes.policy.lease_ttl_ms
    assert set(mesh.woken) == {mesh.ids["r"], mesh.ids["a"]}
    assert (await route_of(mesh, route_id)).generation == before.generation
    # Nothing of this server ran while the relay went, and its lease with it.
    await mesh.nodes.close_stream(mesh.ids["r"], mesh.epochs["r"])
    await mesh.clock.advance(mesh.routes.policy.lease_ttl_ms / 1000 + 1)
    await walk(mesh, route_id, s=9_000)
    await mesh.routes.sweep()
    after, next_lease = await route_of(mesh, route_id), await lease_of(mesh, route_id)
    assert (after.relay_id, after.generation) == (mesh.ids["s"], before.generation + 1)
    assert (next_lease.relay_id, next_lease.generation) == (mesh.ids["s"], lease.generation + 1)
    assert {values[0]: handle.value for values, handle in mesh.metrics.leases.items()} == {
        "granted": 2,
        "renewed": 1,
        "withdrawn": 0,
        "expired": 1,
        "refused": 0,
    }


async def test_a_relay_that_is_offline_for_a_moment_keeps_its_routes(mesh: Mesh) -> None:
    route_id = await over_relay(mesh)
    await mesh.nodes.close_stream(mesh.ids["r"], mesh.epochs["r"])
    await mesh.clock.advance(14)
    await mesh.routes.sweep()
    assert (await route_of(mesh, route_id)).relay_id == mesh.ids["r"]
    await mesh.clock.advance(2)
    await mesh.routes.sweep()
    assert (await route_of(mesh, route_id)).relay_id == mesh.ids["s"]


async def test_relays_of_a_replica_that_was_lost_have_time_to_come_back(mesh: Mesh) -> None:
    route_id = await over_relay(mesh)
    await mesh.clock.advance(40)  # idle nodes say little: the last sign of life may be old
    await mesh.database.write(lambda tx: mesh.nodes.forget_streams(tx, "r1"))
    await mesh.routes.sweep()
    assert (await route_of(mesh, route_id)).relay_id == mesh.ids["r"]
    await mesh.open_stream("s")
    await walk(mesh, route_id, s=9_000)
    await mesh.clock.advance(16)
    await mesh.routes.sweep()
    assert (await route_of(mesh, route_id)).relay_id == mesh.ids["s"]


async def test_the_routes_of_a_lost_relay_spread_over_the_others_as_these_fill(mesh: Mesh) -> None:
    await add_relays(mesh, "r")
    await mesh.add_nodes(*(f"e{number}" for number in range(6)))
    routes = [(await mesh.connect("a", f"e{number}")).route_id for number in range(6)]
    for route_id in routes:
        await walk(mesh, route_id, direct=None, r=5_000)
    await add_relays(mesh, "s", "t", capacity=3)
    for route_id in routes:
        await tell(mesh, "a", *[await observation(mesh, route_id, each, rtt_us=9_000) for each in ("s", "t")])
    assert {(await route_of(mesh, route_id)).relay_id for route_id in routes} == {mesh.ids["r"]}
    await mesh.routes.remove_relay("r", by="ada")
    rows = len(await mesh.details("route.decided"))
    await mesh.routes.sweep()
    taken = Counter([(await route_of(mesh, route_id)).relay_id for route_id in routes])
    assert taken == {mesh.ids["s"]: 3, mesh.ids["t"]: 3}
    assert len(await mesh.details("route.decided")) == rows + 1  # all of them in one transaction


async def test_a_path_that_nobody_walks_counts_for_nothing(mesh: Mesh) -> None:
    route_id = (await mesh.connect("a", "b")).route_id
    await walk(mesh, route_id, direct=2_000)
    before = await route_of(mesh, route_id)
    await mesh.clock.advance(29)
    await mesh.routes.sweep()
    assert (await route_of(mesh, route_id)).state == "HEALTHY"
    await mesh.clock.advance(2)
    await mesh.routes.sweep()
    after = await route_of(mesh, route_id)
    assert (after.state, after.state_since_ms, after.generation) == ("UNKNOWN", mesh.clock.now_ms(), before.generation)


async def test_two_that_sweep_one_after_another_decide_once(mesh: Mesh) -> None:
    route_id = await over_relay(mesh)
    before = await route_of(mesh, route_id)
    await mesh.routes.remove_relay("r", by="ada")
    for routes in (mesh.routes, another_process(mesh)):
        await routes.sweep()
    assert (await route_of(mesh, route_id)).generation == before.generation + 1


async def test_what_is_older_than_the_retention_is_deleted_but_for_the_newest_decision(mesh: Mesh) -> None:
    route_id = await over_relay(mesh)
    await mesh.clock.advance(mesh.routes.retention_ms / 1000 + 1)
    newest = await route_of(mesh, route_id)
    await mesh.routes.prune()
    observed, decided = await mesh.database.read(
        lambda conn: [
            [row[0] for row in conn.exec_driver_sql(text)]
            for text in (
                "SELECT position FROM route_observation_history",
                "SELECT generation FROM route_decisions",
            )
        ]
    )
    assert (observed, decided) == ([], [newest.generation])


async def test_the_sweep_runs_each_second_and_at_once_when_a_relay_left(mesh: Mesh) -> None:
    route_id = await over_relay(mesh)
    sweeping = asyncio.ensure_future(mesh.routes.run_sweep())
    try:
        await mesh.clock.wait_sleepers(1)
        await mesh.routes.remove_relay("r", by="ada")
        while (await route_of(mesh, route_id)).relay_id == mesh.ids["r"]:  # the clock stands still
            await asyncio.sleep(0)
        while not mesh.metrics.routes.labels("HEALTHY").value:
            await mesh.clock.wait_sleepers(1)
            await mesh.clock.advance(1)
        assert mesh.metrics.route_state.labels("a-to-b").value == 1
        assert mesh.metrics.route_rtt.labels("a-to-b").value == 0.009
    finally:
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)
