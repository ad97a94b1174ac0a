"""Fault: links between nodes are cut, flap and lead elsewhere; relays and the server die. All are real processes.

Must hold: a route finds the best way that is left, what flaps is held out, who is met in another's place is named, a
lease that ran out is replaced, and nothing of it is forgotten over a restart of the server.
"""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.fakes.process import Processes
from tests.integration.installation import Template
from tests.integration.mesh import ExplainRouteResponse, Mesh, RouteView
from tests.integration.waiting import eventually

INTERVAL_MS = 600
WORKS = {"HEALTHY", "DEGRADED"}  # the second for as long as walks that were lost are among its last ten
ROUTE = "a-b"


@pytest.fixture
async def mesh(tmp_path: Path, template: Template, processes: Processes) -> AsyncIterator[Mesh]:
    """Two ends, two relays, and a source none of whose links breaks."""
    async with Mesh(tmp_path, template, processes, lease_ttl_s=4, relay_loss_s=20.0) as running:
        await running.add_members("a", "b", "r-1", "r-2", "c")
        await running.create_route("a", "b", interval_ms=INTERVAL_MS)
        await running.create_route("c", "b", interval_ms=INTERVAL_MS)
        await running.add_relay("r-1")
        await running.add_relay("r-2")
        yield running


def over(relay: str) -> Callable[[RouteView], bool]:
    """Whether a route works over that relay; "" for the direct path."""
    return lambda route: route.state in WORKS and route.relay_name == relay


def relayed(route: RouteView) -> bool:
    return bool(route.state in WORKS and route.relay_name)


def ways(explained: ExplainRouteResponse) -> dict[str, str]:
    """State of each way by its relay."""
    return {way.relay_name: way.state for way in explained.candidates}


async def test_a_route_finds_its_way_whatever_breaks(mesh: Mesh) -> None:
    await mesh.wait_route(ROUTE, over(""))
    await eventually(lambda: all_healthy(mesh), "every way was walked")

    mesh.cut("a", "b")
    cut = await mesh.wait_route(ROUTE, relayed)
    assert (cut.decision.rule, cut.lease.generation) == ("UNHEALTHY", 1)
    assert ways(cut)[""] == "UNREACHABLE"
    assert cut.route.waiting_rendezvous

    relay = cut.route.relay_name
    other = {"r-1": "r-2", "r-2": "r-1"}[relay]
    mesh.cut("a", relay)
    replaced = await mesh.wait_route(ROUTE, over(other))
    assert replaced.lease.generation == 2
    assert replaced.route.generation == cut.route.generation + 1

    for _ in range(4):  # that link flaps: what leads over it is held out, however well it answers at the moment
        mesh.heal("a", relay)
        await eventually(lambda: answers(mesh, relay), f"{relay} answers again")
        if await held_out(mesh, relay):
            break
        mesh.cut("a", other)
        await mesh.wait_route(ROUTE, over(relay))
        mesh.heal("a", other)
        await eventually(lambda: answers(mesh, other), f"{other} answers again")
        mesh.cut("a", relay)
        await mesh.wait_route(ROUTE, over(other))
    assert await held_out(mesh, relay)
    mesh.cut("a", other)
    last = await mesh.wait_route(ROUTE, over(relay))
    assert last.decision.rule == "LAST_USABLE"
    mesh.heal("a", other)
    await eventually(lambda: answers(mesh, other), f"{other} answers again")

    mesh.lead_to("a", relay, instead=other)
    drifted = await mesh.wait_route(ROUTE, over(other))
    assert ways(drifted)[relay] == "DRIFT"
    found = [each for each in await mesh.observations(ROUTE) if each.state == "DRIFT"]
    assert {tuple(each.expected_hops) for each in found} == {("a", relay, "b")}
    assert {tuple(each.observed_hops) for each in found} == {("a", other)}

    await mesh.wait_route("c-b", lambda route: route.state in WORKS)
    assert "DRIFT" not in {each.state for each in await mesh.observations("c-b")}

    generation, penalty = drifted.lease.generation, held_until(drifted)
    await mesh.crash_server()
    await eventually(lambda: lease_ran_out(mesh), "the lease ran out where it is used")
    await mesh.start_server()
    await eventually(lambda: leased_again(mesh, generation), "the lease that ran out is replaced")
    again = await mesh.wait_route(ROUTE, relayed)
    assert held_until(again) == penalty

    await mesh.members[again.route.relay_name].kill()
    mesh.heal("a", "b")
    await mesh.wait_route(ROUTE, lambda route: route.state in WORKS and route.relay_name != again.route.relay_name)


async def lease_ran_out(mesh: Mesh) -> bool:
    """Whether the source may use its path no longer."""
    shown = await mesh.shown("a")
    return not shown["lease"]["left_ms"] and shown["state"] == "UNREACHABLE"


async def leased_again(mesh: Mesh, generation: int) -> bool:
    """Whether a lease behind that generation is held."""
    lease = (await mesh.explain(ROUTE)).lease
    return bool(lease.generation > generation and lease.acknowledged_at_ms and not lease.withdrawn)


async def all_healthy(mesh: Mesh) -> bool:
    return set(ways(await mesh.explain(ROUTE)).values()) == {"HEALTHY"}


async def answers(mesh: Mesh, relay: str) -> bool:
    """Whether the way over a relay works."""
    return ways(await mesh.explain(ROUTE)).get(relay) in WORKS


async def held_out(mesh: Mesh, relay: str) -> bool:
    """Whether flap damping holds a way out."""
    return relay in held_until(await mesh.explain(ROUTE))


def held_until(explained: ExplainRouteResponse) -> dict[str, int]:
    """Until when each way that is held out is, by its relay."""
    return {way.relay_name: way.suppressed_until_ms for way in explained.candidates if way.suppressed_until_ms}
