"""Real programs for tests of `exec`: small scripts, and ways to wait for what becomes of a process."""

import asyncio
import os
import select
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fleet_node.drivers.api import Invocation, Outcome
from fleet_node.drivers.exec import ExecDriver

LIMIT_MS = 30_000
"""How long a test waits for something that must happen before it calls it hung."""


def script(folder: Path, text: str, name: str = "program") -> str:
    """An executable shell script."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def driver(path: str, *, settings: Mapping[str, Any] | None = None, **program: Any) -> ExecDriver:
    """An exec driver that allows one program under the alias `it`."""
    return ExecDriver({"programs": {"it": {"path": path, "grace_s": 0.2, **program}}, **(settings or {})})


def invocation(stop: asyncio.Event | None = None, limit_s: float = 60.0, **arguments: Any) -> Invocation:
    """A run of `it`."""
    return Invocation(b"\7" * 16, "exec.run", {"program": "it", **arguments}, limit_s, stop or asyncio.Event(), "ann")


async def run(made: ExecDriver, **arguments: Any) -> Outcome:
    """Run it to its end."""
    return await made.run(invocation(**arguments))


async def wait_line(fifo: Path) -> str:
    """The first line that somebody writes into a named pipe."""

    def read() -> str:
        with fifo.open() as pipe:
            return pipe.readline().strip()

    async with asyncio.timeout(LIMIT_MS / 1000):
        return await asyncio.to_thread(read)


class Watched:
    """A process by its pidfd: whether it ended cannot be confused with a later process of the same number."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def wait_gone(self) -> bool:
        """Wait until the process has ended; False when it did not within the limit."""
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        gone = bool(poller.poll(LIMIT_MS))
        os.close(self._fd)
        return gone
