"""The primary dies and its standby takes its place.

Must hold: with synchronous replication nothing is lost and nothing doubled, and streams stay. Without it the standby
may lack commits: the database went back in time. Servers find that out before they write anything on top of it, end,
and begin again with what is there; seqs rise at each node's hello, nothing runs twice, and a node that is ahead of what
the database remembers is kept out, not set aside, until a person has said so.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fleet.v1 import command_pb2
from tests.fakes.postgres_pair import PostgresPair
from tests.faults.insisting import PATIENCE_S, Insisting, assert_whole, serving
from tests.integration.clock import QuickClock
from tests.integration.installation import assert_each_ran_once, free_ports
from tests.integration.restoring import note_database_restored

if TYPE_CHECKING:
    from tests.fakes.postgres import PostgresServer

SUCCEEDED = command_pb2.COMMAND_STATE_SUCCEEDED


@pytest.fixture
async def pair(request: pytest.FixtureRequest, postgres: "PostgresServer") -> AsyncIterator[PostgresPair]:
    """A primary and its standby, synchronous when the test says so. (`postgres` made the user that they run as.)"""
    first, second = free_ports(2)
    with PostgresPair((first, second), synchronous=request.param) as made:
        yield made


@pytest.mark.parametrize("pair", [True], indirect=True, ids=["synchronous"])
async def test_a_synchronous_standby_takes_over_and_nothing_is_lost_or_doubled(
    pair: PostgresPair, tmp_path: Path, impatient: None
) -> None:
    async with serving(tmp_path, pair.url(), QuickClock()) as installation:
        node = await installation.add_node("n-1")
        script = Insisting(installation)
        await script.more(3)
        pair.standby.freeze()  # commits wait for it
        await script.wait_refused()
        pair.standby.thaw()
        await script.more(3)

        pair.primary.kill()
        pair.standby.promote()

        await script.more(5)
        await assert_whole(script, node)
        kinds = {entry.kind for entry in await installation.owner.audit()}
        assert not {"database.went_back", "audit.tampered"} & kinds


@pytest.mark.parametrize("pair", [False], indirect=True, ids=["asynchronous"])
async def test_a_standby_that_lacks_commits_is_found_out_and_nothing_runs_twice(
    pair: PostgresPair, tmp_path: Path
) -> None:
    async with serving(tmp_path, pair.url(), QuickClock(speed=5)) as installation:
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
        assert await asyncio.wait_for(installation._serving, PATIENCE_S) == 1
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
