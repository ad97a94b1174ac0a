"""A replica that the others took for lost, and that tells of a new state at that moment."""

import asyncio
import threading
from typing import Any

from fleet.errors import Reason, Refusal
from fleet_server.replicas.rules import ReplicaState
from tests.fakes.clock import MockClock
from tests.integration.waiting import eventually
from tests.unit.fleet_server.replicas.test_service import look_on, ready
from tests.unit.fleet_server.sessions.world import World


async def test_that_it_was_lost_is_not_forgotten_for_a_new_state_told_meanwhile(world: World, clock: MockClock) -> None:
    a, b = await ready(world, "a"), await ready(world, "b")
    await look_on(a, clock)
    assert (await a.get("b")).state is ReplicaState.LOST
    b.returning = Refusal(Reason.UNAVAILABLE, "the database went away again")
    goes_on = threading.Event()
    told: list[asyncio.Future[Any]] = [asyncio.ensure_future(world.database.write(lambda _: goes_on.wait(10)))]
    await asyncio.sleep(0)
    depth = world.database.writer.depth
    await eventually(lambda: depth() == 0, "the writer is at it")
    for jobs, telling in enumerate((b.beat(), b.set_state(ReplicaState.DRAINING)), 1):
        told.append(asyncio.ensure_future(telling))
        await eventually(lambda jobs=jobs: depth() >= jobs, f"{jobs} jobs wait")  # type: ignore[misc]
    goes_on.set()
    await asyncio.gather(*told, return_exceptions=True)
    b.returning = None
    await b.beat()
    assert b.returns == 1
