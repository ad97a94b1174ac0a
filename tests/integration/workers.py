"""An installation on PostgreSQL that `fleet-server run --workers` serves."""

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from fleet.v1 import admin_pb2
from tests.integration.installation import Template, free_ports
from tests.integration.on_postgres import copied_installation
from tests.integration.processes import InstalledServer
from tests.integration.waiting import eventually

if TYPE_CHECKING:
    from tests.fakes.postgres import PostgresServer


class Workers(InstalledServer):
    """The supervisor is `process`; its workers are known by what it logs of them.

    Args:
        count: workers.
    """

    def __init__(self, *arguments: Any, count: int = 2, **settings: Any) -> None:
        self.probe_port = ports_in_a_row(count + 1)
        super().__init__(*arguments, metrics_listen=f"127.0.0.1:{self.probe_port}", **settings)
        self.count = count

    def options(self) -> list[str]:
        """Further options of `run`."""
        return ["--workers", str(self.count), "--set", f"drain_deadline_s={self.settings.drain_deadline_s}"]

    def pids(self, number: int) -> list[int]:
        """Processes that were started as this worker, oldest first."""
        assert self.process is not None
        found = [line for line in self.process.lines if "worker_started" in line and f'"worker": {number},' in line]
        return [int(re.findall(r'"pid": (\d+)', line)[0]) for line in found]

    async def states(self) -> dict[str, str]:
        """State of each replica, by the end of its id."""
        answer = await self.owner.ask("ListReplicas", admin_pb2.ListReplicasRequest())
        return {view.replica_id.rpartition("-")[2]: view.state for view in answer.replicas}

    async def wait_serving(self) -> None:
        """Return once all workers serve."""

        async def ready() -> bool:
            return (await self.get("/readyz")).startswith(f"200 {self.count} of {self.count}")

        await eventually(ready, "all workers serve")

    async def get(self, path: str, port: int = 0) -> str:
        """Status and body of a page of the metrics listener."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port or self.probe_port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        answer = (await reader.read()).decode()
        writer.close()
        return answer.split(" ", 2)[1] + " " + answer.partition("\r\n\r\n")[2].strip()


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ports_in_a_row(count: int) -> int:
    """The first of so many ports of 127.0.0.1 that were free a moment ago."""
    while True:
        first = free_ports(1)[0]
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError, OverflowError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


@contextlib.asynccontextmanager
async def on_postgres(postgres: "PostgresServer") -> AsyncIterator[tuple[Template, SecretStr]]:
    """A fresh installation on a database of its own, and the database's URL."""
    async with copied_installation(postgres) as (template, name):
        yield template, SecretStr(postgres.url(name))


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal."""
    os.kill(pid, number)
