"""Fault: a cancel races with signing, with accept, with run.

Must hold: one truth on both sides. CANCELLED before it started means that the driver never saw it.
"""

import asyncio
import random

from fleet.v1 import command_pb2
from tests.fakes.proxy import Direction
from tests.integration.installation import Installation, RunningNode

SENT = command_pb2.COMMAND_STATE_SENT
RUNNING = command_pb2.COMMAND_STATE_RUNNING
SUCCEEDED = command_pb2.COMMAND_STATE_SUCCEEDED
CANCELLED = command_pb2.COMMAND_STATE_CANCELLED
BEFORE_IT_RAN = {"CANCELLED_BEFORE_SENDING", "CANCELLED_BEFORE_ACCEPTING", "CANCELLED_BEFORE_STARTING"}


def one_truth(node: RunningNode, command_id: bytes, state: int, reason: str) -> None:
    """What the operator reads is what the driver saw."""
    ran = node.runs()[command_id.hex()]
    if state == SUCCEEDED:
        assert ran == 1
    else:
        assert state == CANCELLED
        assert ran == (0 if reason in BEFORE_IT_RAN else 1) or (ran == 0 and reason == "CANCELLED"), (ran, reason)


async def test_cancels_that_race_with_everything(installation: Installation) -> None:
    node = await installation.add_node("n-1", concurrency=2)
    chance = random.Random(17)
    issues: list[str] = []

    async def race() -> None:
        work = {"latency_ms": chance.choice([0, 0, 5, 20])}
        issued = await installation.owner.issue("n-1", action="simulated.work", arguments=work)
        issues.append(issued.issue_id)
        for _ in range(chance.randrange(60)):
            await asyncio.sleep(0)
        await installation.owner.cancel(issued.issued[0].command_id)

    for _ in range(8):
        await asyncio.gather(*(race() for _ in range(6)))

    views = [view for issue_id in issues for view in await installation.owner.outcomes(issue_id)]
    assert len(views) == 48
    for view in views:
        one_truth(node, view.command_id, view.state, view.reason)
    assert CANCELLED in {view.state for view in views}
    for view in views:
        after = await installation.owner.wait_command(view.command_id, lambda view: not view.cancel_requested)
        assert after.state == view.state


async def test_a_cancel_that_overtakes_its_statement_leaves_a_tombstone(installation: Installation) -> None:
    """The statement was signed and never arrived; the cancel comes over the next stream."""
    proxy = await installation.proxy()
    node = await installation.add_node("n-1", endpoints=(proxy.address,))
    proxy.hold(Direction.DOWN)
    issued = await installation.owner.issue("n-1")
    command_id = issued.issued[0].command_id
    await installation.owner.wait_command(command_id, lambda view: view.state == SENT)

    (asked,) = await installation.owner.cancel(command_id)
    assert (asked.state, asked.cancel_requested) == (SENT, True)  # never CANCELLED for what may run
    proxy.cut()
    proxy.heal()

    (view,) = await installation.owner.outcomes(issued.issue_id)
    one_truth(node, command_id, view.state, view.reason)


async def test_a_cancel_is_repeated_until_it_is_answered(installation: Installation) -> None:
    proxy = await installation.proxy()
    node = await installation.add_node("n-1", endpoints=(proxy.address,))
    issued = await installation.owner.issue("n-1", action="simulated.work", arguments={"latency_ms": 60_000})
    command_id = issued.issued[0].command_id
    await installation.owner.wait_command(command_id, lambda view: view.state == RUNNING)
    for streams in (2, 3):
        proxy.hold()
        await installation.owner.cancel(command_id)
        proxy.cut()
        if streams == 2:
            proxy.heal()
            await node.wait_live(streams)
            view = await installation.owner.command(command_id)
            assert view.cancel_requested or view.state == CANCELLED
    proxy.heal()

    (view,) = await installation.owner.outcomes(issued.issue_id)
    assert view.state == CANCELLED
    assert node.runs()[command_id.hex()] == 1


async def test_a_cancel_asked_for_before_a_server_restart_still_counts(installation: Installation) -> None:
    proxy = await installation.proxy()
    node = await installation.add_node("n-1", endpoints=(proxy.address,))
    issued = await installation.owner.issue("n-1", action="simulated.work", arguments={"latency_ms": 60_000})
    command_id = issued.issued[0].command_id
    await installation.owner.wait_command(command_id, lambda view: view.state == RUNNING)
    proxy.refuse()
    proxy.cut()
    await installation.owner.cancel(command_id)

    await installation.crash_server()
    await installation.start_server()
    assert (await installation.owner.command(command_id)).cancel_requested
    proxy.heal()

    (view,) = await installation.owner.outcomes(issued.issue_id)
    assert view.state == CANCELLED
    assert node.runs()[command_id.hex()] == 1
