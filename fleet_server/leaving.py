"""How a whole server leaves: its streams are moved or ended by a deadline, whatever hangs (protocol.md, "Drain")."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING

from fleet.clock import Clock
from fleet.errors import Refusal
from fleet.logs import get_logger
from fleet_server.observability.health import ServerHealth
from fleet_server.observability.metrics import StreamMetrics
from fleet_server.replicas import rules
from fleet_server.replicas.pacing import Pace
from fleet_server.replicas.rules import ReplicaState
from fleet_server.replicas.service import ReplicaService
from fleet_server.stop_request import StopRequest
from fleet_server.streams.drain import Drain
from fleet_server.streams.registry import StreamRegistry
from fleet_server.streams.rpc import Gateway

if TYPE_CHECKING:
    import grpc

log = get_logger(__name__)

_SECOND_SIGNAL_S = 2.0
_SETTLE_S = 0.5
"""Others that are told to stop at the same moment have said so by then: nodes are not sent from one to the next."""
_PACE_EVERY_S = 1.0
_STOP_GRACE_S = 3.0
"""For each of the last things that may hang."""
LEAVE_WITHIN_S = rules.LEAVE_WITHIN_S


async def write_last(writes: Iterable[Coroutine[object, object, object]]) -> None:
    """Write what is only in memory; the database may be away, and then nobody waits for it."""
    for write in writes:
        try:
            await asyncio.wait_for(write, timeout=_STOP_GRACE_S)
        except (Refusal, TimeoutError) as error:
            log.warning("last_write_failed", error=str(error))


class Leaving:
    """The drain of one server.

    Args:
        gateway: stops admitting.
        own_admission_per_s: what this replica will admit when it is back.
        delay_s: between the end of readiness and the end of the listener, for balancers to notice.
        end_within: has this process be gone in so many seconds, whatever hangs.
    """

    def __init__(
        self,
        *,
        gateway: Gateway,
        streams: StreamRegistry,
        replicas: ReplicaService,
        own_admission_per_s: Callable[[], float],
        health: ServerHealth,
        clock: Clock,
        metrics: StreamMetrics,
        end_within: Callable[[float], None],
        delay_s: float = 0.0,
    ) -> None:
        self._gateway = gateway
        self._streams = streams
        self._replicas = replicas
        self._own_admission_per_s = own_admission_per_s
        self._health = health
        self._clock = clock
        self._metrics = metrics
        self._end_within = end_within
        self._delay_s = delay_s
        self._pace = Pace(0.0, None)
        self._hurry = asyncio.Event()
        self._drain: Drain | None = None
        self._deadline_s = 0.0

    async def drain(self, server: grpc.aio.Server, stopping: StopRequest, usual_deadline_s: float) -> None:
        """Move or end every stream.

        Args:
            server: the gateway's listener.
            stopping: who asked, and how long it may take.
            usual_deadline_s: for when nobody said how long.
        """
        self._deadline_s = usual_deadline_s if stopping.deadline_s is None else stopping.deadline_s
        self._end_within(self._delay_s + self._deadline_s + LEAVE_WITHIN_S)
        stopping.again(lambda: self._shorten(_SECOND_SIGNAL_S))
        self._replicas.also_leaving = stopping.also
        await self._health.set_draining()
        with contextlib.suppress(Refusal, TimeoutError):
            await asyncio.wait_for(self._replicas.set_state(ReplicaState.DRAINING), timeout=_STOP_GRACE_S)
        following = [asyncio.create_task(self._shorten_when_asked()), asyncio.create_task(self._follow_pace())]
        await self._read_pace()
        if self._delay_s > 0 or self._pace.per_s > 0:
            await self._linger(max(self._delay_s, _SETTLE_S))
            await self._read_pace()
        self._gateway.stop_admitting()
        self._drain = Drain(
            registry=self._streams,
            clock=self._clock,
            metrics=self._metrics,
            reason=stopping.reason,
            deadline_s=self._deadline_s,
            pace_per_s=lambda: self._pace.per_s,
            own_admission_per_s=self._own_admission_per_s(),
        )
        log.info("draining", streams=len(self._streams), deadline_s=self._deadline_s, pace_per_s=self._pace.per_s)
        self._warn_of_room()
        closing = asyncio.create_task(server.stop(self._deadline_s + _STOP_GRACE_S))
        await self._drain.run()
        self._end_within(LEAVE_WITHIN_S)  # the drain was shortened, or done before its time
        for task in following:
            task.cancel()
        # A peer that stopped reading can hold stop() for ever: it gets a bound, and the process ends after it.
        await asyncio.wait({closing, asyncio.create_task(server.stop(0))}, timeout=_STOP_GRACE_S)

    async def _linger(self, seconds: float) -> None:
        """A balancer sends nodes here until it has noticed: they are let in, and moved with the others."""
        waits = {asyncio.ensure_future(self._clock.sleep(seconds)), asyncio.ensure_future(self._hurry.wait())}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    def _shorten(self, deadline_s: float) -> None:
        self._hurry.set()
        if self._drain is None:
            self._deadline_s = min(self._deadline_s, deadline_s)
        else:
            self._drain.shorten(deadline_s)

    async def _shorten_when_asked(self) -> None:
        while True:
            request = await self._replicas.wait_drain_requested()
            if request.deadline_s is not None:
                self._shorten(request.deadline_s)

    async def _follow_pace(self) -> None:
        while True:
            await self._clock.sleep(_PACE_EVERY_S)
            await self._read_pace()

    async def _read_pace(self) -> None:
        """What the others take now; while the database is away, what they took when it was there."""
        with contextlib.suppress(Refusal, TimeoutError):
            reading = self._replicas.pace(len(self._streams))
            self._pace = await asyncio.wait_for(reading, timeout=_STOP_GRACE_S)

    def _warn_of_room(self) -> None:
        room = self._pace.room
        if self._pace.per_s > 0 and room is not None and room < len(self._streams):
            say = "start another replica, or raise max_streams: who finds no room comes back again and again"
            log.warning("drain_finds_too_little_room", streams=len(self._streams), room=room, next=say)
