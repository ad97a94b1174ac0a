"""Simulated nodes, many in one process: the whole node with journal and drivers, or only its link."""

import asyncio
import secrets
import struct
import time
from pathlib import Path
from typing import Any

from fleet.clock import ServerTime, SystemClock
from fleet.identity import load_node_keys
from fleet.metrics import Registry
from fleet.sequence import StreamContext
from fleet.v1 import gateway_pb2, telemetry_pb2
from fleet_node.app import Node, Parts
from fleet_node.commands.opening import ensure_journal
from fleet_node.config import Settings
from fleet_node.drivers.registry import DriverRegistry
from fleet_node.enrollment.folder import StateFolder
from fleet_node.enrollment.membership import BundleFile, load_membership
from fleet_node.link.connection import Ports, SelfDescription
from fleet_node.link.link import Link, LinkState
from fleet_node.link.ports import HelloCounters, Uplink
from fleet_node.link.trust_store import TrustStore
from fleet_node.observability.metrics import NodeMetrics
from tests.load.usage import process_usage

_POLL_S = 0.02


class Fleet:
    """A role of `tests.load.child`: real nodes with the simulated driver."""

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, folders: list[str]) -> None:
        """Start a node for each state folder."""
        drivers = DriverRegistry.load(("simulated",), {})
        for path in folders:
            folder = StateFolder(Path(path))
            membership = load_membership(folder.membership)
            assert membership is not None
            ensure_journal(folder.journal, membership.node_id)
            settings = Settings(state_dir=folder.path, metrics_listen="")
            node = Node(Parts(settings, folder, membership, load_node_keys(folder.path), drivers, alone=False))
            self._nodes.append(node)
            self._tasks.append(asyncio.create_task(node.run()))

    async def wait_live(self) -> None:
        """Return once every node has its stream."""
        await _wait_live([node.link for node in self._nodes])

    async def usage(self) -> dict[str, float]:
        """CPU and memory of this process so far."""
        return process_usage()

    async def close(self) -> None:
        """Stop every node."""
        for node in self._nodes:
            node.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class IdleFleet:
    """A role of `tests.load.child`: links without journal or drivers, which answer pings and send telemetry if told."""

    def __init__(self) -> None:
        self._links: list[Link] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._feeds: list[TelemetryFeed] = []

    async def start(
        self, folders: list[str], series: int = 0, interval_s: float = 0.0, samples: int = 0, at_once: int = 200
    ) -> None:
        """Open a stream for each folder, `at_once` at a time.

        With `interval_s` each sends one frame of `series` values per interval; with `samples` it sends frames of that
        many values as fast as they are acknowledged.
        """
        for index in range(0, len(folders), at_once):
            started = [self._start_one(path, series, interval_s, samples) for path in folders[index : index + at_once]]
            await _wait_live(started)

    async def frames(self) -> dict[str, float]:
        """Telemetry frames acknowledged so far, and the time."""
        return {"frames": float(sum(feed.acked_seq for feed in self._feeds)), "at_s": time.monotonic()}

    async def usage(self) -> dict[str, float]:
        """CPU and memory of this process so far."""
        return process_usage()

    async def close(self) -> None:
        """Stop every link."""
        for link in self._links:
            link.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start_one(self, path: str, series: int, interval_s: float, samples: int) -> Link:
        folder = StateFolder(Path(path))
        membership = load_membership(folder.membership)
        assert membership is not None
        metrics = NodeMetrics(Registry()).link
        bundle = BundleFile(folder.bundle, cluster_id=membership.cluster_id, authority_key=membership.authority_key)
        feed = TelemetryFeed(series or samples, interval_s, flood=bool(samples))
        self._feeds.append(feed)
        clock = SystemClock()
        link = Link(
            membership=membership,
            keys=load_node_keys(folder.path),
            ports=Ports(NoCommands(), feed, TrustStore(bundle, metrics)),
            about=SelfDescription("load", {}, [], secrets.token_bytes(16)),
            clock=clock,
            server_time=ServerTime(clock),
            metrics=metrics,
        )
        self._links.append(link)
        self._tasks.append(asyncio.create_task(link.run()))
        return link


class NoCommands:
    """A commands room that takes none."""

    def hello(self) -> HelloCounters:
        """Nothing was ever accepted."""
        return HelloCounters(0, 0, 0, drained=False, max_in_flight=1)

    def opened(self, context: StreamContext, welcome: gateway_pb2.Welcome, uplink: Uplink) -> "NoCommands":
        """The next stream."""
        return self

    async def command_frame(self, frame: Any) -> None:
        """Not expected."""

    async def cancel_frame(self, frame: Any) -> None:
        """Not expected."""

    def next_reports(self, max_count: int = 0, max_bytes: int = 0) -> list[Any]:
        """None."""
        return []

    def acked(self, report_no: int) -> None:
        """Nothing to trim."""

    def drain(self, order: Any) -> None:
        """Nothing runs."""

    def close(self) -> None:
        """Nothing to close."""


class TelemetryFeed:
    """A telemetry room that makes its frames on the spot, at an interval or as fast as they are acknowledged."""

    def __init__(self, series: int, interval_s: float, *, flood: bool) -> None:
        self._series = series
        self._interval_s = interval_s
        self._flood = flood
        self.last_batch_seq = 0
        self.acked_seq = 0
        self._due = 0.0
        self._uplink: Uplink | None = None
        self._defined = False

    def opened(self, max_batch_bytes: int, uplink: Uplink) -> "TelemetryFeed":
        """The next stream: its dictionary is empty."""
        self._uplink = uplink
        self._defined = False
        self.last_batch_seq = self.acked_seq
        if self._interval_s:
            self._tick()
        return self

    def next_batch(self) -> bytes | None:
        """The next frame, when one is due."""
        if not self._series or (not self._flood and not self._due):
            return None
        if self._flood and self.last_batch_seq - self.acked_seq >= 512:
            return None
        self._due = 0.0
        self.last_batch_seq += 1
        return self._frame()

    def acked(self, batch_seq: int) -> None:
        """Room for more."""
        self.acked_seq = max(self.acked_seq, batch_seq)
        if self._flood and self._uplink is not None:
            self._uplink.wake()

    def close(self) -> None:
        """Nothing to close."""

    def _tick(self) -> None:
        self._due = time.monotonic()
        if self._uplink is not None:
            self._uplink.wake()
        spread = 0.9 + 0.2 * secrets.randbelow(1000) / 1000
        asyncio.get_running_loop().call_later(self._interval_s * spread, self._tick)

    def _frame(self) -> bytes:
        batch = telemetry_pb2.TelemetryBatch(batch_seq=self.last_batch_seq, base_time_ms=time.time_ns() // 1_000_000)
        names = min(self._series, 100)
        if not self._defined:
            self._defined = True
            for number in range(names):
                batch.definitions.add(series=number, name=f"load.s{number}", kind=telemetry_pb2.SERIES_KIND_GAUGE)
        batch.series.extend(number % names for number in range(self._series))
        batch.time_offset_ms.extend([0] * self._series)
        noise = struct.unpack(f"{self._series}I", secrets.token_bytes(4 * self._series))
        batch.values.extend(value / 7 for value in noise)
        return batch.SerializeToString()


async def _wait_live(links: list[Link]) -> None:
    while any(link.status.state is not LinkState.LIVE for link in links):
        await asyncio.sleep(_POLL_S)
