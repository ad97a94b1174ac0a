"""How a whole server leaves: its streams are moved or ended by a deadline, whatever hangs (protocol.md, "Drain")."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING

from fleet.clock import Clock
from fleet.errors import Refusal
from fleet.logs import get_logger
from fleet.v1 import gateway_pb2
from fleet_server.observability.health import ServerHealth
from fleet_server.observability.metrics import StreamMetrics
from fleet_server.replicas.rules import ReplicaState
from fleet_server.replicas.service import ReplicaService
from fleet_server.sessions.service import SessionService
from fleet_server.stop_request import StopRequest
from fleet_server.streams.drain import Drain
from fleet_server.streams.registry import StreamRegistry
from fleet_server.streams.rpc import Gateway

if TYPE_CHECKING:
    import grpc

log = get_logger(__name__)

_SECOND_SIGNAL_S = 2.0
_STOP_GRACE_S = 3.0
"""For each of the last things that may hang."""
LEAVE_WITHIN_S = 45.0
"""From the end of the drain to the end of the process: last writes, each with a bound, to a database that may be away,
and what it is still busy with."""


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
        end_within: has this process be gone in so many seconds, whatever hangs.
    """

    def __init__(
        self,
        *,
        gateway: Gateway,
        streams: StreamRegistry,
        replicas: ReplicaService,
        sessions: SessionService,
        health: ServerHealth,
        clock: Clock,
        metrics: StreamMetrics,
        end_within: Callable[[float], None],
    ) -> None:
        self._gateway = gateway
        self._streams = streams
        self._replicas = replicas
        self._sessions = sessions
        self._health = health
        self._clock = clock
        self._metrics = metrics
        self._end_within = end_within

    async def drain(self, server: grpc.aio.Server, stopping: StopRequest, usual_deadline_s: float) -> None:
        """Move or end every stream.

        Args:
            server: the gateway's listener.
            stopping: who asked, and how long it may take.
            usual_deadline_s: for when nobody said how long.
        """
        deadline_s = usual_deadline_s if stopping.deadline_s is None else stopping.deadline_s
        self._end_within(deadline_s + LEAVE_WITHIN_S)
        others_per_s = await self._others_admission()
        alone = others_per_s <= 0
        reason = stopping.reason or (gateway_pb2.GOAWAY_REASON_RESTART if alone else gateway_pb2.GOAWAY_REASON_DRAIN)
        log.info("draining", streams=len(self._streams), deadline_s=deadline_s, alone=alone)
        await self._health.set_draining()
        self._gateway.stop_admitting()
        drain = Drain(
            registry=self._streams,
            clock=self._clock,
            metrics=self._metrics,
            reason=reason,
            deadline_s=deadline_s,
            admission_per_s=others_per_s,
            own_admission_per_s=self._sessions.admission.rate_per_s,
        )
        stopping.again(lambda: drain.shorten(_SECOND_SIGNAL_S))
        asking = asyncio.create_task(self._shorten_when_asked(drain))
        with contextlib.suppress(Refusal):
            await self._replicas.set_state(ReplicaState.DRAINING)
        closing = asyncio.create_task(server.stop(deadline_s + _STOP_GRACE_S))
        await drain.run()
        self._end_within(LEAVE_WITHIN_S)  # the drain was shortened, or done before its time
        asking.cancel()
        # A peer that stopped reading can hold stop() for ever: it gets a bound, and the process ends after it.
        await asyncio.wait({closing, asyncio.create_task(server.stop(0))}, timeout=_STOP_GRACE_S)

    async def _shorten_when_asked(self, drain: Drain) -> None:
        while True:
            request = await self._replicas.wait_drain_requested()
            if request.deadline_ms:
                drain.shorten(max(0.0, (request.deadline_ms - self._clock.now_ms()) / 1000))

    async def _others_admission(self) -> float:
        try:
            return await self._replicas.admission_of_others_per_s()
        except Refusal:
            return 0.0
