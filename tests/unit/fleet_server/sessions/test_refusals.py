"""Refused proofs in the audit: whoever hammers at the door fills no table, and hides nobody else's."""

import json
from collections import deque

from fleet.errors import Reason, Refusal
from fleet_server.audit.service import AuditCursor
from fleet_server.sessions.refusals import MAX_NAMES, RefusalLog
from tests.unit.fleet_server.sessions.world import World

BAD_PROOF = Refusal(Reason.BAD_PROOF, "not by this node")


async def refused(world: World) -> dict[str, object]:
    rows = (await world.audit.page(AuditCursor())).rows
    [detail] = [json.loads(row.detail) for row in rows if row.kind == "session.refused"]
    return dict(detail)


async def test_equal_ones_are_counted(world: World) -> None:
    kept = RefusalLog(world.database, world.audit, deque())
    for _ in range(3):
        kept.note("Connect", "nd_a", "192.0.2.1", BAD_PROOF)
    await kept.flush()
    entry = {"rpc": "Connect", "node": "nd_a", "address": "192.0.2.1", "reason": "BAD_PROOF", "times": 3}
    assert await refused(world) == {"refused": [entry], "not_listed": 0}


async def test_names_that_a_caller_makes_up_take_few_places(world: World) -> None:
    """The thief of one api_key names another node each time."""
    kept = RefusalLog(world.database, world.audit, deque())
    for number in range(5000):
        kept.note("Connect", f"{number:04}" + "é" * 60, "192.0.2.66", BAD_PROOF)
    kept.note("Connect", "\x01" * 64, "192.0.2.66", BAD_PROOF)
    kept.note("Connect", "nd_a", "192.0.2.1", BAD_PROOF)
    await kept.flush()
    said = await refused(world)
    listed = said["refused"]
    assert isinstance(listed, list)
    assert len(listed) == MAX_NAMES + 2
    assert {"rpc": "Connect", "node": "nd_a", "address": "192.0.2.1", "reason": "BAD_PROOF", "times": 1} in listed
    assert sum(entry["times"] for entry in listed) == 5002
    assert len(json.dumps(said)) < 16 * 1024
