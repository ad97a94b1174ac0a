"""Admin calls about server replicas."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fleet.clock import Clock
from fleet.v1 import admin_pb2
from fleet_server.admin.access import Caller
from fleet_server.admin.views import replica_view
from fleet_server.replicas.rules import LIVING, ReplicaRecord
from fleet_server.replicas.service import ReplicaService

_POLL_S = 0.25
_MAX_FOLLOW_S = 3600.0


class ReplicasApi:
    """Server processes as release engineers see them."""

    def __init__(self, replicas: ReplicaService, clock: Clock) -> None:
        self._replicas = replicas
        self._clock = clock

    async def list_replicas(self, _: Caller, __: admin_pb2.ListReplicasRequest) -> admin_pb2.ListReplicasResponse:
        """All replicas."""
        return admin_pb2.ListReplicasResponse(replicas=map(replica_view, await self._replicas.list()))

    async def drain(
        self, caller: Caller, request: admin_pb2.DrainReplicaRequest
    ) -> AsyncIterator[admin_pb2.DrainReplicaResponse]:
        """Ask a replica to drain and tell progress until it has stopped.

        When the replica that answers drains itself, the stream ends with the process: the last message says `done`.
        """
        target = request.replica_id or self._replicas.replica_id
        replica = await self._replicas.request_drain(
            caller.name, target, deadline_s=request.deadline_s, reason=request.reason
        )
        started, total = self._clock.monotonic(), replica.streams
        while self._clock.monotonic() - started < _MAX_FOLLOW_S:
            replica = await self._replicas.get(target)
            yield self._progress(replica, total, self._clock.monotonic() - started)
            if replica.state not in LIVING:
                return
            await self._clock.sleep(_POLL_S)

    def _progress(self, replica: ReplicaRecord, total: int, elapsed_s: float) -> admin_pb2.DrainReplicaResponse:
        done = replica.state not in LIVING
        left = 0 if done else replica.streams
        rate = max(0, total - left) / elapsed_s if elapsed_s > 0 else 0.0
        return admin_pb2.DrainReplicaResponse(
            replica=replica_view(replica),
            streams_left=left,
            streams_total=total,
            rate_per_s=rate,
            estimate_s=left / rate if rate > 0 else 0.0,
            done=done,
        )
