"""Admin calls about server replicas."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from fleet.clock import Clock
from fleet.v1 import admin_pb2
from fleet_server.admin.access import Caller
from fleet_server.admin.views import replica_view
from fleet_server.replicas import pacing
from fleet_server.replicas.rules import LIVING, ReplicaRecord, ends_within_s
from fleet_server.replicas.service import ReplicaService

_POLL_S = 0.25


class ReplicasApi:
    """Server processes as release engineers see them.

    Args:
        delay_s: between the end of a replica's readiness and its drain; of this one, and replicas are set up alike.
        deadline_s: of a drain of which nobody said how long it may take; likewise.
    """

    def __init__(self, replicas: ReplicaService, clock: Clock, *, delay_s: float, deadline_s: float) -> None:
        self._replicas = replicas
        self._clock = clock
        self._delay_s = delay_s
        self._deadline_s = deadline_s

    async def list_replicas(self, _: Caller, __: admin_pb2.ListReplicasRequest) -> admin_pb2.ListReplicasResponse:
        """All replicas."""
        return admin_pb2.ListReplicasResponse(replicas=map(replica_view, await self._replicas.list()))

    async def drain(
        self, caller: Caller, request: admin_pb2.DrainReplicaRequest
    ) -> AsyncIterator[admin_pb2.DrainReplicaResponse]:
        """Ask a replica to drain and tell progress until it has stopped, or is overdue.

        The replica that answers may be the one that drains: it tells until it ends, and whoever follows asks another
        one, or the one that is started next, what became of it.
        """
        target = request.replica_id or self._replicas.replica_id
        replica = await self._replicas.request_drain(
            caller.name, target, deadline_s=request.deadline_s, reason=request.reason, force=request.force
        )
        within_s = ends_within_s(self._delay_s, request.deadline_s or self._deadline_s)
        began = _Began(self._clock.monotonic(), replica.streams, replica.started_at_ms, within_s)
        while self._clock.monotonic() - began.at_s < within_s:
            replicas = await self._replicas.list()
            found = [each for each in replicas if each.replica_id == target]
            progress = self._progress(found[0] if found else replica, began, replicas)
            yield progress
            if progress.done:
                return
            await self._clock.sleep(_POLL_S)

    def _progress(
        self, replica: ReplicaRecord, began: _Began, replicas: Sequence[ReplicaRecord]
    ) -> admin_pb2.DrainReplicaResponse:
        # A new process under the same id: the one that was drained is gone.
        done = replica.state not in LIVING or replica.started_at_ms != began.started_at_ms
        left = 0 if done else replica.streams
        elapsed_s = self._clock.monotonic() - began.at_s
        rate = max(0, began.streams - left) / elapsed_s if elapsed_s > 0 else 0.0
        pace = pacing.pace(replica.replica_id, left, replicas)
        alone = pacing.last_to_take(replica.replica_id, replicas)
        return admin_pb2.DrainReplicaResponse(
            replica=replica_view(replica),
            streams_left=left,
            streams_total=began.streams,
            rate_per_s=rate,
            estimate_s=left / rate if rate > 0 else 0.0,
            done=done,
            needed_s=pacing.needed_s(left, pace.per_s),
            alone=alone,
            ends_within_s=began.ends_within_s,
        )


@dataclass(frozen=True, slots=True)
class _Began:
    """When a drain was asked for, monotonic seconds, of which process, and how long it may take."""

    at_s: float
    streams: int
    started_at_ms: int
    ends_within_s: float
