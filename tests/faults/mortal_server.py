"""A server process that can be told at which edge of which transaction it dies, and an operator who never gives up."""

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path

from fleet.v1 import admin_pb2
from tests.integration.processes import ServerProcess
from tests.integration.waiting import eventually

EDGES = ("before", "after")


class MortalServer(ServerProcess):
    """An installation whose server process ends itself at an edge, once it is armed (`server_victim`)."""

    @property
    def _armed(self) -> Path:
        return self.folder / "armed"

    def program(self) -> Sequence[str | Path]:
        """The module that it runs, and what comes before the verb."""
        return ["tests.faults.server_victim", self._armed]

    def arm(self, edge: str, number: int) -> None:
        """Have it die at this edge of the `number`th transaction from now on."""
        draft = self._armed.with_suffix(".new")
        draft.write_text(f"{edge} {number}")
        draft.rename(self._armed)

    def disarm(self) -> None:
        """Have it live on."""
        self._armed.unlink(missing_ok=True)

    async def wait_dead(self) -> None:
        """Return once it has killed itself; the next one that is started lives."""
        assert self.process is not None
        assert await asyncio.to_thread(self.process.wait_exit) == -signal.SIGKILL
        self.disarm()

    async def die(self, edge: str, number: int) -> None:
        """Arm it, and wait until it has killed itself."""
        self.arm(edge, number)
        await self.wait_dead()

    async def insist(self, *patterns: str, key: str, count: int = 1) -> admin_pb2.IssueCommandsResponse:
        """Issue, and ask again with the same key until an answer comes."""
        what = f"an answer to the issue {key}"
        answer: admin_pb2.IssueCommandsResponse = await eventually(
            lambda: self.owner.issue(*patterns, count=count, idempotency_key=key), what
        )
        return answer

    async def outcome_views(self, issue_id: str) -> list[admin_pb2.CommandView]:
        """Every outcome of an issue; asked again when the server died over the question."""
        views: list[admin_pb2.CommandView] = await eventually(
            lambda: self.owner.outcomes(issue_id), f"the outcomes of {issue_id}"
        )
        return views


class Issuer:
    """Issues without pause, as an operator's script that repeats what it got no answer to.

    Args:
        server: asked.
        count: commands for each node in each issue.
    """

    def __init__(self, server: MortalServer, count: int = 3) -> None:
        self._server = server
        self._count = count
        self.answered: list[admin_pb2.IssueCommandsResponse] = []
        self._ending = False
        self._task = asyncio.create_task(self._run())

    async def wait_answered(self, more: int) -> None:
        """Return once that many more issues were answered."""
        wanted = len(self.answered) + more
        await eventually(lambda: len(self.answered) >= wanted, f"{wanted} issues are answered")

    async def finish(self) -> list[admin_pb2.CommandView]:
        """End once what is under way is answered; every outcome, in the order of the issues."""
        self._ending = True
        await self._task
        return [view for answer in self.answered for view in await self._server.outcome_views(answer.issue_id)]

    async def _run(self) -> None:
        number = 0
        while not self._ending:
            number += 1
            self.answered.append(await self._server.insist("*", key=f"order-{number}", count=self._count))
