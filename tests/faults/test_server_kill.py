"""Fault: the server process is killed with SIGKILL at every edge that chance finds.

Must hold: seqs are unique and grow for each node, no command is lost, none runs twice, none is sent unsigned.
"""

import asyncio
import contextlib
import json
import random
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet.errors import Refusal
from fleet.v1 import admin_pb2, command_pb2
from tests.fakes.process import Processes
from tests.integration.installation import Template, assert_each_ran_once
from tests.integration.processes import ServerProcess

SUCCEEDED = command_pb2.COMMAND_STATE_SUCCEEDED


@pytest.fixture
async def installation(tmp_path: Path, template: Template, processes: Processes) -> AsyncIterator[ServerProcess]:
    """A server with a process of its own; its nodes live in this one."""
    async with ServerProcess(tmp_path, template, processes) as running:
        yield running


class Issuer:
    """Issues without pause, as an operator's script that repeats what it got no answer to."""

    def __init__(self, installation: ServerProcess) -> None:
        self._installation = installation
        self.answered: list[admin_pb2.IssueCommandsResponse] = []
        self.unanswered = 0
        self._ending = False
        self._task = asyncio.create_task(self._run())

    async def finish(self) -> None:
        """Answer what is under way, and end."""
        self._ending = True
        await self._task

    async def _run(self) -> None:
        number = 0
        while not self._ending:
            number += 1
            while True:
                try:
                    answer = await self._installation.owner.issue("*", count=3, idempotency_key=f"order-{number}")
                except Refusal:
                    self.unanswered += 1
                    await asyncio.sleep(0.01)
                else:
                    self.answered.append(answer)
                    break


async def test_killed_again_and_again_under_a_steady_stream_of_commands(installation: ServerProcess) -> None:
    nodes = await installation.add_nodes(3)
    chance = random.Random(5)
    issuer = Issuer(installation)
    for _ in range(6):
        await asyncio.sleep(chance.uniform(0.02, 0.4))  # the moment itself is what chance chooses
        await installation.crash_server()
        await installation.start_server()
    await issuer.finish()
    assert issuer.unanswered

    views = [view for answer in issuer.answered for view in await installation.owner.outcomes(answer.issue_id)]

    assert {view.state for view in views} == {SUCCEEDED}
    assert len(views) == 9 * len(issuer.answered)
    for node in nodes:
        mine = [view for view in views if view.node_id == node.node_id]
        assert_each_ran_once(node, [view.command_id for view in mine])
        seqs = [view.monotonic_seq for view in mine]
        assert seqs == sorted(set(seqs))
        assert (await installation.owner.node(node.name)).last_seq == seqs[-1]
    assert all(view.key_id and view.sent_at_ms for view in views)


async def test_what_is_in_the_database_is_whole_after_each_kill(installation: ServerProcess) -> None:
    """Every command that is there has its issue, its audit row and its place in the node's count."""
    (node,) = await installation.add_nodes(1)
    issuer = Issuer(installation)
    chance = random.Random(6)
    for _ in range(3):
        await asyncio.sleep(chance.uniform(0.05, 0.2))
        await installation.crash_server()
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
        await installation.start_server()
    await issuer.finish()


async def test_a_kill_during_a_run_costs_the_result_nothing(installation: ServerProcess) -> None:
    (node,) = await installation.add_nodes(1)
    issued = await installation.owner.issue("n-1", action="simulated.work", arguments={"latency_ms": 300})
    await installation.owner.wait_command(
        issued.issued[0].command_id, lambda view: view.state == command_pb2.COMMAND_STATE_RUNNING
    )

    await installation.crash_server()
    await installation.start_server()

    (view,) = await installation.owner.outcomes(issued.issue_id)
    assert view.state == SUCCEEDED
    assert_each_ran_once(node, [view.command_id])


async def test_a_frozen_server_that_wakes_up_is_told_the_truth(installation: ServerProcess) -> None:
    """SIGSTOP: a virtual machine that was paused. The node's stream may survive or not; the command runs once."""
    (node,) = await installation.add_nodes(1)
    assert installation.process is not None
    issued = await installation.owner.issue("n-1", action="simulated.work", arguments={"latency_ms": 200})
    installation.process.freeze()
    await asyncio.sleep(0.5)
    installation.process.thaw()

    (view,) = await installation.owner.outcomes(issued.issue_id)
    assert view.state == SUCCEEDED
    assert_each_ran_once(node, [view.command_id])


async def test_a_server_told_to_stop_drains_and_exits_with_zero(installation: ServerProcess) -> None:
    (node,) = await installation.add_nodes(1)
    issuer = Issuer(installation)
    await asyncio.sleep(0.1)

    assert await installation.stop_server() == 0
    await installation.start_server()
    await node.wait_live(streams=2)
    await issuer.finish()

    views = [view for answer in issuer.answered for view in await installation.owner.outcomes(answer.issue_id)]
    assert {view.state for view in views} == {SUCCEEDED}
    assert_each_ran_once(node, [view.command_id for view in views])


async def test_a_second_server_on_the_same_data_refuses_to_start(installation: ServerProcess) -> None:
    first = installation.process
    await installation.launch()
    second, installation.process = installation.process, first

    assert second is not None
    assert await asyncio.to_thread(second.wait_exit) == 3
    assert "stop it first" in second.tail()
    assert (await installation.owner.ask("WhoAmI", admin_pb2.WhoAmIRequest())).role == "owner"
