"""Fault: the node's disk is full, or its state folder cannot be written.

Must hold: commands are refused before they run, the node says so, nothing is lost, and work resumes by itself.
"""

import asyncio
import resource

import pytest

from fleet.v1 import command_pb2
from tests.fakes.process import Processes
from tests.integration.installation import Installation, assert_each_ran_once
from tests.integration.processes import NodeProcess

SENT = command_pb2.COMMAND_STATE_SENT
SUCCEEDED = command_pb2.COMMAND_STATE_SUCCEEDED


@pytest.fixture
async def node(quick: Installation, processes: Processes) -> NodeProcess:
    """A live node with a process of its own; its own time runs as usual, the server's ten times as fast."""
    node = NodeProcess(await quick.enroll("n-1"), processes)
    quick.nodes["n-1"] = node
    await node.start()
    return node


class DiskFull:
    """No file of the process may grow any more: to it, every disk is full."""

    def __init__(self, node: NodeProcess) -> None:
        assert node.process is not None
        self._pid = node.process.pid
        _, self._hard = resource.prlimit(self._pid, resource.RLIMIT_FSIZE)

    def __enter__(self) -> None:
        resource.prlimit(self._pid, resource.RLIMIT_FSIZE, (1, self._hard))

    def __exit__(self, *_: object) -> None:
        resource.prlimit(self._pid, resource.RLIMIT_FSIZE, (self._hard, self._hard))


async def test_a_full_disk_refuses_commands_before_they_run_and_loses_none(
    quick: Installation, node: NodeProcess
) -> None:
    before = await quick.owner.run("n-1")
    with DiskFull(node):
        issued = await quick.owner.issue("n-1", count=3, ttl_s=3600)
        detail = await quick.owner.wait_audit(
            "statement.refused", lambda detail: detail["reason"] == "JOURNAL_UNAVAILABLE"
        )
        assert detail["detail"]
        assert len(node.runs()) == 1
        assert (await quick.owner.command(issued.issued[0].command_id)).state == SENT
        assert (await quick.owner.node("n-1")).online

    views = await quick.owner.outcomes(issued.issue_id)

    assert {view.state for view in views} == {SUCCEEDED}
    assert_each_ran_once(node, [view.command_id for view in (*before, *views)])


async def test_a_result_that_finds_the_disk_full_is_not_lost(quick: Installation, node: NodeProcess) -> None:
    assert node.process is not None
    issued = await quick.owner.issue("n-1", action="simulated.work", arguments={"latency_ms": 600_000}, ttl_s=3600)
    await node.wait_started(issued.issued[0].command_id)
    with DiskFull(node):
        await quick.owner.cancel(issued.issued[0].command_id)  # it ends now
        await asyncio.to_thread(node.process.wait_line, "results_not_journaled")
        view = await quick.owner.command(issued.issued[0].command_id)
        assert view.state < SUCCEEDED  # what is not on disk is not told

    (view,) = await quick.owner.outcomes(issued.issue_id)
    (after,) = await quick.owner.run("n-1")

    # How it ended, and what the driver could not do on that disk: write its own log.
    assert (view.state, view.reason) == (command_pb2.COMMAND_STATE_FAILED, "LOG_FAILED")
    assert "ended as CANCELLED" in view.error
    assert after.state == SUCCEEDED
    assert_each_ran_once(node, [view.command_id, after.command_id])


async def test_a_node_killed_on_a_full_disk_starts_where_it_was(quick: Installation, node: NodeProcess) -> None:
    DiskFull(node).__enter__()
    issued = await quick.owner.issue("n-1", count=2, ttl_s=3600)
    await quick.owner.wait_audit("statement.refused")

    await node.kill()
    await node.start()

    views = await quick.owner.outcomes(issued.issue_id)
    assert {view.state for view in views} == {SUCCEEDED}
    assert_each_ran_once(node, [view.command_id for view in views])
