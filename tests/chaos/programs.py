"""The programs of the world: each starts again when it ends, as a service manager sees to, unless a fault holds it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.process import Processes, RunningProcess

ROOT = Path(__file__).parents[2]
_LOOK_EVERY_S = 0.2
_RESTART_AFTER_S = 0.5
_READY_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Ending:
    """A program ended though nobody wanted it to.

    Args:
        name: whose process it was.
        code: exit code; negative when a signal ended it.
        was_ready: it had started wholly; a program that finds no database ends before.
        last_lines: what it printed last.
    """

    name: str
    code: int
    was_ready: bool
    last_lines: str


class Program:
    """One program.

    Args:
        processes: starts it.
        name: of it, and of its log.
        argv: module that it runs, and arguments.
        env: added to the environment.
        ready: a line that it prints once it works.
        lifetime_s: it is killed after that, should this process not be there to do it.
    """

    def __init__(
        self,
        processes: Processes,
        name: str,
        argv: Sequence[str | Path],
        env: Mapping[str, str],
        *,
        ready: str,
        lifetime_s: int,
    ) -> None:
        self.name = name
        self.endings: list[Ending] = []
        self.starts = 0
        self._processes = processes
        self._argv = ["tests.chaos.bounded", str(lifetime_s), *argv]
        self._env = {"GRPC_VERBOSITY": "NONE", **env}
        self._ready = ready
        self._process: RunningProcess | None = None
        self._wanted = False
        self._keeping: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.exit_code is None

    @property
    def is_ready(self) -> bool:
        """Whether it runs and said that it works."""
        return self.is_up and self._was_ready()

    def start(self) -> None:
        """Start it, and from now on again whenever it ends."""
        self._wanted = True
        if not self.is_up:
            self._process = self._processes.fork(*self._argv, name=self.name, env=self._env)
            self.starts += 1
        if self._keeping is None:
            self._keeping = asyncio.create_task(self._keep())

    async def wait_ready(self) -> None:
        """Return once it works.

        Raises:
            TimeoutError: it does not; the text holds its last lines.
        """
        deadline_s = time.monotonic() + _READY_TIMEOUT_S
        while not self.is_ready:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{self.name} is not ready after {_READY_TIMEOUT_S:g} s:\n{self.tail()}")
            await asyncio.sleep(_LOOK_EVERY_S)

    async def kill(self) -> None:
        """SIGKILL; it stays down until `start`."""
        self._wanted = False
        if self._process is not None:
            await asyncio.to_thread(self._process.kill)

    async def stop(self, *, within_s: float, hurry_after_s: float | None = None) -> int | None:
        """SIGTERM, perhaps a second one; it stays down until `start`.

        Returns:
            Its exit code; None when it had to be killed because it took too long.
        """
        self._wanted = False
        process = self._process
        if process is None or process.exit_code is not None:
            return 0
        process.thaw()
        process.terminate()
        if hurry_after_s is not None:
            await asyncio.sleep(hurry_after_s)
            process.terminate()
        return await self._ended(process, within_s)

    async def wait_down(self, within_s: float) -> int | None:
        """As `stop`, for what was told to end in another way."""
        self._wanted = False
        return 0 if self._process is None else await self._ended(self._process, within_s)

    def hold_down(self) -> None:
        """It may end now without being started again."""
        self._wanted = False

    def freeze(self) -> None:
        """SIGSTOP."""
        if self._process is not None:
            self._process.freeze()

    def thaw(self) -> None:
        """SIGCONT."""
        if self._process is not None:
            self._process.thaw()

    def tail(self) -> str:
        """What it printed last."""
        return "" if self._process is None else self._process.tail(20)

    async def close(self) -> None:
        """Start it no more."""
        self._wanted = False
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})

    async def _ended(self, process: RunningProcess, within_s: float) -> int | None:
        with contextlib.suppress(TimeoutError):
            return await asyncio.to_thread(process.wait_exit, within_s)
        process.signal(signal.SIGABRT)  # its log shows where it hangs, where faulthandler is on
        await asyncio.to_thread(process.kill)
        return None

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            process = self._process
            if not self._wanted or process is None or process.exit_code is None:
                continue
            self.endings.append(Ending(self.name, process.exit_code, self._was_ready(), process.tail(20)))
            await asyncio.sleep(_RESTART_AFTER_S)
            if self._wanted:
                self.start()

    def _was_ready(self) -> bool:
        return self._process is not None and any(self._ready in line for line in self._process.lines)


def plugin_folder(folder: Path) -> Path:
    """Make a folder that offers the suite's driver to whoever has it on PYTHONPATH, as an installed package does."""
    offered = folder / "fleet_chaos-1.dist-info"
    offered.mkdir(parents=True)
    (offered / "METADATA").write_text("Metadata-Version: 2.1\nName: fleet-chaos\nVersion: 1\n")
    (offered / "entry_points.txt").write_text("[fleet_node.drivers]\nchaos = tests.chaos.driver:ChaosDriver\n")
    return folder
