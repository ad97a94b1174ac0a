"""Two processes of one replica id, over both databases: who may start, and who stops."""

import asyncio

import pytest

from fleet.errors import Reason, Refusal
from fleet_server.audit.kinds import AuditKind
from fleet_server.replicas.fence import PATIENCE_S, NameTakenError
from fleet_server.replicas.rules import ReplicaState
from fleet_server.verbs import Refused, _ending_of
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.replicas.test_service import Replica, ready
from tests.unit.fleet_server.sessions.world import World


async def begin(replica: Replica, clock: MockClock) -> asyncio.Task[None]:
    """Have it ask for the name, and wait until it watches the one who has it."""
    taking = asyncio.create_task(replica.fence.take())
    await clock.wait_sleepers(1)
    return taking


async def watch(clock: MockClock, seconds: float, *taking: asyncio.Task[None]) -> None:
    """Let time pass for those who watch, look by look; at most until all are done."""
    until_s = clock.monotonic() + seconds
    while clock.monotonic() < until_s and (left := [task for task in taking if not task.done()]):
        looked = asyncio.create_task(clock.wait_sleepers(len(left)))
        await asyncio.wait({looked, *left}, return_when=asyncio.FIRST_COMPLETED)
        looked.cancel()
        await clock.advance(0.25)


async def test_a_copied_data_folder_is_refused_while_the_other_one_beats(world: World, clock: MockClock) -> None:
    first = await ready(world, "r1")
    copy = Replica(world, "r1", place="a copy")
    taking = await begin(copy, clock)
    await watch(clock, 2, taking)
    await first.beat()
    await watch(clock, 1, taking)
    with pytest.raises(NameTakenError, match=r"replica r1, and gave a sign of life.*delete the file `replica-id`"):
        await taking
    assert isinstance(_ending_of(taking.exception()), Refused)  # type: ignore[arg-type]
    assert copy.gone == []
    assert not first.fence.replaced.is_set()
    await first.beat()


async def test_one_that_stands_still_is_replaced_and_stops_when_it_comes_back(world: World, clock: MockClock) -> None:
    frozen = await ready(world, "r1")
    taking = await begin(Replica(world, "r1", place="elsewhere"), clock)
    await watch(clock, PATIENCE_S - 1, taking)
    assert not taking.done()
    await watch(clock, 2, taking)
    await taking
    with pytest.raises(Refusal) as refused:
        await frozen.beat()
    assert refused.value.reason is Reason.UNAVAILABLE
    await frozen.fence.replaced.wait()
    with pytest.raises(Refusal, match="this one stops"):
        await frozen.set_state(ReplicaState.STOPPED)


@pytest.mark.parametrize("end", ["killed here", "stopped", "lost", "forgotten"])
async def test_who_is_surely_gone_is_not_waited_for(world: World, clock: MockClock, end: str) -> None:
    before, other = await ready(world, "r1"), await ready(world, "r2")
    if end == "stopped":
        await before.set_state(ReplicaState.STOPPED)
    elif end == "lost":
        for _ in range(7):
            await other.beat()
            await clock.advance(2)
    elif end == "forgotten":
        await world.database.write(lambda tx: tx.conn.exec_driver_sql("DELETE FROM replicas WHERE replica_id = 'r1'"))
    after = Replica(world, "r1", place="here" if end == "killed here" else "elsewhere")
    await after.fence.take()  # the clock stands still: nothing was waited for
    await after.register()
    with pytest.raises(Refusal):
        await before.beat()


async def test_two_that_start_at_once_from_copies_are_one(world: World, clock: MockClock) -> None:
    await ready(world, "r1")
    both = [asyncio.create_task(Replica(world, "r1", place=place).fence.take()) for place in ("a", "b")]
    await watch(clock, 2 * PATIENCE_S, *both)
    ended = await asyncio.gather(*both, return_exceptions=True)
    assert sorted(type(each).__name__ for each in ended) == ["NameTakenError", "NoneType"]


async def test_a_replaced_one_takes_no_successor_s_audit_for_a_forgery(world: World, clock: MockClock) -> None:
    frozen = await ready(world, world.audit.writer)
    world.audit._hold = world.audit._own._hold = frozen.fence.check

    def deed(tx: object) -> None:
        world.audit.append(tx, AuditKind.REPLICA_STARTED, actor="server", subject="s", detail={})  # type: ignore[arg-type]

    await world.database.write(deed)
    await world.database.write(
        lambda tx: [
            tx.conn.exec_driver_sql("UPDATE replicas SET boot_id = 'another.process'"),
            tx.conn.exec_driver_sql("UPDATE audit_heads SET number = number + 1"),
        ]
    )
    with pytest.raises(Refusal, match="this one stops"):
        await world.database.write(deed)
    await frozen.fence.replaced.wait()
    assert "audit.tampered" not in await world.audited()
