"""Fault: the connection is cut, before send, after send, after accept, during run, after run, before ack.

Must hold: each command ran at most once, its state converges, and the operator sees it.
"""

import asyncio
import json
import random
from collections import Counter
from functools import partial

import pytest

from fleet.v1 import command_pb2
from tests.fakes.process import Processes
from tests.fakes.proxy import Direction, FaultProxy
from tests.integration.installation import Installation, RunningNode, assert_each_ran_once
from tests.integration.processes import NodeProcess
from tests.integration.waiting import eventually

QUEUED = command_pb2.COMMAND_STATE_QUEUED
SENT = command_pb2.COMMAND_STATE_SENT
RUNNING = command_pb2.COMMAND_STATE_RUNNING
SUCCEEDED = command_pb2.COMMAND_STATE_SUCCEEDED
INTERRUPTED = command_pb2.COMMAND_STATE_INTERRUPTED


@pytest.fixture
async def proxy(installation: Installation) -> FaultProxy:
    """The network between nodes and gateway."""
    return await installation.proxy()


@pytest.fixture
async def node(installation: Installation, proxy: FaultProxy) -> RunningNode:
    """A live node behind the proxy."""
    return await installation.add_node("n-1", endpoints=(proxy.address,))


def more_than(node: RunningNode, seen: int) -> bool:
    """Whether the node ran more than `seen` commands."""
    return len(node.runs()) > seen


async def converged(installation: Installation, node: RunningNode, issue_id: str) -> None:
    """Everything succeeded, once."""
    views = await installation.owner.outcomes(issue_id)
    assert {view.state for view in views} == {SUCCEEDED}
    assert_each_ran_once(node, [view.command_id for view in views])


async def test_cut_before_send(installation: Installation, proxy: FaultProxy, node: RunningNode) -> None:
    proxy.refuse()
    proxy.cut()
    await installation.owner.wait_node("n-1", lambda view: not view.online)
    issued = await installation.owner.issue("n-1", count=3)
    assert (await installation.owner.command(issued.issued[0].command_id)).state == QUEUED

    proxy.heal()

    await converged(installation, node, issued.issue_id)


async def test_cut_after_send(installation: Installation, proxy: FaultProxy, node: RunningNode) -> None:
    proxy.hold(Direction.DOWN)
    issued = await installation.owner.issue("n-1", count=3)
    await installation.owner.wait_command(issued.issued[0].command_id, lambda view: view.state == SENT)
    assert not node.runs()

    proxy.cut()
    proxy.heal()

    await converged(installation, node, issued.issue_id)


async def test_cut_after_accept(installation: Installation, proxy: FaultProxy, node: RunningNode) -> None:
    proxy.hold(Direction.UP)
    work = {"latency_ms": 300}
    issued = await installation.owner.issue("n-1", action="simulated.work", arguments=work)
    await eventually(node.runs, "the node accepted and runs")
    assert (await installation.owner.command(issued.issued[0].command_id)).state == SENT

    proxy.cut()
    proxy.heal()

    await converged(installation, node, issued.issue_id)


async def test_cut_during_run(installation: Installation, proxy: FaultProxy, node: RunningNode) -> None:
    issued = await installation.owner.issue("n-1", action="simulated.work", arguments={"latency_ms": 300})
    await installation.owner.wait_command(issued.issued[0].command_id, lambda view: view.state == RUNNING)

    proxy.cut()

    await converged(installation, node, issued.issue_id)
    assert node.link.streams_opened == 2


async def test_cut_after_run(installation: Installation, proxy: FaultProxy, node: RunningNode) -> None:
    proxy.hold(Direction.UP)
    issued = await installation.owner.issue("n-1", count=3)
    await eventually(lambda: node.ended() == 3, "all three ran")

    proxy.cut()
    proxy.heal()

    await converged(installation, node, issued.issue_id)


async def test_cut_before_ack(installation: Installation, proxy: FaultProxy, node: RunningNode) -> None:
    issued = await installation.owner.issue("n-1", action="simulated.work", arguments={"latency_ms": 100})
    command_id = issued.issued[0].command_id
    await installation.owner.wait_command(command_id, lambda view: view.state == RUNNING)
    proxy.hold(Direction.DOWN)
    await installation.owner.wait_command(command_id, lambda view: view.state == SUCCEEDED)

    proxy.cut()
    proxy.heal()
    await node.wait_live(streams=2)

    await converged(installation, node, issued.issue_id)
    results = [json.loads(row.detail) for row in await installation.owner.audit("command.reported")]
    assert sum("SUCCEEDED" in str(detail) for detail in results) == 1  # recorded once, whatever came twice


@pytest.mark.parametrize("direction", list(Direction))
async def test_cut_in_the_middle_of_any_frame(
    installation: Installation, proxy: FaultProxy, node: RunningNode, direction: Direction
) -> None:
    chance = random.Random(direction.value)
    issues: list[str] = []
    for _ in range(8):
        (connection,) = proxy.connections
        torn_at = connection.forwarded_bytes(direction) + chance.randrange(20, 4000)
        connection.cut_after(direction, torn_at)
        issues.append((await installation.owner.issue("n-1", count=25)).issue_id)
        await connection.wait_closed()
        await eventually(lambda: len(proxy.connections) == 1, "the node came back")

    views = [view for issue_id in issues for view in await installation.owner.outcomes(issue_id)]
    assert {view.state for view in views} == {SUCCEEDED}
    assert_each_ran_once(node, [view.command_id for view in views])
    assert [view.monotonic_seq for view in views] == list(range(1, 201))


async def test_a_network_that_is_cut_all_the_time(installation: Installation, proxy: FaultProxy) -> None:
    nodes = [await installation.add_node(f"n-{number}", endpoints=(proxy.address,)) for number in range(3)]
    chance = random.Random(11)
    issues: list[str] = []
    for _ in range(15):
        issues.append((await installation.owner.issue("*", count=10)).issue_id)
        connection = chance.choice(proxy.connections) if proxy.connections else None
        if connection is not None:
            connection.cut()
        await asyncio.sleep(0)

    views = [view for issue_id in issues for view in await installation.owner.outcomes(issue_id)]
    assert {view.state for view in views} == {SUCCEEDED}
    for each in nodes:
        assert_each_ran_once(each, [view.command_id for view in views if view.node_id == each.node_id])


# -- the node is killed at the same moments ---------------------------------------------------------------------------
@pytest.fixture
async def killable(installation: Installation, proxy: FaultProxy, processes: Processes) -> NodeProcess:
    """A live node with a process of its own, behind the proxy."""
    enrolled = await installation.enroll("n-1", endpoints=(proxy.address,))
    killable = NodeProcess(enrolled, processes)
    installation.nodes["n-1"] = killable
    await killable.start()
    return killable


async def test_node_killed_while_a_statement_is_on_its_way(
    installation: Installation, proxy: FaultProxy, killable: NodeProcess
) -> None:
    proxy.hold(Direction.DOWN)
    issued = await installation.owner.issue("n-1", count=3)
    await installation.owner.wait_command(issued.issued[2].command_id, lambda view: view.state == SENT)

    await killable.kill()
    proxy.heal()
    await killable.start()

    await converged(installation, killable, issued.issue_id)


async def test_node_killed_during_a_run_says_that_nobody_knows(
    installation: Installation, killable: NodeProcess
) -> None:
    work = {"latency_ms": 60_000, "device": "press"}
    issued = await installation.owner.issue("n-1", action="simulated.work", arguments=work)
    after = await installation.owner.issue("n-1", action="simulated.work", arguments={"device": "press"})
    await installation.owner.wait_command(issued.issued[0].command_id, lambda view: view.state == RUNNING)

    await killable.kill()
    await killable.start()

    (unknown,) = await installation.owner.outcomes(issued.issue_id)
    (done,) = await installation.owner.outcomes(after.issue_id)
    assert unknown.state == INTERRUPTED
    assert "nobody can know" in unknown.error
    assert done.state == SUCCEEDED  # it was accepted and had not started: it runs now
    assert_each_ran_once(killable, [unknown.command_id, done.command_id])


async def test_node_killed_after_a_run_reports_what_it_knows(
    installation: Installation, proxy: FaultProxy, killable: NodeProcess
) -> None:
    proxy.hold(Direction.UP)
    issued = await installation.owner.issue("n-1", count=3)
    await eventually(lambda: killable.ended() == 3, "all three ran")

    await killable.kill()
    proxy.heal()
    await killable.start()

    views = await installation.owner.outcomes(issued.issue_id)
    # The driver's log is ahead of the journal by a moment: there the truth is "unknown", never a second run.
    assert {view.state for view in views} <= {SUCCEEDED, INTERRUPTED}
    assert_each_ran_once(killable, [view.command_id for view in views])


async def test_node_killed_again_and_again_under_a_steady_stream(
    installation: Installation, killable: NodeProcess
) -> None:
    chance = random.Random(3)
    issues: list[str] = []
    for _ in range(4):
        seen = len(killable.runs())
        issues += [(await installation.owner.issue("n-1", count=8)).issue_id for _ in range(5)]
        await eventually(partial(more_than, killable, seen), "some of it runs")
        for _ in range(chance.randrange(20)):
            await asyncio.sleep(0)
        await killable.kill()
        await killable.start()

    views = [view for issue_id in issues for view in await installation.owner.outcomes(issue_id)]
    states = Counter(view.state for view in views)
    assert set(states) <= {SUCCEEDED, INTERRUPTED}
    assert states[SUCCEEDED] + states[INTERRUPTED] == 160
    assert max(killable.runs().values()) == 1
    ran = set(killable.runs())
    assert all(view.command_id.hex() in ran for view in views if view.state == SUCCEEDED)
