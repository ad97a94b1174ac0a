"""The routes room: takes snapshots and leases, has the prober walk, and answers peers' probes.

Mental model
    What the server signed is judged by the authority of the bundle in force, made durable, and only then put in force.
    From then on the prober walks, peers' probes are answered, and both see the same `InForce`.
    Nothing of it keeps a node from its other work: a damaged file, a port that is taken, a snapshot that is refused are
    said, and the node goes on with what it has.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from fleet.clock import Clock
from fleet.errors import Reason
from fleet.logs import get_logger
from fleet.node_audit import NodeAuditKind
from fleet.tls import certificate_sha256
from fleet.v1 import gateway_pb2, lease_pb2, route_pb2, trust_pb2
from fleet_node.link.ports import Uplink
from fleet_node.routes import snapshot_rules
from fleet_node.routes.in_force import InForce
from fleet_node.routes.outbox import Outbox
from fleet_node.routes.parts import RouteParts
from fleet_node.routes.probe_caller import ProbeCaller
from fleet_node.routes.prober import Prober
from fleet_node.routes.rules import Applied, Chance, Policy
from fleet_node.routes.snapshot_file import SnapshotFile
from fleet_node.routes.snapshot_rules import Authority, Snapshot, SnapshotError, SnapshotReason

log = get_logger(__name__)

MAX_LISTED = 64
"""Routes that a row of the audit names."""


class Served(Protocol):
    """What became of peers' probes."""

    answered: int
    refused: Counter[Reason]


class Listener(Protocol):
    """Where peers' probes come in."""

    certificate: bytes
    """DER of what it shows; empty while it does not listen."""
    bound: str
    """Where it listens, or why it does not."""

    @property
    def service(self) -> Served:
        """What it serves."""
        ...

    async def start(self) -> None:
        """Listen. Nothing is raised."""
        ...

    async def close(self) -> None:
        """Listen no more."""
        ...


class RouteService:
    """See the module's mental model. Belongs to the event loop.

    Args:
        parts: what it is built on.
        chance: for jitter.
        caller_of: makes what walks; the product's own by default.
        listener_of: makes the listener; None where none is set.
    """

    def __init__(
        self,
        parts: RouteParts,
        *,
        chance: Chance = random.random,
        caller_of: Callable[[InForce, Clock], ProbeCaller] = ProbeCaller,
        listener_of: Callable[[InForce, ProbeCaller], Listener] | None = None,
    ) -> None:
        self._parts = parts
        self._metrics = parts.metrics
        self._turn = asyncio.Lock()
        self._uplink: Uplink | None = None
        self.in_force = InForce(parts.identity, parts.clock, parts.server_time, parts.peer_endpoints)
        self._caller = caller_of(self.in_force, parts.clock)
        self._listener = listener_of(self.in_force, self._caller) if listener_of is not None else None
        self._outbox = Outbox(self._server_ms, self._ready)
        self._prober = Prober(
            self.in_force, self._caller, self._outbox, clock=parts.clock, metrics=parts.metrics, chance=chance
        )
        self._file = SnapshotFile(parts.snapshot_path)
        kept = self._file.load(self._authority())
        self._floor, self._snapshot = kept.floor, kept.snapshot
        self.problem = kept.problem
        if kept.problem:
            log.error("routes_lost", problem=kept.problem)
        if not parts.authority_required:
            log.warning("routes_authority_not_required", setting="routes.authority_required", what_to_do=_UNSAFE)
        if kept.snapshot is not None:
            self._put_in_force(kept.snapshot)

    # -- RoutePort ----------------------------------------------------------------------------------------------------
    @property
    def config_version(self) -> int:
        """See `RoutePort`."""
        return 0 if self._snapshot is None else self._snapshot.floor.under(self._authority())

    @property
    def probe_listener(self) -> gateway_pb2.ProbeListener | None:
        """See `RoutePort`."""
        if self._listener is None or not self._listener.certificate:
            return None
        endpoints = self._parts.endpoints or (self._listener.bound,)
        return gateway_pb2.ProbeListener(endpoints=endpoints, certificate=self._listener.certificate)

    def opened(self, uplink: Uplink) -> None:
        """A stream was welcomed: what is found goes out on it."""
        self._uplink = uplink
        self._prober.connected()

    def closed(self) -> None:
        """The newest stream has ended."""
        self._uplink = None
        self._prober.disconnected()

    def next_health(self) -> bytes | None:
        """See `RouteStream`."""
        health = self._outbox.next()
        return None if health is None else gateway_pb2.NodeControl(route_health=health).SerializeToString()

    async def take_config(self, signed: trust_pb2.Signed) -> route_pb2.ConfigApplied:
        """Judge a snapshot, make it durable and put it in force; what to tell the server. Nothing is raised."""
        async with self._turn:
            authority = self._authority()
            try:
                snapshot = snapshot_rules.judge_snapshot(signed, authority, self._floor)
                if self._snapshot is None or not snapshot.says_the_same(self._snapshot):
                    await asyncio.to_thread(self._file.save, snapshot, authority)
            except (SnapshotError, OSError) as error:
                return self._refused(error, authority)
            newer = snapshot.floor != self._floor
            self._floor, self._snapshot, self.problem = snapshot.floor, snapshot, ""
            applied = self._put_in_force(snapshot)
        self._metrics.snapshots.labels("applied").inc()
        if newer and (applied.replaced or applied.withdrawn or applied.refused):
            self._tell_applied(snapshot, applied)
        await self._caller.prune()
        return route_pb2.ConfigApplied(version=snapshot.version, applied=True, withdrawn_routes=applied.withdrawn)

    async def take_lease(self, signed: trust_pb2.Signed) -> lease_pb2.LeaseAck:
        """Judge a lease and hold it; what to tell the server. Nothing is raised."""
        try:
            lease = snapshot_rules.judge_lease(signed, self._authority(), self.in_force.configs)
        except SnapshotError as error:
            lease_id, generation = snapshot_rules.claimed_lease(signed)
            self._parts.audit.refuse(NodeAuditKind.LEASE_REFUSED, str(error.reason), detail=error.detail)
            log.warning("lease_refused", lease_id=lease_id, reason=str(error.reason), detail=error.detail)
            return lease_pb2.LeaseAck(lease_id=lease_id, generation=generation, reason=str(error))
        reason = SnapshotReason.OLDER if self.in_force.take_lease(lease) else ""
        self._prober.leases_changed()
        if reason:  # not an event: frames may overtake one another
            log.info("lease_refused", lease_id=lease.lease_id, reason=str(reason), generation=lease.generation)
        return lease_pb2.LeaseAck(
            lease_id=lease.lease_id, generation=lease.generation, applied=not reason, reason=reason
        )

    # -- life ---------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Open the listener, where one is set. Nothing is raised: what is wrong is logged and shown."""
        if self._listener is None:
            return
        await self._listener.start()
        self.in_force.own_certificate = self._listener.certificate

    async def run(self) -> None:
        """Walk until it is cancelled."""
        await self._prober.run()

    async def close(self) -> None:
        """Close the listener and connections to peers."""
        if self._listener is not None:
            await self._listener.close()
        await self._caller.close()

    # -- what people see ----------------------------------------------------------------------------------------------
    def status(self) -> Mapping[str, Any]:
        """All of it, as JSON takes it."""
        from fleet_node.routes.showing import routes_status

        listener = self.probe_listener
        return {
            "config_version": self.config_version,
            "authority_required": self._parts.authority_required,
            "problem": self.problem,
            "listener": self._listener.bound if self._listener is not None else "off",
            "endpoints": list(listener.endpoints) if listener is not None else [],
            "certificate_sha256": certificate_sha256(listener.certificate).hex() if listener is not None else "",
            "refreshes_asked": int(self._metrics.refreshes_asked.value),
            "refreshes_held_back": int(self._metrics.refreshes_held_back.value),
            **routes_status(self.in_force, self._prober),
        }

    def show(self) -> None:
        """Bring figures that are read rather than counted up to date."""
        self._prober.show()
        self._metrics.config_version.set(self.config_version)
        self._metrics.findings_dropped.mirror(self._outbox.dropped)
        if self._listener is not None:
            self._metrics.probes_answered.mirror(self._listener.service.answered)
            for reason, count in self._listener.service.refused.items():
                self._metrics.probes_refused.labels(str(reason)).mirror(count)

    # -- inside -------------------------------------------------------------------------------------------------------
    def _authority(self) -> Authority:
        state, identity = self._parts.trust.state, self._parts.identity
        return Authority(
            identity.cluster_id,
            identity.node_id,
            state.authority_key,
            state.generation,
            self._parts.authority_required,
        )

    def _put_in_force(self, snapshot: Snapshot) -> Applied:
        applied = self.in_force.apply(snapshot, self._authority())
        for route_id, reason in applied.refused.items():
            log.warning("route_refused", route_id=route_id, reason=reason, version=snapshot.version)
        self._prober.apply(applied, policy_of(snapshot.policy), snapshot.version)
        return applied

    def _refused(self, error: SnapshotError | OSError, authority: Authority) -> route_pb2.ConfigApplied:
        reason = str(error.reason) if isinstance(error, SnapshotError) else "DISK"
        detail = error.detail if isinstance(error, SnapshotError) else str(error.strerror or error)
        held = self._floor.under(authority)
        self._metrics.snapshots.labels(reason).inc()
        self._parts.audit.refuse(NodeAuditKind.CONFIG_REFUSED, reason, detail=detail, held=held)
        log.warning("config_refused", reason=reason, detail=detail, held=held)
        self._prober.refused(held)
        return route_pb2.ConfigApplied(version=held, applied=False, reason=f"{reason}: {detail}")

    def _tell_applied(self, snapshot: Snapshot, applied: Applied) -> None:
        self._parts.audit.tell(
            NodeAuditKind.CONFIG_APPLIED,
            version=snapshot.version,
            generations={route_id: applied.routes[route_id].generation for route_id in applied.replaced[:MAX_LISTED]},
            withdrawn=list(applied.withdrawn[:MAX_LISTED]),
            refused=dict(list(applied.refused.items())[:MAX_LISTED]),
        )

    def _ready(self) -> None:
        if self._uplink is not None:
            self._uplink.wake()

    def _server_ms(self, at_ms: int) -> int:
        ago_ms = int(self._parts.clock.monotonic() * 1000) - at_ms
        return self._parts.server_time.now_ms() - ago_ms


_UNSAFE = "unsafe outside of a laboratory: remove the setting, and routes need the authority's signature again"


def policy_of(said: route_pb2.RoutePolicy) -> Policy:
    """The policy of a snapshot; what it leaves out is as `Policy` has it."""
    known = {name: value for name in _POLICY if (value := getattr(said, name))}
    return Policy(**known)


_POLICY = (
    "min_refresh_interval_ms",
    "no_change_cooldown_ms",
    "no_change_cooldown_max_ms",
    "degraded_rtt_us",
    "degraded_loss_permille",
)
