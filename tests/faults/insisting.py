"""A server on PostgreSQL that is about to fail, and an operator's script that repeats what it got no answer to."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from pydantic import SecretStr

from fleet.clock import SystemClock
from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2, command_pb2
from fleet_server import bootstrap
from tests.integration.clock import QuickClock
from tests.integration.installation import (
    Installation,
    RunningNode,
    Template,
    assert_each_ran_once,
    free_ports,
    server_settings,
)
from tests.integration.waiting import eventually

PATIENCE_S = 60.0


@contextlib.asynccontextmanager
async def serving(folder: Path, url: str, clock: QuickClock) -> AsyncIterator[Installation]:
    """A server on a database that has nothing yet."""
    secret = SecretStr(url)
    settings = server_settings(folder / "template", *free_ports(2), database_url=secret)
    made = await asyncio.to_thread(lambda: asyncio.run(bootstrap.init(settings, owner="owner", clock=SystemClock())))
    assert made.owner_token is not None
    template = Template(settings.data_dir, made.owner_token.reveal())
    async with Installation(
        folder / "run", template, clock=clock, heartbeat_interval_s=20, database_url=secret
    ) as running:
        yield running


class Insisting:
    """An operator's script that repeats each order until it has an answer."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._ending = False
        self.refused: list[Refusal] = []
        self.orders: list[str] = []
        self._task = asyncio.create_task(self._run())

    async def more(self, count: int) -> None:
        """Return once so many orders more were answered."""
        wanted = len(self.orders) + count
        await eventually(lambda: len(self.orders) >= wanted, f"{wanted} orders are answered", PATIENCE_S)

    async def wait_refused(self) -> None:
        """Return once one more was refused."""
        wanted = len(self.refused) + 1
        await eventually(lambda: len(self.refused) >= wanted, "an order is refused", PATIENCE_S)

    async def finish(self) -> list[admin_pb2.CommandView]:
        """End; every outcome, in the order of the seqs."""
        self._ending = True
        await self._task
        return [view for order in self.orders for view in await self._installation.owner.outcomes(order)]

    async def _run(self) -> None:
        while not self._ending:
            key = f"order-{len(self.orders)}"
            issue = await eventually(lambda key=key: self._order(key), key, PATIENCE_S)  # type: ignore[misc]
            self.orders.append(issue.issue_id)

    async def _order(self, key: str) -> admin_pb2.IssueCommandsResponse:
        try:
            return await self._installation.owner.issue("*", count=3, idempotency_key=key)
        except Refusal as refusal:
            self.refused.append(refusal)
            raise


async def assert_whole(script: Insisting, node: RunningNode) -> None:
    """All ran, once each and in order; the node kept its stream; who was refused was told to come again."""
    views = await script.finish()
    assert {view.state for view in views} == {command_pb2.COMMAND_STATE_SUCCEEDED}
    assert [view.monotonic_seq for view in views] == list(range(1, len(views) + 1))
    assert_each_ran_once(node, [view.command_id for view in views])
    assert node.link.streams_opened == 1
    assert {refusal.reason for refusal in script.refused} <= {Reason.UNAVAILABLE, Reason.OVERLOADED}
    assert all(refusal.retry_after_s for refusal in script.refused)
