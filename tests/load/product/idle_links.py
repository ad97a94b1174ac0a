"""Links without journal or drivers, many in one process: they answer pings and send telemetry if told."""

from __future__ import annotations

import asyncio
import random
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet import logs
from fleet.clock import ServerTime, SystemClock
from fleet.identity import load_node_keys
from fleet.metrics import Registry
from fleet.sequence import StreamContext
from fleet.v1 import gateway_pb2
from fleet_node.enrollment.folder import StateFolder
from fleet_node.enrollment.membership import BundleFile, Membership, load_membership
from fleet_node.link.credentials import Credentials
from fleet_node.link.hello import SelfDescription
from fleet_node.link.link import Link
from fleet_node.link.ports import CommandPort, HelloCounters, Ports, RoutePort, TelemetryPort, Uplink
from fleet_node.link.ratchet import Ratchet
from fleet_node.link.trust_store import TrustStore
from fleet_node.observability.metrics import LinkMetrics, NodeMetrics
from tests.fakes.watch import Watch
from tests.load.product.frames import FrameSource, frame_bytes
from tests.load.product.live import wait_live
from tests.load.usage import process_usage

_MAX_OUT_BYTES = 4 * 1024 * 1024
"""Half of what the server holds of one stream: no frame is ever left out."""
_MAX_OUT_FRAMES = 4096
_BURST_S = 0.05


class IdleLinks:
    """A role of `tests.load.child`."""

    def __init__(self) -> None:
        logs.configure(sys.stderr, level="error")
        self._links: list[Link] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._feeds: list[TelemetryFeed] = []
        self._acks = Watch()

    async def start(
        self, folders: list[str], samples: int = 0, interval_s: float = 0.0, flood: bool = False, at_once: int = 200
    ) -> None:
        """Open a stream for each folder, `at_once` at a time.

        Each sends one frame of `samples` samples per interval; with `flood`, as many as the server acknowledges.
        """
        for index in range(0, len(folders), at_once):
            started = [
                self._start_one(path, samples, interval_s, flood=flood) for path in folders[index : index + at_once]
            ]
            await wait_live(started)

    async def acknowledged(self) -> dict[str, float]:
        """Frames acknowledged so far, and the time, right after acknowledgements came.

        They come in bursts, with the server's commits: counted at any other moment, a short measurement would hold a
        burst too many or too few.
        """
        before = self._acked()
        await self._acks.wait(lambda: self._acked() > before)
        await asyncio.sleep(_BURST_S)
        return {"frames": float(self._acked()), "at_s": time.monotonic()}

    async def usage(self) -> dict[str, float]:
        """CPU and memory of this process so far."""
        return process_usage()

    async def close(self) -> None:
        """Stop every link."""
        for link in self._links:
            link.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _acked(self) -> int:
        return sum(feed.acked_seq for feed in self._feeds)

    def _start_one(self, path: str, samples: int, interval_s: float, *, flood: bool) -> Link:
        feed = TelemetryFeed(samples, interval_s, self._acks, flood=flood)
        self._feeds.append(feed)
        link = make_link(Member.load(path), NoCommands(), feed)
        self._links.append(link)
        self._tasks.append(asyncio.create_task(link.run()))
        return link


@dataclass(frozen=True, slots=True)
class Member:
    """A node's folder, opened."""

    folder: StateFolder
    membership: Membership
    trust: TrustStore
    metrics: LinkMetrics
    server_time: ServerTime

    @classmethod
    def load(cls, path: str) -> Member:
        """Open a folder that `installation` made."""
        folder = StateFolder(Path(path))
        membership = load_membership(folder.membership)
        assert membership is not None
        metrics = NodeMetrics(Registry()).link
        bundle = BundleFile(folder.bundle, cluster_id=membership.cluster_id, authority_key=membership.authority_key)
        return cls(folder, membership, TrustStore(bundle, metrics), metrics, ServerTime(SystemClock()))


def make_link(
    member: Member,
    commands: CommandPort,
    telemetry: TelemetryPort,
    *,
    endpoints: tuple[str, ...] = (),
    drivers: Sequence[gateway_pb2.DriverDescriptor] = (),
    kind: type[Link] = Link,
    ratchet: Ratchet | None = None,
    routes: RoutePort | None = None,
) -> Link:
    """The product's own link with these rooms behind it."""
    keys = load_node_keys(member.folder.path)
    return kind(
        credentials=Credentials(member.folder, member.membership, keys, server_time=member.server_time),
        ports=Ports(commands, telemetry, member.trust, ratchet or Ratchet(member.folder.ratchet), routes=routes),
        about=SelfDescription("load", {}, list(drivers), secrets.token_bytes(16)),
        clock=SystemClock(),
        server_time=member.server_time,
        metrics=member.metrics,
        endpoints=endpoints,
    )


class NoCommands:
    """A commands room that takes none."""

    def hello(self) -> HelloCounters:
        """Nothing was ever accepted."""
        return HelloCounters(0, 0, 0, drained=False, max_in_flight=1)

    def opened(self, context: StreamContext, welcome: gateway_pb2.Welcome, uplink: Uplink) -> NoCommands:
        """The next stream."""
        return self

    async def command_frame(self, frame: Any) -> None:
        """Not expected."""

    async def floor_frame(self, signed: Any) -> None:
        """None comes."""

    async def cancel_frame(self, frame: Any) -> None:
        """Not expected."""

    def next_reports(self, max_count: int = 0, max_bytes: int = 0) -> list[bytes]:
        """None."""
        return []

    def next_audit(self) -> None:
        """None."""

    def audit_acked(self, ack: Any) -> None:
        """Nothing was sent."""

    def acked(self, report_no: int) -> None:
        """Nothing to trim."""

    def drain(self, order: Any) -> None:
        """Nothing runs."""

    def close(self) -> None:
        """Nothing to close."""


class TelemetryFeed:
    """A telemetry room without a spool: frames at an interval, or as fast as they are acknowledged."""

    def __init__(self, samples: int, interval_s: float, acks: Watch, *, flood: bool) -> None:
        self.last_batch_seq = 0
        self.acked_seq = 0
        self._samples = samples
        self._interval_s = interval_s
        self._acks = acks
        self._max_out = min(_MAX_OUT_FRAMES, _MAX_OUT_BYTES // frame_bytes(samples)) if flood else 0
        self._due = False
        self._timer: asyncio.TimerHandle | None = None
        self._uplink: Uplink | None = None
        self._frames = FrameSource(samples)

    def opened(self, max_batch_bytes: int, uplink: Uplink) -> TelemetryFeed:
        """The next stream: its dictionary is empty."""
        self._uplink = uplink
        self._frames = FrameSource(self._samples)
        self.last_batch_seq = self.acked_seq
        if self._interval_s and self._timer is None:
            self._tick_in(self._interval_s * random.random())
        return self

    def next_batch(self) -> bytes | None:
        """The next frame, when one is due."""
        if not self._due and self.last_batch_seq - self.acked_seq >= self._max_out:
            return None
        self._due = False
        self.last_batch_seq += 1
        return self._frames.frame(self.last_batch_seq)

    def acked(self, batch_seq: int) -> None:
        """Room for more."""
        self.acked_seq = max(self.acked_seq, batch_seq)
        self._acks.changed()
        if self._max_out and self._uplink is not None:
            self._uplink.wake()

    def close(self) -> None:
        """Nothing to close."""

    def _tick_in(self, delay_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._due = True
        if self._uplink is not None:
            self._uplink.wake()
        self._tick_in(self._interval_s)
