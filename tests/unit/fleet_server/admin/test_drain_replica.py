"""A drain of a replica as an operator follows it, through another one."""

import asyncio
from unittest.mock import AsyncMock, MagicMock

from fleet.v1 import admin_pb2
from fleet_server.admin.access import Caller
from fleet_server.admin.replicas import ReplicasApi
from fleet_server.admin.rules import Role
from fleet_server.replicas.rules import ReplicaRecord, ReplicaState
from tests.fakes.clock import MockClock

CALLER = Caller("alice", Role.RELEASE)
WITHIN_S = 2 + 5 + 20 + 45 + 10 + 3  # heard of, delay, deadline, end of the process, found lost, and a look
REQUEST = admin_pb2.DrainReplicaRequest(replica_id="replica-a", deadline_s=20)


def _replica(state: ReplicaState) -> ReplicaRecord:
    return ReplicaRecord("replica-a", "1", state, 4, 10.0, 5, 6, None)


def _api(clock: MockClock, *replicas: ReplicaRecord) -> ReplicasApi:
    room = MagicMock(replica_id="replica-b")
    room.request_drain = AsyncMock(return_value=replicas[0])
    room.list = AsyncMock(side_effect=[[each] for each in replicas[:-1]] + [[replicas[-1]]] * 1000)
    return ReplicasApi(room, clock, delay_s=5.0, deadline_s=30.0)


async def _told(api: ReplicasApi, clock: MockClock) -> list[admin_pb2.DrainReplicaResponse]:
    async def follow() -> list[admin_pb2.DrainReplicaResponse]:
        return [answer async for answer in api.drain(CALLER, REQUEST)]

    following = asyncio.ensure_future(follow())
    await asyncio.sleep(0)
    while not following.done():
        await clock.advance(0.25)
    return await following


async def test_one_that_lives_and_does_not_end_is_followed_for_as_long_as_it_may_take(clock: MockClock) -> None:
    began_s = clock.monotonic()
    told = await _told(_api(clock, _replica(ReplicaState.DRAINING)), clock)
    assert clock.monotonic() - began_s == WITHIN_S
    assert {answer.ends_within_s for answer in told} == {WITHIN_S}
    assert not any(answer.done for answer in told)


async def test_one_that_stands_still_is_done_with_once_it_is_found_lost(clock: MockClock) -> None:
    draining, lost = _replica(ReplicaState.DRAINING), _replica(ReplicaState.LOST)
    told = await _told(_api(clock, draining, draining, lost), clock)
    assert [(answer.done, answer.replica.state) for answer in told] == [
        (False, "DRAINING"),
        (False, "DRAINING"),
        (True, "LOST"),
    ]
