"""Nodes that report on their routes without probing them, many in one process: the product's own link, and findings as
healthy ways give them."""

from __future__ import annotations

import asyncio
import random
import ssl
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from fleet import logs
from fleet.clock import ServerTime
from fleet.v1 import gateway_pb2, lease_pb2, route_pb2, trust_pb2
from fleet_node.link.link import Link
from fleet_node.link.ports import Uplink
from fleet_node.routes.health_rules import Finding
from fleet_node.routes.in_force import effective_path
from fleet_node.routes.outbox import Outbox, gather_ms
from fleet_node.routes.rules import Policy
from fleet_node.routes.schedule_rules import NEVER_MS, RouteWalks
from fleet_node.routes.walk_rules import WalkResult, WalkState
from tests.fakes.tls import FakeAuthority
from tests.fakes.watch import Watch
from tests.load.product.idle_links import Member, NoCommands, TelemetryFeed, make_link
from tests.load.product.live import wait_live
from tests.load.usage import process_usage

_POLL_S = 0.02
_AT_ONCE = 200
_RTT_US = 4_000


@cache
def _leaf() -> bytes:
    return ssl.PEM_cert_to_DER_cert(FakeAuthority().issue().cert_pem.decode())


@dataclass
class Told:
    """What all nodes of the process were told, and said."""

    routes: int = 0
    configs: int = 0
    leases: int = 0
    findings: int = 0
    frames: int = 0


class RouteNodes:
    """A role of `tests.load.child`."""

    def __init__(self) -> None:
        logs.configure(sys.stderr, level="error")
        self._links: list[Link] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._told = Told()

    async def start(self, folders: list[str]) -> None:
        """Start a node for each folder; returns once all have their streams."""
        for start in range(0, len(folders), _AT_ONCE):
            started = [self._start_one(path) for path in folders[start : start + _AT_ONCE]]
            await wait_live(started)

    async def wait_routes(self, count: int) -> None:
        """Return once these nodes are the sources of so many routes."""
        while self._told.routes < count:
            await asyncio.sleep(_POLL_S)

    async def told(self) -> dict[str, float]:
        """What they were told, and said."""
        return {name: float(value) for name, value in vars(self._told).items()}

    async def usage(self) -> dict[str, float]:
        """CPU and memory of this process so far."""
        return process_usage()

    async def close(self) -> None:
        """Stop every node."""
        for link in self._links:
            link.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start_one(self, path: str) -> Link:
        member = Member.load(path)
        link = make_link(
            member,
            NoCommands(),
            TelemetryFeed(0, 0.0, Watch(), flood=False),
            routes=RouteFeed(member.membership.node_id, member.server_time, self._told),
        )
        self._links.append(link)
        self._tasks.append(asyncio.create_task(link.run()))
        return link


class RouteFeed:
    """A routes room that believes every snapshot, walks by the product's rules, and finds every way healthy."""

    def __init__(self, node_id: str, server_time: ServerTime, told: Told) -> None:
        self.config_version = 0
        self._node_id = node_id
        self._server_time = server_time
        self._told = told
        self._policy = Policy()
        self._routes: dict[str, RouteWalks] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._outbox = Outbox(self._server_ms, self._wake)
        self._uplink: Uplink | None = None

    @property
    def probe_listener(self) -> gateway_pb2.ProbeListener:
        """One that nobody dials."""
        return gateway_pb2.ProbeListener(endpoints=["127.0.0.1:9"], certificate=_leaf())

    def opened(self, uplink: Uplink) -> RouteFeed:
        """The next stream."""
        self._uplink = uplink
        return self

    async def config_frame(self, signed: trust_pb2.Signed) -> None:
        """Walk what the snapshot holds."""
        snapshot = route_pb2.ConfigSnapshotStatement.FromString(signed.statement)
        self.config_version = snapshot.version
        self._told.configs += 1
        mine = {config.route_id: config for config in snapshot.routes if config.path[0] == self._node_id}
        self._told.routes += len(mine) - len(self._routes)
        for route_id in self._routes.keys() - mine.keys():
            del self._routes[route_id]
            self._timers.pop(route_id).cancel()
        for route_id, config in mine.items():
            route = effective_path(config)
            if route_id in self._routes:
                self._routes[route_id].replace(route, _now_ms())
            else:
                self._routes[route_id] = RouteWalks(route, self._policy, _now_ms(), random.random)
            self._arm(route_id)
        applied = route_pb2.ConfigApplied(version=snapshot.version, applied=True)
        if self._uplink is not None:
            self._uplink.send_control(gateway_pb2.NodeControl(config_applied=applied))

    async def lease_frame(self, signed: trust_pb2.Signed) -> None:
        """Renewed."""
        self._told.leases += 1
        lease = lease_pb2.LeaseStatement.FromString(signed.statement)
        ack = lease_pb2.LeaseAck(lease_id=lease.lease_id, generation=lease.generation, applied=True)
        if self._uplink is not None:
            self._uplink.send_control(gateway_pb2.NodeControl(lease_ack=ack))

    def next_health(self) -> bytes | None:
        """What was found since the last call."""
        health = self._outbox.next()
        if health is None:
            return None
        self._told.findings += len(health.observations)
        self._told.frames += 1
        return gateway_pb2.NodeControl(route_health=health).SerializeToString()

    def close(self) -> None:
        """Nothing to close."""

    def _walk(self, route_id: str) -> None:
        walks = self._routes[route_id]
        for walk in walks.due(_now_ms()):
            rtt_us = round(_RTT_US * (len(walk.path) - 1) * random.uniform(0.9, 1.1))
            result = WalkResult(walk.path, walk.path, rtt_us, _RTT_US, WalkState.ANSWERED)
            report = walks.finished(walk, result, _now_ms())
            if report is not None:
                self._say(report.findings, gather_ms(walks.route))
        self._arm(route_id)

    def _say(self, findings: Iterable[Finding], wait_ms: int) -> None:
        waits = self._outbox.due_ms != NEVER_MS
        self._outbox.put(findings, wait_until_ms=_now_ms() + wait_ms)
        if not waits and self._outbox.due_ms != NEVER_MS:
            asyncio.get_running_loop().call_later(wait_ms / 1000, self._outbox.release)

    def _arm(self, route_id: str) -> None:
        timer = self._timers.pop(route_id, None)
        if timer is not None:
            timer.cancel()
        in_s = max(0, self._routes[route_id].next_ms - _now_ms()) / 1000
        self._timers[route_id] = asyncio.get_running_loop().call_later(in_s, self._walk, route_id)

    def _server_ms(self, at_ms: int) -> int:
        return self._server_time.now_ms() - (_now_ms() - at_ms)

    def _wake(self) -> None:
        if self._uplink is not None:
            self._uplink.wake()


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
