"""Does what the schedule says, and undoes it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from fleet.errors import Refusal
from fleet.v1 import admin_pb2
from tests.chaos.operators import Desk
from tests.chaos.programs import Program
from tests.chaos.schedule import Event, Kind
from tests.chaos.world import World
from tests.fakes.lane import Direction

_DRAINED_WITHIN_S = 60.0
"""A replica's deadline for its streams (6 s), the 45 s after which it is gone whatever hangs, and room."""
_NODES_STOPPED_WITHIN_S = 40.0
_HURRY_AFTER_S = 1.0
_RESUMED_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Done:
    """One fault as it went.

    Args:
        event: what was planned.
        began_s, ended_s: when, seconds after the start.
        failed: what should not have happened on the way, in words.
    """

    event: Event
    began_s: float
    ended_s: float
    failed: str = ""


class Faults:
    """Carries a plan out.

    Args:
        world: to break.
        owner: a desk with the owner's token, for what operators order.
        show: told what is done, when it is done.
    """

    def __init__(self, world: World, owner: Desk, show: Callable[[str], None]) -> None:
        self._world = world
        self._owner = owner
        self._show = show
        self._acts: dict[Kind, Callable[[Event], contextlib.AbstractAsyncContextManager[None]]] = {
            Kind.KILL_REPLICA: self._killed,
            Kind.DRAIN_REPLICA: self._stopped,
            Kind.HURRY_REPLICA: self._stopped,
            Kind.ORDER_DRAIN: self._ordered_to_drain,
            Kind.FREEZE_REPLICA: self._frozen,
            Kind.KILL_NODES: self._killed,
            Kind.STOP_NODES: self._stopped,
            Kind.FREEZE_NODES: self._frozen,
            Kind.KILL_NODE: self._killed,
            Kind.STOP_NODE: self._stopped,
            Kind.FREEZE_NODE: self._frozen,
            Kind.CUT_LINK: self._link,
            Kind.PART_LINK: self._link,
            Kind.DEAFEN_LINK: self._link,
            Kind.HOLD_LINK: self._link,
            Kind.SLOW_LINK: self._link,
            Kind.PART_DATABASE: self._link,
            Kind.DEAFEN_DATABASE: self._link,
            Kind.SLOW_DATABASE: self._link,
            Kind.CRASH_DATABASE: self._database_down,
            Kind.RESTART_DATABASE: self._database_down,
            Kind.END_SESSIONS: self._sessions_ended,
            Kind.END_LISTENERS: self._sessions_ended,
            Kind.DRAIN_NODES: self._nodes_drained,
            Kind.ROTATE_KEY: self._key_rotated,
        }
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.done: list[Done] = []

    async def run(self, events: Sequence[Event]) -> None:
        """Every event at its time; returns once all are undone."""
        start_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for event in events:
                await asyncio.sleep(max(0.0, start_s + event.at_s - time.monotonic()))
                group.create_task(self._carry_out(event, start_s))

    async def _carry_out(self, event: Event, start_s: float) -> None:
        failed = ""
        async with self._turns[event.target]:  # what the fault before did to the target may take longer than planned
            began_s = time.monotonic() - start_s
            self._show(f"{event.kind.value} {event.target}")
            try:
                async with self._acts[event.kind](event):
                    await asyncio.sleep(event.lasts_s)
            except (_WentWrong, Refusal) as error:
                failed = str(error)
        self.done.append(Done(event, round(began_s, 2), round(time.monotonic() - start_s, 2), failed))

    def _program(self, event: Event) -> Program:
        world = self._world
        return {**world.replicas, **world.groups, **world.singles}[event.target]

    @contextlib.asynccontextmanager
    async def _killed(self, event: Event) -> AsyncIterator[None]:
        program = self._program(event)
        await program.kill()
        yield
        program.start()

    @contextlib.asynccontextmanager
    async def _stopped(self, event: Event) -> AsyncIterator[None]:
        program = self._program(event)
        hurry_after_s = _HURRY_AFTER_S if event.kind is Kind.HURRY_REPLICA else None
        is_replica = event.target in self._world.replicas
        within_s = _DRAINED_WITHIN_S if is_replica else _NODES_STOPPED_WITHIN_S
        was_ready = program.is_ready
        code = await program.stop(within_s=within_s, hurry_after_s=hurry_after_s)
        try:
            yield
        finally:
            program.start()
        if code is None:
            raise _WentWrong(f"{event.target} still ran {within_s:g} s after SIGTERM:\n{program.tail()}")
        if code != 0 and was_ready:
            raise _WentWrong(f"{event.target} ended with {code} after SIGTERM:\n{program.tail()}")

    @contextlib.asynccontextmanager
    async def _ordered_to_drain(self, event: Event) -> AsyncIterator[None]:
        """As `fleetctl drain replica`, at whichever replica answers."""
        program = self._program(event)
        request = admin_pb2.DrainReplicaRequest(replica_id=event.target, deadline_s=5)
        program.hold_down()
        ordered = False
        with contextlib.suppress(Refusal):
            async for _ in self._owner.follow("DrainReplica", request):
                ordered = True
                break
        yield
        code = await program.wait_down(_DRAINED_WITHIN_S) if ordered else 0
        program.start()
        if code is None:
            raise _WentWrong(f"{event.target} still ran {_DRAINED_WITHIN_S:g} s after it was ordered to drain")

    @contextlib.asynccontextmanager
    async def _frozen(self, event: Event) -> AsyncIterator[None]:
        program = self._program(event)
        program.freeze()
        yield
        program.thaw()

    @contextlib.asynccontextmanager
    async def _link(self, event: Event) -> AsyncIterator[None]:
        link = self._world.links[event.target]
        direction = [None, *Direction][int(event.strength * 3)]
        match event.kind:
            case Kind.CUT_LINK:
                link.cut()
            case Kind.PART_LINK | Kind.PART_DATABASE:
                link.refuse()
                link.cut()
            case Kind.DEAFEN_LINK | Kind.DEAFEN_DATABASE:
                link.deafen(direction)
            case Kind.HOLD_LINK:
                link.hold(direction)
            case Kind.SLOW_LINK:
                link.slow(direction, bytes_per_s=2_000 + 30_000 * event.strength, latency_s=0.3 * event.strength)
            case _:
                link.slow(direction, latency_s=0.02 + 0.2 * event.strength)
        yield
        link.heal()

    @contextlib.asynccontextmanager
    async def _database_down(self, event: Event) -> AsyncIterator[None]:
        how = signal.SIGINT
        if event.kind is Kind.CRASH_DATABASE:
            how = signal.SIGQUIT if event.strength < 0.5 else signal.SIGKILL
        await asyncio.to_thread(self._world.database.end, how)
        try:
            yield
        finally:
            await asyncio.to_thread(self._world.database.start)

    @contextlib.asynccontextmanager
    async def _sessions_ended(self, event: Event) -> AsyncIterator[None]:
        listening = event.kind is Kind.END_LISTENERS
        await asyncio.to_thread(self._world.database.end_sessions, listening=listening)
        yield

    @contextlib.asynccontextmanager
    async def _nodes_drained(self, event: Event) -> AsyncIterator[None]:
        """As `fleetctl drain node` and `fleetctl resume node`."""
        selector = admin_pb2.Selector(patterns=[event.target])
        with contextlib.suppress(Refusal):
            async for _ in self._owner.follow("DrainNodes", admin_pb2.DrainNodesRequest(selector=selector)):
                break
        yield
        await self._owner.insist("ResumeNodes", admin_pb2.ResumeNodesRequest(selector=selector), _RESUMED_WITHIN_S)

    @contextlib.asynccontextmanager
    async def _key_rotated(self, event: Event) -> AsyncIterator[None]:
        """The next command key is prepared, and signs once every node knows it, or not at all."""
        del event
        prepared = None
        with contextlib.suppress(Refusal):
            prepared = (await self._owner.ask("PrepareKey", admin_pb2.PrepareKeyRequest())).key
        yield
        if prepared is not None:
            with contextlib.suppress(Refusal):  # nodes that are cut off do not know it yet
                await self._owner.ask("ActivateKey", admin_pb2.ActivateKeyRequest(key=prepared.key_id.hex()))


class _WentWrong(Exception):
    """A program did not end as it should have."""
