"""Whole nodes, many in one process: link, journal, and the simulated driver."""

import asyncio
import sys
from pathlib import Path

from fleet import logs
from fleet.heap import settle_heap
from fleet.identity import load_node_keys
from fleet_node.app import Node, Parts
from fleet_node.commands.opening import ensure_journal
from fleet_node.config import Settings
from fleet_node.drivers.registry import DriverRegistry
from fleet_node.enrollment.folder import StateFolder
from fleet_node.enrollment.membership import load_membership
from tests.load.product.live import wait_live
from tests.load.usage import process_usage


class Fleet:
    """A role of `tests.load.child`."""

    def __init__(self) -> None:
        logs.configure(sys.stderr, level="error")
        self._nodes: list[Node] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, folders: list[str], gateways: list[str] | None = None) -> None:
        """Start a node for each state folder, and return once all have their streams.

        Args:
            gateways: addresses that the nodes are spread over, instead of those that their folders name.
        """
        drivers = DriverRegistry.load(("simulated",), {})
        for index, path in enumerate(folders):
            folder = StateFolder(Path(path))
            membership = load_membership(folder.membership)
            assert membership is not None
            ensure_journal(folder.journal, membership.node_id)
            endpoints = (gateways[index % len(gateways)],) if gateways else ()
            settings = Settings(state_dir=folder.path, metrics_listen="", endpoints=endpoints)
            node = Node(Parts(settings, folder, membership, load_node_keys(folder.path), drivers, alone=False))
            self._nodes.append(node)
            self._tasks.append(asyncio.create_task(node.run()))
        await wait_live([node.link for node in self._nodes])
        settle_heap()  # as `fleet-node run` does

    async def finished(self) -> dict[str, float]:
        """Commands that reached a final state on these nodes: asking here costs the server nothing."""
        counters = (counter for node in self._nodes for _, counter in node.metrics.commands.finished.items())
        return {"commands": sum(counter.value for counter in counters)}

    async def reopened(self) -> dict[str, float]:
        """Streams that these nodes opened beyond the first of each: what they lost before."""
        return {"streams": sum(node.link.status.streams_opened - 1 for node in self._nodes)}

    async def usage(self) -> dict[str, float]:
        """CPU and memory of this process so far."""
        return process_usage()

    async def close(self) -> None:
        """Stop every node."""
        for node in self._nodes:
            node.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)
