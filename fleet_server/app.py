"""The composition root: the life of a server, which ends in the visible list of running tasks. Its rooms are built in
`rooms`, its listeners opened in `serving`.

Order of a start: database, trust, rooms, listeners, ready. Order of an end: not ready, replica DRAINING, listener
closed while live streams go on, goaways, what is left aborted, last writes, exit. A second signal shortens the
deadline; nothing waits without a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from fleet.clock import Clock
from fleet.heap import settle_heap
from fleet.logs import get_logger
from fleet.service_manager import ServiceManager
from fleet.version import software_version
from fleet_server import leaving
from fleet_server.certificates import ServerCertificates
from fleet_server.config import Settings
from fleet_server.leaving import Leaving, write_last
from fleet_server.replicas import marks
from fleet_server.replicas.rules import ReplicaState
from fleet_server.rooms import ServerRooms
from fleet_server.serving import Serving, open_listeners
from fleet_server.stop_request import StopRequest
from fleet_server.trust.secrets import Secrets

log = get_logger(__name__)

REPLACED = 3
"""Exit code of a server in whose name another process serves: started again it would be refused."""


class Server(ServerRooms):
    """One server process: its rooms, and their life.

    Args:
        settings: validated.
        secrets: derived from the secret encryption key.
        certificates: the server's TLS.
        clock: the machine's by default.
        end_within: has this process be gone in so many seconds, whatever hangs; nothing does by default.
        manager: is told how it goes.
        stopping: what may end it; signals by default.
        place: see `ServerRooms`.
    """

    def __init__(
        self,
        settings: Settings,
        secrets: Secrets,
        certificates: ServerCertificates,
        clock: Clock | None = None,
        *,
        end_within: Callable[[float], None] = lambda seconds: None,
        manager: ServiceManager | None = None,
        stopping: StopRequest | None = None,
        place: str = "",
    ) -> None:
        super().__init__(settings, secrets, certificates, clock, place=place)
        self._manager = manager or ServiceManager()
        self._stopping = stopping
        self._end_within = end_within

    async def run(self) -> int:
        """Serve until a signal or a drain request; the exit code.

        Raises:
            Refusal, ListenError, TrustSetupError, NameTakenError: it cannot start; the message says what to do.
        """
        stopping = self._stopping or StopRequest()
        self.database.start()
        try:
            await self.fence.take()
            await self.master_keys.load()
            await self.trust.load()
            await self.installation.load(self.trust.installation_id, self.trust.cluster_id)
            self.build_rooms()
            await self.commands.load()
            await self.routes.load()
            await self.replicas.register()
            await self.tls_rotation.open(self.settings.advertised_endpoints())
            async with contextlib.AsyncExitStack() as listening:
                return await self._serve(await open_listeners(self, listening), stopping)
        finally:
            self._end_within(leaving.LEAVE_WITHIN_S)
            await self.database.close()

    async def _serve(self, serving: Serving, stopping: StopRequest) -> int:
        tasks = [
            asyncio.create_task(work, name=name)
            for name, work in {
                "heartbeats": self.streams.run(),
                "liveness": self.nodes.run_liveness(),
                "node-decisions": self.nodes.run_decisions(),
                "command-expiry": self.commands.run_expiry(),
                "command-poll": self.commands.run_poll(),
                "telemetry-flush": self.telemetry.run_flush(),
                "telemetry-retention": self.telemetry.run_retention(),
                "route-recorder": self.routes.run_recorder(),
                "route-sweep": self.routes.run_sweep(),
                "route-news": self.routes.run_news(),
                "session-cleanup": self.sessions.run_cleanup(),
                "refusal-audit": self.sessions.run_audit(),
                "call-audit": self.operators.run(),
                "trust": self.trust.run(),
                "secret-keys": self.master_keys.run(),
                "approvals": self.approvals.run(),
                "installation": self.installation.run(),
                "trust-watch": self.trust.watch.run(),
                "key-rotation": self.rotation.run(),
                "certificates": self.tls_rotation.run(),
                "audit-checkpoints": self.audit.run_checkpoints(self.trust.sign_checkpoint, self.trust.cluster_id),
                "replica": self.replicas.run(),
                "balancing": self.balancing.run(),
                "commit-marks": self.marks.run(),
                "process-metrics": self.process.run(),
                **({"wakeups": self.relay.run()} if self.relay is not None else {}),
            }.items()
        ]
        if self._manager.listens:
            telling = self._manager.run(lambda: serving.health.healthz().ok, lambda: self._state_line(serving))
            tasks.append(asyncio.create_task(telling, name="service-manager"))
        self.process.install()
        settle_heap()
        await serving.health.set_ready()
        await self.replicas.set_state(ReplicaState.READY)
        self._manager.ready(self._state_line(serving))
        log.info("ready", replica_id=self.replica_id, version=software_version())
        try:
            failed = await self._wait_for_end(tasks, stopping)
            replaced = self.fence.replaced.is_set()
            self._manager.stopping("draining")
            ending = Leaving(
                gateway=serving.gateway,
                streams=self.streams,
                replicas=self.replicas,
                own_admission_per_s=lambda: self.sessions.admission.rate_per_s,
                delay_s=0.0 if replaced else self.settings.drain_delay_s,
                health=serving.health,
                clock=self.clock,
                metrics=self.metrics.streams,
                end_within=self._end_within,
            )
            await ending.drain(serving.listener.server, stopping, self.settings.drain_deadline_s)
            if not replaced:  # what it could write belongs to its successor
                await self._last_writes()
            self.telemetry.close()
            await serving.health.close()
        finally:
            self.process.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if replaced:
            return REPLACED
        return 1 if failed else 0

    def _state_line(self, serving: Serving) -> str:
        return f"{serving.health.readyz().detail}: {len(self.streams)} streams"

    async def _wait_for_end(self, tasks: list[asyncio.Task[None]], stopping: StopRequest) -> bool:
        """Until a signal, a drain request, a successor of the same name, or a task that should never end; whether it
        was the last."""
        others = [
            asyncio.create_task(self._drain_requested(stopping)),
            asyncio.create_task(stopping.first.wait()),
            asyncio.create_task(self.fence.replaced.wait()),
        ]
        done, _ = await asyncio.wait({*tasks, *others}, return_when=asyncio.FIRST_COMPLETED)
        for waiting in others:
            waiting.cancel()
        if self.fence.replaced.is_set():
            stopping.deadline_s = 0.0
            say = f"give each process a replica_id of its own: two are called {self.replica_id}"
            log.critical("replica_replaced", next=say)
        for task in set(tasks) & done:
            log.error("task_ended", task=task.get_name(), exc_info=task.exception())
        if self.marks.went_back:
            stopping.deadline_s = marks.END_WITHIN_S
        return bool(set(tasks) & done)

    async def _drain_requested(self, stopping: StopRequest) -> None:
        request = await self.replicas.wait_drain_requested()
        stopping.ordered(request.reason, request.deadline_s)

    async def _last_writes(self) -> None:
        await write_last(
            [
                self.telemetry.flush(),
                self.nodes.flush(),
                self.sessions.flush_audit(),
                self.operators.flush(),
                self.replicas.set_state(ReplicaState.STOPPED),
                self.audit.checkpoint(self.trust.sign_checkpoint, self.trust.cluster_id),
            ]
        )
