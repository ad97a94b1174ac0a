"""Fault: a cancel races with signing, with accept, with run.

Must hold: one truth on both sides. CANCELLED before it started means that the driver never saw it.
"""

import asyncio
import random

from fleet.v1 import command_pb2
from tests.fakes.proxy import Direction
from tests.fakes.rogue import RogueGateway, command
from tests.integration.audits import verify
from tests.integration.installation import Installation, RunningNode
from tests.integration.waiting import eventually

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
    told = [view for view in views if view.reason != "CANCELLED_BEFORE_SENDING"]

    async def both_tell_them() -> bool:
        _, between = await verify(installation)
        return (between.commands, between.awaited) == (len(told), 0)

    await eventually(both_tell_them, "both audits tell each command alike")


async def test_a_cancel_that_comes_before_its_statement_keeps_it_from_ever_running(installation: Installation) -> None:
    """Turned round on the way: the node buries what has not arrived, and remembers that over a restart."""
    async with RogueGateway(installation.stolen()) as rogue:
        node = await installation.add_node("n-1", endpoints=(rogue.endpoint,))
        stream, order = await rogue.wait_stream(), command("simulated.noop", 1)
        stream.send_cancel(order)
        answer = await stream.wait_control("cancel_result")
        assert answer.outcome == command_pb2.CANCEL_OUTCOME_TOMBSTONED
        await node.stop()
        await node.start()
        later = await rogue.wait_stream(2)

        later.send_statement([order])

        assert (await later.wait_report(order)).state == CANCELLED
        other = command("simulated.noop", 2)
        later.send_statement([other])
        assert (await later.wait_report(other)).state == SUCCEEDED
        assert node.runs() == {other.command_id.hex(): 1}


async def test_a_cancel_of_a_statement_that_never_arrived_has_one_truth(installation: Installation) -> None:
    """Both come over the next stream."""
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
            # It may have been answered by now, and its end not be reported yet.
            assert view.state in (RUNNING, CANCELLED)
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
