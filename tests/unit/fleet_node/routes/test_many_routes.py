"""One source of many routes, whose relay hangs: every walk over it takes as long as a walk may."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from fleet_node.routes.walk_rules import WalkResult, WalkState
from tests.unit.fleet_node.routes.room import DIRECT, INTERVAL_S, RELAYED, FakeCaller, Room
from tests.unit.fleet_node.routes.snapshots import lease, route

ROUTES = 500
"""The server lets a node be the end of no more."""


class HangingCaller(FakeCaller):
    """A way that is broken says nothing until the walk is given up."""

    room: Room

    async def walk(self, route_id: str, generation: int, path: Sequence[str], timeout_s: float) -> WalkResult:
        if tuple(path) in self.broken:
            await self.room.clock.sleep(timeout_s)
        return await super().walk(route_id, generation, path, timeout_s)


@pytest.mark.timeout(60)
async def test_all_routes_over_a_relay_that_hangs_are_told_within_three_intervals(tmp_path: Path) -> None:
    room = Room(tmp_path)
    room.caller = caller = HangingCaller()
    room.service = room.build(room.parts)
    caller.room = room
    room.service.opened(room.uplink)
    running = asyncio.create_task(room.service.run())
    try:
        ids = [f"rt_{number}" for number in range(ROUTES)]
        long = {"issued_at_ms": room.clock.now_ms(), "expires_at_ms": room.clock.now_ms() + 120_000}
        leases = [lease(route_id=each, lease_id=f"ls_{each}", **long) for each in ids]
        await room.give(*(route(RELAYED, DIRECT, route_id=each) for each in ids), leases=leases)
        await room.clock.advance(2 * INTERVAL_S)
        room.told()
        caller.broken[RELAYED] = WalkState.UNREACHABLE
        await room.clock.advance(3 * INTERVAL_S)
        told = {
            found.route_id
            for frame in room.told()
            for found in frame.observations
            if tuple(found.expected_hops) == RELAYED and found.failure == "TIMED_OUT"
        }
        assert told == set(ids)
    finally:
        running.cancel()
        await asyncio.wait({running})
