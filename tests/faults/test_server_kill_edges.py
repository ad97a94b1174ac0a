"""Fault: the server is killed with SIGKILL right before, or right after, each commit on a command's way.

Must hold: the command runs once, its seq is used once, and whoever asked and got no answer may ask again.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from fleet.errors import Refusal
from fleet.v1 import admin_pb2, command_pb2
from tests.fakes.process import Processes
from tests.integration.installation import Template, assert_each_ran_once
from tests.integration.processes import BIN, ServerProcess

# Issue, claim, report: three commits are a command's own; a fourth is the server's housekeeping, or none.
COMMITS = (1, 2, 3)


class EdgeProcess(ServerProcess):
    """A server process that ends itself at an edge, once it is armed."""

    edge: tuple[str, int] | None = None

    @property
    def armed(self) -> Path:
        """The file that arms it."""
        return Path(self.data).parent / "armed"

    def program(self) -> Sequence[str | Path]:
        """What is started."""
        if self.edge is None:
            return [BIN / "fleet-server"]
        name, number = self.edge
        return [sys.executable, "-m", "tests.faults.server_victim", name, str(number), self.armed]

    async def wait_dead(self) -> None:
        """Return once it has killed itself."""
        assert self.process is not None
        assert await asyncio.to_thread(self.process.wait_exit) == -9


@pytest.fixture
async def installation(tmp_path: Path, template: Template, processes: Processes) -> AsyncIterator[EdgeProcess]:
    """A server that can be armed; its node lives in this process."""
    async with EdgeProcess(tmp_path, template, processes) as running:
        yield running


async def _issue(installation: EdgeProcess, key: str) -> admin_pb2.IssueCommandsResponse:
    while True:
        try:
            return await installation.owner.issue("*", idempotency_key=key)
        except Refusal:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("edge", ["before", "after"])
async def test_killed_at_each_commit_of_a_command(installation: EdgeProcess, edge: str) -> None:
    (node,) = await installation.add_nodes(1)
    commands: list[bytes] = []
    warm: list[bytes] = []
    for number in COMMITS:
        await installation.crash_server()
        installation.edge = (edge, number)
        await installation.start_server()
        warm += [view.command_id for view in await installation.owner.run("*")]  # the stream is up, and idle again
        installation.armed.touch()
        asking = asyncio.create_task(_issue(installation, f"{edge}-{number}"))

        await installation.wait_dead()
        installation.armed.unlink()
        installation.edge = None
        await installation.start_server()
        answer = await asking
        (view,) = await installation.owner.outcomes(answer.issue_id)

        assert view.state == command_pb2.COMMAND_STATE_SUCCEEDED
        commands.append(view.command_id)
    assert len(set(commands)) == len(COMMITS)
    assert_each_ran_once(node, commands + warm)
