"""Fault: the server process is killed with SIGKILL under load, frozen, or told to stop.

Must hold: seqs are unique and grow for each node, no command is lost, none runs twice, none is sent unsigned.
What dies at which commit is chosen by count, never by time (`server_victim`); one commit after another, on an idle
server, is in `test_server_kill_edges`.
"""

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from fleet.v1 import admin_pb2, command_pb2
from tests.fakes.process import Processes
from tests.faults.mortal_server import Issuer, MortalServer
from tests.integration.installation import Template, assert_each_ran_once
from tests.integration.processes import ServerProcess
from tests.integration.waiting import eventually

SUCCEEDED = command_pb2.COMMAND_STATE_SUCCEEDED


class HungServer(ServerProcess):
    """A server in which something hangs once it is told to stop, on the event loop's own thread."""

    def program(self) -> Sequence[str | Path]:
        """The module that it runs, and what comes before the verb."""
        return ["tests.faults.hung_server"]


@pytest.fixture
async def installation(tmp_path: Path, template: Template, processes: Processes) -> AsyncIterator[MortalServer]:
    """A server with a process of its own; its nodes live in this one."""
    async with MortalServer(tmp_path, template, processes) as running:
        yield running


async def test_killed_again_and_again_under_a_steady_stream_of_commands(installation: MortalServer) -> None:
    nodes = await installation.add_nodes(3)
    issuer = Issuer(installation)
    for edge, number in (("before", 3), ("after", 8), ("before", 20), ("after", 1), ("before", 45)):
        await installation.die(edge, number)
        await installation.start_server()
    await issuer.wait_answered(1)

    views = await issuer.finish()

    assert {view.state for view in views} == {SUCCEEDED}
    assert len(views) == 9 * len(issuer.answered)
    for node in nodes:
        mine = [view for view in views if view.node_id == node.node_id]
        assert_each_ran_once(node, [view.command_id for view in mine])
        seqs = [view.monotonic_seq for view in mine]
        assert seqs == sorted(set(seqs))
        assert (await installation.owner.node(node.name)).last_seq == seqs[-1]
    assert all(view.key_id and view.sent_at_ms for view in views)


async def test_what_is_in_the_database_is_whole_after_each_kill(installation: MortalServer) -> None:
    """Every command that is there has its issue, its audit row and its place in the node's count."""
    (node,) = await installation.add_nodes(1)
    issuer = Issuer(installation)
    for edge, number in (("before", 5), ("after", 10), ("before", 15)):
        await installation.die(edge, number)
        with contextlib.closing(sqlite3.connect(installation.database_file)) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            seqs = [row[0] for row in database.execute("SELECT seq FROM commands ORDER BY seq")]
            assert seqs == list(range(1, len(seqs) + 1))
            (last_seq,) = database.execute("SELECT last_seq FROM nodes").fetchone()
            assert last_seq == len(seqs)
            orphans = "SELECT count(*) FROM commands WHERE issue_id NOT IN (SELECT issue_id FROM command_issues)"
            assert database.execute(orphans).fetchone() == (0,)
            issued = "SELECT detail FROM audit_rows WHERE kind = 'command.issued' ORDER BY position"
            audited = [json.loads(row[0])["seqs"][node.node_id] for row in database.execute(issued)]
            assert [seq for first, last in audited for seq in range(first, last + 1)] == seqs
            runs = "SELECT first_seq, first_seq + count - 1 FROM command_runs ORDER BY first_seq"
            assert [list(run) for run in database.execute(runs)] == audited
        await installation.start_server()
    assert {view.state for view in await issuer.finish()} == {SUCCEEDED}


async def test_a_kill_during_a_run_costs_the_result_nothing(installation: MortalServer) -> None:
    (node,) = await installation.add_nodes(1)
    issued = await installation.owner.issue("n-1", action="simulated.work", arguments={"latency_ms": 300})
    await installation.owner.wait_command(
        issued.issued[0].command_id, lambda view: view.state == command_pb2.COMMAND_STATE_RUNNING
    )

    await installation.crash_server()
    await installation.start_server()

    (view,) = await installation.outcome_views(issued.issue_id)
    assert view.state == SUCCEEDED
    assert_each_ran_once(node, [view.command_id])


async def test_a_frozen_server_that_wakes_up_is_told_the_truth(installation: MortalServer) -> None:
    """SIGSTOP: a virtual machine that was paused. The node's stream may survive or not; the command runs once."""
    (node,) = await installation.add_nodes(1)
    assert installation.process is not None
    issued = await installation.owner.issue("n-1", action="simulated.work", arguments={"latency_ms": 200})
    await eventually(node.runs, "the command runs")
    installation.process.freeze()
    await eventually(node.ended, "it ended, and the server has not heard")
    installation.process.thaw()

    (view,) = await installation.owner.outcomes(issued.issue_id)
    assert view.state == SUCCEEDED
    assert_each_ran_once(node, [view.command_id])


async def test_a_server_told_to_stop_drains_and_exits_with_zero(installation: MortalServer) -> None:
    (node,) = await installation.add_nodes(1)
    issuer = Issuer(installation)
    await issuer.wait_answered(3)

    assert await installation.stop_server() == 0
    await installation.start_server()
    await node.wait_live(streams=2)
    await issuer.wait_answered(3)

    views = await issuer.finish()
    assert {view.state for view in views} == {SUCCEEDED}
    assert_each_ran_once(node, [view.command_id for view in views])


async def test_a_server_in_which_something_hangs_ends_after_its_deadline_all_the_same(
    tmp_path: Path, template: Template, processes: Processes
) -> None:
    async with HungServer(tmp_path, template, processes) as installation:
        await installation.add_nodes(1)
        assert await installation.stop_server() == 1


async def test_a_second_server_on_the_same_data_refuses_to_start(installation: MortalServer) -> None:
    first = installation.process
    await installation.launch()
    second, installation.process = installation.process, first

    assert second is not None
    assert await asyncio.to_thread(second.wait_exit) == 3
    assert "stop it first" in second.tail()
    assert (await installation.owner.ask("WhoAmI", admin_pb2.WhoAmIRequest())).role == "owner"
