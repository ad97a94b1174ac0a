"""Thousands of nodes in a few processes: the product's own link and verification, a journal in memory."""

from __future__ import annotations

import asyncio
import gc
import io
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from fleet import logs
from fleet.errors import Refusal
from fleet.heap import settle_heap
from fleet_node.drivers.registry import DriverRegistry
from fleet_node.link.link import Link
from fleet_node.link.ratchet import Ratchet
from tests.fakes.watch import Watch
from tests.load.children import Child
from tests.load.context import Context
from tests.load.product.idle_links import Member, TelemetryFeed, make_link
from tests.load.product.light_commands import LightCommands, Tally
from tests.load.product.live import wait_live
from tests.load.usage import process_usage

_LIGHT_NODES = "tests.load.product.light_nodes:LightNodes"
_OF_A_PROCESS = 2_500
_OF_A_STEP = 500
_AT_ONCE = 250
_POLL_S = 0.002
_YOUNG_OBJECTS = 200_000
"""A node's heap is small: the walks through that of thousands are none of its cost."""


class _RatchetInMemory(Ratchet):
    """Thousands of nodes would share the one disk that the database waits for; theirs are their own."""

    async def store(self, value: bytes) -> None:
        """Keep a handed-on value."""
        self._value = value or self._value


class _CountingLink(Link):
    """A link that tells which refusals it was given, and whether these said when to come back."""

    refusals: Counter[str]

    def _note_refusal(self, refusal: Refusal) -> None:
        delay = "with_delay" if refusal.retry_after_s is not None else "without_delay"
        self.refusals[f"{refusal.reason}_{delay}"] += 1
        super()._note_refusal(refusal)


class LightNodes:
    """A role of `tests.load.child`."""

    def __init__(self) -> None:
        logs.configure(io.StringIO(), level="error")  # what happens to them is meant
        self._drivers = DriverRegistry.load(("simulated",), {})
        self._links: list[Link] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._tally = Tally()
        self._refusals: Counter[str] = Counter()
        self._acks = Watch()

    async def start(self, folders: list[str], gateways: list[str] | None = None) -> None:
        """Start a node for each folder, a few hundred at a time, and return once all have their streams.

        Args:
            gateways: addresses that the nodes know, each beginning with another one, instead of those in their folders.
        """
        for start in range(0, len(folders), _AT_ONCE):
            known = gateways or []
            started = []
            for index, path in enumerate(folders[start : start + _AT_ONCE]):
                first = index % max(1, len(known))
                started.append(self._start_one(path, (*known[first:], *known[:first])))
            await wait_live(started)
        settle_heap()
        gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])

    async def wait_acknowledged(self, count: int) -> dict[str, float]:
        """When the server had committed and acknowledged `count` results of these nodes, on the clock of all processes
        of the machine."""
        while self._tally.acknowledged < count:
            await asyncio.sleep(_POLL_S)
        return {"at_s": time.monotonic()}

    async def finished(self) -> dict[str, float]:
        """Commands whose results the server acknowledged."""
        return {"commands": self._tally.acknowledged}

    async def tally(self) -> dict[str, float]:
        """What became of the commands, and of the streams."""
        opened = sum(link.status.streams_opened for link in self._links)
        return {
            "ran": self._tally.ran,
            "ran_twice": self._tally.ran_twice,
            "acknowledged": self._tally.acknowledged,
            "statements_refused": sum(self._tally.refused.values()),
            "streams_opened": opened,
            **{f"refused_{what}": count for what, count in sorted(self._refusals.items())},
        }

    async def ran(self) -> dict[str, float]:
        """When the latest commands ran, by id, on the clock of all processes of the machine."""
        return {command_id.hex(): at_s for command_id, at_s in self._tally.ran_at_s.items()}

    async def streams(self) -> dict[str, list[int]]:
        """How many streams each node has opened so far."""
        return {"opened": [link.status.streams_opened for link in self._links]}

    async def wait_streams(self, before: list[int]) -> dict[str, float]:
        """When each node had opened a stream more than `before`, and had it still."""
        waiting = list(zip(self._links, before, strict=True))
        while waiting:
            waiting = [(link, opened) for link, opened in waiting if link.status.streams_opened <= opened]
            await asyncio.sleep(_POLL_S)
        await wait_live(self._links)
        return {"at_s": time.monotonic()}

    async def usage(self) -> dict[str, float]:
        """CPU and memory of this process so far."""
        return process_usage()

    async def close(self) -> None:
        """Stop every node."""
        for link in self._links:
            link.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start_one(self, path: str, endpoints: tuple[str, ...]) -> Link:
        member = Member.load(path)
        commands = LightCommands(member, self._drivers, self._tally)
        feed = TelemetryFeed(0, 0.0, self._acks, flood=False)
        link = make_link(
            member,
            commands,
            feed,
            endpoints=endpoints,
            drivers=self._drivers.descriptors(()),
            kind=_CountingLink,
            ratchet=_RatchetInMemory(member.folder.ratchet),
        )
        assert isinstance(link, _CountingLink)
        link.refusals = self._refusals
        self._links.append(link)
        self._tasks.append(asyncio.create_task(link.run()))
        return link


@dataclass(frozen=True, slots=True)
class LightFleet:
    """The processes of light nodes."""

    children: Sequence[Child]
    sizes: list[int]

    async def start(self, folders: Sequence[str], gateways: list[str] | None = None) -> None:
        """Start nodes, as many in each process, step by step."""
        of_step = _OF_A_STEP * len(self.children)
        for start in range(0, len(folders), of_step):
            step = folders[start : start + of_step]
            parts = [list(step[index :: len(self.children)]) for index in range(len(self.children))]
            for index, part in enumerate(parts):
                self.sizes[index] += len(part)
            shared = zip(self.children, parts, strict=True)
            await asyncio.gather(*(child.call("start", folders=part, gateways=gateways) for child, part in shared))

    async def tally(self) -> Counter[str]:
        """Of all processes together."""
        total: Counter[str] = Counter()
        for child in self.children:
            total.update(await child.call("tally"))
        return total

    async def call(self, do: str, **args: object) -> dict[str, float]:
        """As `Child.call`, of all processes: their figures added up."""
        answers = await asyncio.gather(*(child.call(do, **args) for child in self.children))
        return {name: sum(answer[name] for answer in answers) for name in answers[0]} if answers[0] else {}

    async def acknowledged(self) -> list[int]:
        """Results acknowledged so far, by process."""
        return [int((await child.call("finished"))["commands"]) for child in self.children]

    async def wait_acknowledged(self, before: Sequence[int]) -> float:
        """When one result more of every node was acknowledged, on the monotonic clock of this machine."""
        waits = [
            child.call("wait_acknowledged", count=count + size)
            for child, count, size in zip(self.children, before, self.sizes, strict=True)
        ]
        return max(answer["at_s"] for answer in await asyncio.gather(*waits))

    async def streams(self) -> list[list[int]]:
        """How many streams each node has opened, by process."""
        return [(await child.call("streams"))["opened"] for child in self.children]

    async def wait_streams(self, before: list[list[int]]) -> float:
        """When every node had opened a stream more, on the monotonic clock of this machine."""
        waits = [child.call("wait_streams", before=opened) for child, opened in zip(self.children, before, strict=True)]
        return max(answer["at_s"] for answer in await asyncio.gather(*waits))

    def cpu_s(self) -> float:
        """CPU seconds of all processes."""
        return sum(child.cpu_s() for child in self.children)

    def rss_bytes(self) -> int:
        """Resident memory of all processes."""
        return sum(child.rss_bytes() for child in self.children)


@asynccontextmanager
async def light_fleet(ctx: Context, nodes: int, *, of_a_process: int = _OF_A_PROCESS) -> AsyncIterator[LightFleet]:
    """As many processes as `nodes` take, none of them started."""
    async with AsyncExitStack() as stack:
        count = -(-nodes // of_a_process)
        children = [await stack.enter_async_context(ctx.child(_LIGHT_NODES, uvloop=True)) for _ in range(count)]
        yield LightFleet(children, [0] * count)
