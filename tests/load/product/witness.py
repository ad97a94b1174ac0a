"""Whole nodes, and an operator who decides about them: what each side sees, on one clock."""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from fleet import logs
from fleet.identity import load_node_keys
from fleet.v1 import admin_pb2, admin_pb2_grpc
from fleet_node.app import Node, Parts
from fleet_node.commands.opening import ensure_journal
from fleet_node.config import Settings
from fleet_node.drivers.registry import DriverRegistry
from fleet_node.enrollment.folder import StateFolder
from fleet_node.enrollment.membership import load_membership
from fleet_node.link.link import HARDLY_THERE_S
from fleet_node.link.link_status import LinkState, LinkStatus
from fleet_server.nodes.poll import INTERVAL_S

_AT_ONCE = 6
_POLL_S = 0.002
_ISSUE_EVERY_S = 0.01
_GIVE_UP_S = 15.0
_NOOP = admin_pb2.CommandSpec(action="simulated.noop")


class Witness:
    """A role of `tests.load.child`."""

    def __init__(self) -> None:
        logs.configure(io.StringIO(), level="error")  # that a node was revoked is an error to it, and meant here
        self._drivers = DriverRegistry.load(("simulated",), {})

    async def watch(
        self, folders: list[str], replicas: list[dict[str, str]], ca: str, token: str, *, elsewhere: bool
    ) -> dict[str, list[float]]:
        """Suspend, resume, rotate and revoke each node, a few nodes at once and half of them on each replica.

        Args:
            elsewhere: decide at the replica that does not hold the node's stream.

        Returns:
            What was waited for -> the seconds of each time.
        """
        saw: dict[str, list[float]] = defaultdict(list)
        metadata = (("authorization", f"Bearer {token}"),)
        credentials = grpc.ssl_channel_credentials(ca.encode())
        turns = asyncio.Semaphore(_AT_ONCE)
        async with contextlib.AsyncExitStack() as stack:
            channels = [
                await stack.enter_async_context(grpc.aio.secure_channel(each["admin"], credentials))
                for each in replicas
            ]
            admins = [admin_pb2_grpc.AdminStub(channel) for channel in channels]

            async def one(index: int) -> None:
                holds = index % 2
                async with turns:
                    lived = _OneNode(
                        Path(folders[index]),
                        replicas[holds]["gateway"],
                        self._drivers,
                        _Operator(admins[holds ^ int(elsewhere)], metadata),
                        _Operator(admins[holds], metadata),
                        saw,
                    )
                    await lived.through()

            await asyncio.gather(*(one(index) for index in range(len(folders))))
        return saw

    async def close(self) -> None:
        """Every node has ended."""


@dataclass(slots=True)
class _Operator:
    """One who talks to one replica."""

    admin: admin_pb2_grpc.AdminAsyncStub
    metadata: tuple[tuple[str, str], ...]

    async def set_state(self, name: str, state: str) -> None:
        """Suspend, resume or revoke."""
        request = admin_pb2.SetNodeStateRequest(selector=_only(name), state=state, reason="measured")
        await self.admin.SetNodeState(request, metadata=self.metadata)

    async def rotate(self, name: str) -> None:
        """A new api_key; the former one ends with the first use of it."""
        request = admin_pb2.RotateNodesRequest(selector=_only(name), api_key=True, overlap_s=0)
        await self.admin.RotateNodes(request, metadata=self.metadata)

    async def refused_at(self, name: str) -> float:
        """Go on issuing commands until one is refused; the time of that."""
        request = admin_pb2.IssueCommandsRequest(selector=_only(name), commands=[_NOOP])
        while True:
            try:
                answer = await self.admin.IssueCommands(request, metadata=self.metadata)
            except grpc.aio.AioRpcError:
                return time.perf_counter()
            if not answer.issued:
                return time.perf_counter()
            await asyncio.sleep(_ISSUE_EVERY_S)


@dataclass(slots=True)
class _OneNode:
    """One node, from its first stream to its revocation.

    Args:
        decides: an operator at the replica that is told.
        commands: an operator at the replica that holds the stream.
    """

    folder: Path
    gateway: str
    drivers: DriverRegistry
    decides: _Operator
    commands: _Operator
    saw: dict[str, list[float]]
    node: Node = field(init=False)
    running: asyncio.Task[None] = field(init=False)
    ran_at: float = 0.0

    async def through(self) -> None:
        """The four verbs, one after another."""
        name = self._start()
        await self._until(lambda link: link.state is LinkState.LIVE)
        try:
            await self._put_out(name, "suspend", "SUSPENDED")
            await self._stop()

            called_at = time.perf_counter()
            await self.decides.set_state(name, "ACTIVE")
            returned_at = time.perf_counter()
            self._start()
            self._note("resume", called_at, returned_at, await self._until(lambda link: link.state is LinkState.LIVE))

            await asyncio.sleep(HARDLY_THERE_S)  # a younger stream waits before another takes over, on purpose
            await _any_moment()
            called_at = time.perf_counter()
            await self.decides.rotate(name)
            returned_at = time.perf_counter()
            renewed_at = await self._until(lambda link: link.streams_opened > 1)
            self._note("rotate", called_at, returned_at, renewed_at)

            await self._put_out(name, "revoke", "REVOKED")
        finally:
            await self._stop()

    async def _put_out(self, name: str, verb: str, reason: str) -> None:
        """Suspend or revoke a node that is being commanded all the time."""
        issuing = asyncio.create_task(self.commands.refused_at(name))
        ran, self.ran_at = self._ran(), 0.0
        await self._until(lambda _: self._ran() > ran)
        await _any_moment()
        called_at = time.perf_counter()
        await self.decides.set_state(name, reason)
        returned_at = time.perf_counter()
        known_at = await self._until(lambda link: link.last_refusal == reason)
        self._note(verb, called_at, returned_at, known_at)
        self.saw["refused"].append(await issuing - called_at)
        self.saw["last_run"].append(max(0.0, self.ran_at - called_at))

    def _note(self, verb: str, called_at: float, returned_at: float, in_force_at: float) -> None:
        self.saw[verb].append(in_force_at - called_at)
        self.saw[f"{verb}_from_return"].append(max(0.0, in_force_at - returned_at))

    def _start(self) -> str:
        folder = StateFolder(self.folder)
        membership = load_membership(folder.membership)
        assert membership is not None
        ensure_journal(folder.journal, membership.node_id)
        settings = Settings(state_dir=folder.path, metrics_listen="", endpoints=(self.gateway,))
        parts = Parts(settings, folder, membership, load_node_keys(folder.path), self.drivers, alone=False)
        self.node = Node(parts)
        self.running = asyncio.create_task(self.node.run())
        return membership.name

    async def _stop(self) -> None:
        self.node.stop()
        await asyncio.wait({self.running})

    def _ran(self) -> float:
        return sum(counter.value for _, counter in self.node.metrics.commands.finished.items())

    async def _until(self, holds: Callable[[LinkStatus], bool]) -> float:
        """The time at which it holds of the node's own status; sees meanwhile when a command last ran."""
        ran = self._ran()
        async with asyncio.timeout(_GIVE_UP_S):
            while not holds(self.node.link.status):
                if self._ran() != ran:
                    ran, self.ran_at = self._ran(), time.perf_counter()
                await asyncio.sleep(_POLL_S)
        return time.perf_counter()


async def _any_moment() -> None:
    """What came before was seen when a replica looked; what comes now shall not follow that by ever the same time."""
    await asyncio.sleep(random.uniform(0, INTERVAL_S))


def _only(name: str) -> admin_pb2.Selector:
    return admin_pb2.Selector(patterns=[name])
