"""What nodes of a mesh report of its routes, and what became of that."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fleet.metrics import Registry
from fleet.v1 import route_pb2
from fleet_server.database.engine import Database
from fleet_server.database.wakeup import Wakeup
from fleet_server.observability.route_metrics import RouteMetrics
from fleet_server.routes.record import LeaseRecord, RouteRecord
from fleet_server.routes.service import RouteService
from tests.integration.waiting import eventually
from tests.unit.fleet_server.routes.mesh import SECRETS, Mesh

HEALTHY = route_pb2.ROUTE_STATE_HEALTHY
UNREACHABLE = route_pb2.ROUTE_STATE_UNREACHABLE
EFFECTIVE = route_pb2.OBSERVATION_TYPE_SYNTHETIC_ROUTE_HEALTH
CANDIDATE = route_pb2.OBSERVATION_TYPE_CANDIDATE_PATH
LEASE = route_pb2.OBSERVATION_TYPE_LEASE


async def add_relays(mesh: Mesh, *names: str, capacity: int = 100) -> None:
    """Nodes that may relay."""
    await mesh.add_nodes(*(name for name in names if name not in mesh.ids))
    for name in names:
        await mesh.routes.add_relay(name, capacity=capacity, by="ada")


def another_process(mesh: Mesh, database: Database | None = None) -> RouteService:
    """The room in another process, or started again: what one keeps in memory the other does not know."""
    return RouteService(
        metrics=RouteMetrics(Registry()),
        database=database or mesh.database,
        clock=mesh.clock,
        wakeup=Wakeup(),
        audit=mesh.audit,
        nodes=mesh.nodes,
        trust=mesh.trust,
        row_mac=SECRETS.row_mac,
    )


async def route_of(mesh: Mesh, route_id: str) -> RouteRecord:
    """A route as its row says."""
    return (await mesh.database.read(lambda conn: mesh.routes.routes.by_ids(conn, [route_id])))[route_id]


async def lease_of(mesh: Mesh, route_id: str) -> LeaseRecord:
    """The newest lease of a route that has one."""
    return (await mesh.database.read(lambda conn: mesh.routes.leases.of_routes(conn, [route_id])))[route_id]


async def observation(
    mesh: Mesh, route_id: str, relay: str = "", *, state: int = HEALTHY, rtt_us: int = 5_000, **more: Any
) -> route_pb2.RouteObservation:
    """A walk of the way over a relay, by name, at this moment."""
    route = await route_of(mesh, route_id)
    relay_id = mesh.ids[relay] if relay else ""
    hops = route.way(relay_id)
    works = state == HEALTHY
    fields: dict[str, Any] = {
        "route_id": route_id,
        "generation": route.generation,
        "observation_type": EFFECTIVE if relay_id == route.relay_id else CANDIDATE,
        "state": state,
        "expected_hops": hops,
        "observed_hops": hops if works else hops[:1],
        "rtt_us": rtt_us if works else 0,
        "failure": "" if works else "TIMED_OUT",
        "failed_hop": 0 if works else 1,
        "observed_at_ms": mesh.clock.now_ms(),
    }
    return route_pb2.RouteObservation(**(fields | more))


async def tell(
    mesh: Mesh,
    reporter: str,
    *observations: route_pb2.RouteObservation,
    routes: RouteService | None = None,
    epoch: int | None = None,
) -> None:
    """A node reports, and that is recorded."""
    routes = routes or mesh.routes
    health = route_pb2.RouteHealth(observations=observations)
    shown = mesh.epochs[reporter] if epoch is None else epoch
    recorded = asyncio.ensure_future(routes.record(mesh.ids[reporter], shown, health))
    await asyncio.sleep(0)
    await routes.flush()
    await recorded


async def walk(
    mesh: Mesh, route_id: str, reporter: str = "a", routes: RouteService | None = None, **rtts_us: int | None
) -> None:
    """The source walked ways: round trips by name of the relay, `direct` for without; None for no answer."""
    told = []
    for name, rtt_us in rtts_us.items():
        relay = "" if name == "direct" else name
        state = UNREACHABLE if rtt_us is None else HEALTHY
        told.append(await observation(mesh, route_id, relay, state=state, rtt_us=rtt_us or 0))
    await tell(mesh, reporter, *told, routes=routes)


async def decisions(mesh: Mesh) -> list[dict[str, Any]]:
    """What the audit has of decisions, one after another."""
    return [each for detail in await mesh.details("route.decided") for each in detail["decisions"]]


def dropped(mesh: Mesh) -> dict[str, float]:
    """Observations that were not recorded, by reason."""
    return {values[0]: handle.value for values, handle in mesh.metrics.dropped.items()}


async def waiting(mesh: Mesh, jobs: int) -> None:
    """Until so many jobs wait for the writer."""
    await eventually(lambda: mesh.database.writer.depth() >= jobs, f"{jobs} jobs wait")


@asynccontextmanager
async def writing_later(mesh: Mesh, jobs: int) -> AsyncIterator[None]:
    """The writer is at something until so many jobs wait for it, which make one group then."""
    goes_on = threading.Event()
    before = asyncio.ensure_future(mesh.database.write(lambda _: goes_on.wait(10)))
    await asyncio.sleep(0)
    await eventually(lambda: mesh.database.writer.depth() == 0, "the writer is at it")
    try:
        yield
        await waiting(mesh, jobs)
    finally:
        goes_on.set()
        await before


@asynccontextmanager
async def recording(*services: RouteService) -> AsyncIterator[None]:
    """Recorders that run, as in a server."""
    tasks = [asyncio.ensure_future(each.run_recorder()) for each in services]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
