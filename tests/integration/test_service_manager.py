"""Server and node as systemd sees them: `Type=notify`, with a watchdog."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from tests.fakes.process import Processes
from tests.fakes.service_manager import service_manager
from tests.integration.installation import Template
from tests.integration.processes import InstalledNode, InstalledServer


async def test_a_server_and_a_node_that_has_none_tell_their_service_manager_how_it_goes(
    tmp_path: Path, template: Template, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    with service_manager(tmp_path, "of-server") as of_server, service_manager(tmp_path, "of-node") as of_node:
        monkeypatch.setenv("NOTIFY_SOCKET", of_server.address)
        async with InstalledServer(tmp_path, template, processes) as installation:
            assert of_server.wait("READY=1")
            node = InstalledNode(await installation.enroll("n-1"), processes)
            installation.nodes["n-1"] = node
            await asyncio.to_thread(of_server.wait, "WATCHDOG=1", 2)
            assert await installation.stop_server() == 0
            assert "STATUS=ready: 0 streams" in of_server.lines
            ending = of_server.lines[of_server.lines.index("STOPPING=1") :]
            assert [line for line in ending if line.startswith("EXTEND")][:2] == [
                *("EXTEND_TIMEOUT_USEC=75000000", "EXTEND_TIMEOUT_USEC=45000000")
            ]

            monkeypatch.setenv("NOTIFY_SOCKET", of_node.address)
            await node.start(wait_live=False)
            await asyncio.to_thread(of_node.wait, "READY=1")
            await asyncio.to_thread(of_node.wait, "WATCHDOG=1", 2)
            assert any(line.startswith("STATUS=stream: ") for line in of_node.lines)
            await node.stop()
            assert "EXTEND_TIMEOUT_USEC=28000000" in of_node.lines[: of_node.lines.index("STOPPING=1")]
            with contextlib.suppress(OSError):
                await installation.owner.close()
