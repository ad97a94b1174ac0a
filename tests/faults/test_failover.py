"""The primary dies and its standby takes its place.

Must hold: with synchronous replication nothing is lost and nothing doubled, and streams stay. Without it the standby
may lack commits: the database went back in time. Servers find that out before they write anything on top of it, end,
and begin again with what is there; seqs rise at each node's hello, nothing runs twice, and a node that is ahead of what
the database remembers is kept out, not set aside, until a person has said so.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from fleet.clock import SystemClock
from fleet.v1 import admin_pb2, command_pb2
from fleet_server import bootstrap
from tests.fakes.postgres_pair import PostgresPair
from tests.integration.clock import QuickClock
from tests.integration.installation import Installation, Template, assert_each_ran_once, free_ports, server_settings
from tests.integration.restoring import note_database_restored
from tests.integration.waiting import eventually

if TYPE_CHECKING:
    from tests.fakes.postgres import PostgresServer

SUCCEEDED = command_pb2.COMMAND_STATE_SUCCEEDED
_PATIENCE_S = 60.0


@contextlib.asynccontextmanager
async def serving(folder: Path, pair: PostgresPair, clock: QuickClock) -> AsyncIterator[Installation]:
    """A server on a pair, with listeners of its own."""
    url = SecretStr(pair.url())
    settings = server_settings(folder / "template", *free_ports(2), database_url=url)
    made = await asyncio.to_thread(lambda: asyncio.run(bootstrap.init(settings, owner="owner", clock=SystemClock())))
    assert made.owner_token is not None
    template = Template(settings.data_dir, made.owner_token.reveal())
    async with Installation(
        folder / "run", template, clock=clock, heartbeat_interval_s=20, database_url=url
    ) as running:
        yield running


@pytest.fixture
async def pair(request: pytest.FixtureRequest, postgres: "PostgresServer") -> AsyncIterator[PostgresPair]:
    """A primary and its standby, synchronous when the test says so. (`postgres` made the user that they run as.)"""
    first, second = free_ports(2)
    with PostgresPair((first, second), synchronous=request.param) as made:
        yield made


class Insisting:
    """An operator's script that repeats each order until it has an answer."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._ending = False
        self.orders: list[str] = []
        self._task = asyncio.create_task(self._run())

    async def more(self, count: int) -> None:
        """Return once so many orders more were answered."""
        wanted = len(self.orders) + count
        await eventually(lambda: len(self.orders) >= wanted, f"{wanted} orders are answered", _PATIENCE_S)

    async def finish(self) -> list[admin_pb2.CommandView]:
        """End; every outcome, in the order of the seqs."""
        self._ending = True
        await self._task
        return [view for order in self.orders for view in await self._installation.owner.outcomes(order)]

    async def _run(self) -> None:
        while not self._ending:
            key = f"order-{len(self.orders)}"
            issue = await eventually(
                lambda key=key: self._installation.owner.issue("*", count=3, idempotency_key=key), key, _PATIENCE_S
            )
            self.orders.append(issue.issue_id)


@pytest.mark.parametrize("pair", [True], indirect=True, ids=["synchronous"])
async def test_a_synchronous_standby_takes_over_and_nothing_is_lost_or_doubled(
    pair: PostgresPair, tmp_path: Path
) -> None:
    async with serving(tmp_path, pair, QuickClock()) as installation:
        node = await installation.add_node("n-1")
        script = Insisting(installation)
        await script.more(5)

        pair.primary.kill()
        pair.standby.promote()

        await script.more(5)
        views = await script.finish()
        assert {view.state for view in views} == {SUCCEEDED}
        assert [view.monotonic_seq for view in views] == list(range(1, len(views) + 1))
        assert_each_ran_once(node, [view.command_id for view in views])
        assert node.link.streams_opened == 1
        kinds = {entry.kind for entry in await installation.owner.audit()}
        assert not {"database.went_back", "audit.tampered"} & kinds


@pytest.mark.parametrize("pair", [False], indirect=True, ids=["asynchronous"])
async def test_a_standby_that_lacks_commits_is_found_out_and_nothing_runs_twice(
    pair: PostgresPair, tmp_path: Path
) -> None:
    async with serving(tmp_path, pair, QuickClock(speed=5)) as installation:
        node, ahead = await installation.add_nodes(2)
        first = await installation.owner.run("n-1", count=2)
        pair.fall_behind()
        lost = await installation.owner.run("n-1", count=5)
        for _ in range(2):  # its ratchet goes on by more than the database can follow
            await ahead.stop()
            await ahead.start()

        pair.primary.kill()
        pair.standby.promote()

        assert installation._serving is not None
        assert await asyncio.wait_for(installation._serving, _PATIENCE_S) == 1
        await installation.start_server()
        await node.wait_live(streams=2)
        after = await installation.owner.run("n-1", count=2)
        assert [view.monotonic_seq for view in after] == [8, 9]
        assert {view.state for view in after} == {SUCCEEDED}
        assert_each_ran_once(node, [view.command_id for view in (*first, *lost, *after)])

        assert "fleet-server db restored" in await ahead.wait_refused("QUARANTINED")
        assert (await installation.owner.node("n-2")).state == "ACTIVE"
        await note_database_restored(installation, "the primary died")  # while servers run
        await ahead.wait_live()
        (view,) = await installation.owner.run("n-2")
        assert view.state == SUCCEEDED
        (found,) = await installation.owner.audit("database.went_back")
        assert found.actor == "server"
        assert not await installation.owner.audit("node.ratchet_foreign", "audit.tampered")
