"""Fault: the server is killed with SIGKILL right before, or right after, commits of what it does.

Before one commit and after the one that went before it the database is the same. So the server dies before the first,
third, fifth… commit and after them, and each state that it can leave behind is met once.

Must hold: whoever asked and got no answer asks again, and it was done once: a command runs once and its seq is used
once, a cancel counts, a stream is claimed, a node is enrolled.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from fleet.identity import load_node_keys
from fleet.v1 import admin_pb2, command_pb2
from tests.fakes.process import Processes
from tests.faults.mortal_server import EDGES, MortalServer
from tests.integration.clock import QuickClock
from tests.integration.installation import RunningNode, Template, assert_each_ran_once
from tests.integration.waiting import eventually

SUCCEEDED = command_pb2.COMMAND_STATE_SUCCEEDED
CANCELLED = command_pb2.COMMAND_STATE_CANCELLED
RUNNING = command_pb2.COMMAND_STATE_RUNNING


@pytest.fixture
async def mortal(tmp_path: Path, template: Template, processes: Processes) -> AsyncIterator[MortalServer]:
    """A server that can be armed; its nodes live in this process."""
    async with MortalServer(tmp_path, template, processes) as running:
        yield running


async def killed_at_every_commit(
    mortal: MortalServer, edge: str, prepare: Callable[[int], Awaitable[None]], act: Callable[[int], Awaitable[None]]
) -> int:
    """Do it again and again, each time with the server dying two commits later, until it is done before that comes.

    Args:
        prepare: brings about what `act` starts from; gets the number of the round, from 1.
        act: what is done, and waited for to its end over the death of the server.

    Returns:
        How many commits it has, or one more.
    """
    for number in itertools.count(1):
        await prepare(number)
        mortal.arm(edge, 2 * number - 1)
        acting, dying = asyncio.create_task(act(number)), asyncio.create_task(mortal.wait_dead())
        await asyncio.wait({acting, dying}, return_when=asyncio.FIRST_COMPLETED)
        if acting.done() and not dying.done():
            mortal.disarm()
            acting.result()
            # A commit of its own accord may have reached the edge just before: it is dead either way, then runs again.
            await mortal.crash_server()
            await asyncio.wait({dying})
            await mortal.start_server()
            return 2 * number - 2
        await dying
        await mortal.start_server()
        await acting
    raise AssertionError("unreachable")


@pytest.mark.parametrize("edge", EDGES)
async def test_a_command(mortal: MortalServer, edge: str) -> None:
    (node,) = await mortal.add_nodes(1)
    commands: list[bytes] = []

    async def idle(number: int) -> None:
        await node.wait_live(number)  # a new stream after each death
        commands.extend(view.command_id for view in await mortal.owner.run("*"))

    async def order(number: int) -> None:
        answer = await mortal.insist("*", key=f"{edge}-{number}")
        (view,) = await mortal.outcome_views(answer.issue_id)
        assert view.state == SUCCEEDED
        commands.append(view.command_id)

    assert await killed_at_every_commit(mortal, edge, idle, order) >= 3  # issue, claim, report
    assert_each_ran_once(node, commands)
    assert (await mortal.owner.node(node.name)).last_seq == len(set(commands)) == len(commands)


@pytest.mark.parametrize("edge", EDGES)
async def test_a_cancel(mortal: MortalServer, edge: str) -> None:
    (node,) = await mortal.add_nodes(1)
    issued: list[admin_pb2.IssueCommandsResponse] = []

    async def work(number: int) -> None:
        await node.wait_live(number)
        issued.append(await mortal.owner.issue("*", action="simulated.work", arguments={"latency_ms": 600_000}))
        await mortal.owner.wait_command(issued[-1].issued[0].command_id, lambda view: view.state == RUNNING)

    async def cancel(number: int) -> None:
        command_id = issued[-1].issued[0].command_id
        await eventually(lambda: mortal.owner.cancel(command_id), "the cancel is asked for")
        (view,) = await mortal.outcome_views(issued[-1].issue_id)
        assert view.state == CANCELLED

    assert await killed_at_every_commit(mortal, edge, work, cancel) >= 2  # asked for, reported
    assert_each_ran_once(node, [each.issued[0].command_id for each in issued])


@pytest.mark.parametrize("edge", EDGES)
async def test_a_stream(mortal: MortalServer, edge: str) -> None:
    node = await mortal.add_node("n-1")
    epochs: list[int] = []

    async def absent(number: int) -> None:
        (view,) = await mortal.owner.run("n-1")  # the stream before it works
        assert view.state == SUCCEEDED
        epochs.append(node.link.stream_epoch)
        await node.stop()
        await mortal.owner.wait_node("n-1", lambda view: not view.online)

    async def connect(number: int) -> None:
        await node.start()

    assert await killed_at_every_commit(mortal, edge, absent, connect) >= 2  # the session, the claim
    assert epochs == sorted(set(epochs))
    assert set(node.runs().values()) == {1}


@pytest.mark.parametrize("edge", EDGES)
async def test_an_enrollment(mortal: MortalServer, edge: str) -> None:
    token = await mortal.join_token()
    newcomers: list[RunningNode] = []

    async def newcomer(number: int) -> None:
        folder = mortal.folder / f"new-{number}"
        # Its own quick time: it waits a second before it asks again.
        newcomers.append(RunningNode(folder, folder.name, QuickClock(speed=20), endpoints=(mortal.gateway,)))

    async def join(number: int) -> None:
        await newcomers[-1].enroll(token)

    assert await killed_at_every_commit(mortal, edge, newcomer, join) >= 1
    listed = await mortal.owner.ask("ListNodes", admin_pb2.ListNodesRequest())
    assert sorted(node.node_id for node in listed.nodes) == sorted(node.node_id for node in newcomers)
    (joined,) = (await mortal.owner.ask("ListJoinTokens", admin_pb2.ListJoinTokensRequest())).join_tokens
    assert joined.uses == len(newcomers)


@pytest.mark.parametrize("edge", EDGES)
async def test_a_rotation_of_all_credentials(mortal: MortalServer, edge: str) -> None:
    node = await mortal.add_node("n-1")
    commands: list[bytes] = []

    async def ready(number: int) -> None:
        await mortal.owner.wait_node("n-1", lambda view: view.online and not view.rotating)
        (view,) = await mortal.owner.run("n-1")
        assert view.state == SUCCEEDED
        commands.append(view.command_id)

    async def rotate(number: int) -> None:
        former = load_node_keys(node.folder.path).fingerprint
        selector = admin_pb2.Selector(patterns=["n-1"])
        request = admin_pb2.RotateNodesRequest(selector=selector, api_key=True, identity=True, sealing=True)
        await eventually(lambda: mortal.owner.ask("RotateNodes", request), "the rotation is ordered")
        await mortal.owner.wait_node(
            "n-1", lambda view: view.online and not view.rotating and view.fingerprint != former
        )
        await eventually(lambda: not node.folder.rotation.exists(), "the node has settled")

    assert await killed_at_every_commit(mortal, edge, ready, rotate) >= 4  # order, keys, session, stream
    assert_each_ran_once(node, commands)


@pytest.mark.parametrize("edge", EDGES)
async def test_a_step_of_the_tls_ca(mortal: MortalServer, edge: str) -> None:
    (node,) = await mortal.add_nodes(1)
    made: list[bytes] = []

    async def listed() -> admin_pb2.ListTlsCasResponse:
        return await mortal.owner.ask("ListTlsCas", admin_pb2.ListTlsCasRequest())

    async def complete() -> bool:
        return [far.complete for far in (await listed()).rollouts][-1:] == [True]

    async def prepared(number: int) -> None:
        await node.wait_live(number)
        for ca in (await listed()).cas:
            if ca.phase == admin_pb2.TLS_CA_PHASE_OUTGOING:
                await eventually(complete, "the node trusts the one of now")
                await mortal.owner.ask("RetireTlsCa", admin_pb2.RetireTlsCaRequest(ca=ca.sha256.hex()))
        made.append((await mortal.owner.ask("PrepareTlsCa", admin_pb2.PrepareTlsCaRequest())).ca.sha256)
        await eventually(complete, "the node trusts the next one")
        mortal.log_in()  # this operator trusts both

    async def activate(number: int) -> None:
        request = admin_pb2.ActivateTlsCaRequest(ca=made[-1].hex())
        await eventually(lambda: mortal.owner.ask("ActivateTlsCa", request), "an answer")

    assert await killed_at_every_commit(mortal, edge, prepared, activate) >= 1
    assert {ca.sha256: ca.phase for ca in (await listed()).cas}[made[-1]] == admin_pb2.TLS_CA_PHASE_ACTIVE
    activated = [row.subject for row in await mortal.owner.audit("tls_ca.activated")]
    assert activated == [sha256.hex() for sha256 in made], "each of them once"
    (view,) = await mortal.owner.run("*")
    assert view.state == SUCCEEDED
