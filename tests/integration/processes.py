"""Server and node as processes of their own, so that `kill -9` is real.

Each mixes with the other half in this process: what a test does not kill needs no process, and stands in its loop.
"""

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fleet_server.config import Settings
from tests.fakes.process import Processes, RunningProcess
from tests.integration.installation import Installation, RunningNode, Template
from tests.integration.waiting import eventually

BIN = Path(sys.executable).parent
_SHOWN = (
    "gateway_listen",
    "admin_listen",
    "metrics_listen",
    "heartbeat_interval_s",
    "session_ttl_s",
    "lease_ttl_s",
    "relay_loss_s",
)


class ServerProcess(Installation):
    """An installation whose server is a process: `crash_server` is SIGKILL, `stop_server` SIGTERM.

    Args:
        processes: starts it.
    """

    def __init__(self, folder: Path, template: Template, processes: Processes, **settings: Any) -> None:
        super().__init__(folder, template, **settings)
        self._processes = processes
        self.process: RunningProcess | None = None

    def program(self) -> Sequence[str | Path]:
        """The module that it runs, and what comes before the verb."""
        return ["fleet_server"]

    def spawn(self, arguments: Sequence[str | Path], env: Mapping[str, str]) -> RunningProcess:
        """Start it with these arguments."""
        return self._processes.fork(*self.program(), *arguments, name="server", env=env)

    def options(self) -> Sequence[str]:
        """Further options of `run`."""
        return []

    async def launch(self) -> None:
        """Start it, and wait for nothing."""
        arguments = [f"{name}={getattr(self.settings, name)}" for name in _SHOWN]
        pairs = [part for argument in arguments for part in ("--set", argument)]
        self.process = self.spawn(["run", "--data-dir", self.data, *pairs, *self.options()], _secrets(self.settings))

    async def _is_listening(self) -> bool:
        assert self.process is not None
        if self.process.exit_code is not None:
            raise AssertionError(f"the server ended: {self.process.tail()}")
        return await self._accepts()

    async def stop_server(self, deadline_s: int = 5) -> int:
        """SIGTERM; its exit code."""
        assert self.process is not None
        self.process.terminate()
        return await asyncio.to_thread(self.process.wait_exit)

    async def crash_server(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            await asyncio.to_thread(self.process.kill)


class InstalledServer(ServerProcess):
    """As installed: what this one imports, and starts, is its own."""

    def spawn(self, arguments: Sequence[str | Path], env: Mapping[str, str]) -> RunningProcess:
        """Start it with these arguments."""
        return self._processes.start([BIN / "fleet-server", *arguments], name="server", env=env)


class NodeProcess(RunningNode):
    """A node whose daemon is a process. It is enrolled in this process, which saves a start."""

    def __init__(self, node: RunningNode, processes: Processes) -> None:
        vars(self).update(vars(node))
        self._processes = processes
        self.process: RunningProcess | None = None
        self.config = self.settings.state_dir.parent / "node.toml"

    def program(self) -> Sequence[str | Path]:
        """The module that it runs, and what comes before the verb."""
        return ["fleet_node"]

    def spawn(self, arguments: Sequence[str | Path]) -> RunningProcess:
        """Start it with these arguments."""
        return self._processes.fork(*self.program(), *arguments, name=self.name)

    async def start(self, *, wait_live: bool = True) -> None:
        """Start the daemon; returns once it holds its stream."""
        self.config.write_text("\n".join(self._lines()) + "\n")
        self.process = self.spawn(["run", "--config", self.config])
        if wait_live:
            await asyncio.to_thread(self.process.wait_line, "stream_welcomed")

    def _lines(self) -> list[str]:
        """Its configuration file."""
        settings = self.settings
        lines = [
            f"state_dir = {json.dumps(str(settings.state_dir))}",
            f"endpoints = {json.dumps(list(settings.endpoints))}",
            'metrics_listen = ""',
            f"probe_listen = {json.dumps(settings.probe_listen)}",
            f"telemetry_interval_s = {settings.telemetry_interval_s}",
            "[routes.peer_endpoints]",
            *(f"{key} = {json.dumps(value)}" for key, value in settings.routes_peer_endpoints.items()),
            "[drivers]",
            f"enabled = {json.dumps(list(settings.drivers_enabled))}",
        ]
        for name, table in settings.driver_tables.items():
            lines += [f"[drivers.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        return lines

    async def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        await asyncio.to_thread(self.process.kill)

    async def stop(self) -> None:
        """SIGTERM, and wait."""
        if self.process is not None and self.process.exit_code is None:
            self.process.thaw()
            self.process.terminate()
            await asyncio.to_thread(self.process.wait_exit)

    async def wait_started(self, command_id: bytes) -> None:
        """Return once the driver was handed this command."""
        await eventually(lambda: self.runs()[command_id.hex()], f"{self.name} runs {command_id.hex()}")


class InstalledNode(NodeProcess):
    """As installed: what this one imports is its own."""

    def spawn(self, arguments: Sequence[str | Path]) -> RunningProcess:
        """Start it with these arguments."""
        return self._processes.start([BIN / "fleet-node", *arguments], name=self.name)


def _secrets(settings: Settings) -> dict[str, str]:
    url = settings.database_url.get_secret_value()
    return {"FLEET_DATABASE_URL": url} if url else {}
