"""A copy of a disk holds commands that waited when it was made, and that the original has run since: a machine that
is let in with such a journal runs none of them."""

import shutil

from fleet.errors import Reason
from fleet.v1 import admin_pb2
from fleet.v1.command_pb2 import COMMAND_STATE_INTERRUPTED as INTERRUPTED
from fleet.v1.command_pb2 import COMMAND_STATE_RUNNING as RUNNING
from fleet.v1.command_pb2 import COMMAND_STATE_SUCCEEDED as SUCCEEDED
from tests.integration.audits import agreed
from tests.integration.installation import Installation, RunningNode
from tests.integration.restoring import back_up_node, restore_node


async def stopped_with_one_waiting(installation: Installation) -> tuple[RunningNode, admin_pb2.IssuedCommand]:
    """A node that was stopped while one command ran and another waited behind it, on the same device."""
    node = await installation.add_node("n-1")
    at_work = {"latency_ms": 60_000, "device": "pump"}
    first = await installation.owner.issue("n-1", action="simulated.work", arguments=at_work)
    await installation.owner.wait_command(first.issued[0].command_id, lambda view: view.state == RUNNING)
    second = await installation.owner.issue("n-1", action="simulated.work", arguments={"device": "pump"})
    (waiting,) = second.issued
    await installation.owner.wait_command(waiting.command_id, lambda view: view.accepted_at_ms > 0)
    await node.stop()
    return node, waiting


async def goes_on(installation: Installation, node: RunningNode, waiting: admin_pb2.IssuedCommand) -> None:
    """The original runs what waited, and moves on."""
    await node.start()
    await installation.owner.wait_command(waiting.command_id, lambda view: view.state == SUCCEEDED)
    await agreed(installation, 2)
    await node.stop()
    await node.start()
    await node.stop()


async def test_an_adopted_image_runs_nothing_that_waited_in_it(quick: Installation) -> None:
    node, waiting = await stopped_with_one_waiting(quick)
    image = quick.folder / "image"
    shutil.copytree(node.folder.path, image, ignore=shutil.ignore_patterns("*.sock"))
    await goes_on(quick, node, waiting)
    shutil.rmtree(node.folder.path)
    shutil.copytree(image, node.folder.path)

    await node.start(wait_live=False)
    await node.wait_refused(Reason.QUARANTINED)
    await quick.owner.adopt("n-1")
    await node.wait_live()
    (after,) = await quick.owner.run("n-1", action="simulated.work", arguments={"device": "pump"})

    assert after.state == SUCCEEDED
    assert max(node.runs().values()) == 1
    assert (await quick.owner.command(waiting.command_id)).state == SUCCEEDED, "what the original told stands"
    _, between = await agreed(quick, 3)
    assert not between.broken


async def test_a_restored_backup_runs_nothing_that_waited_in_it(quick: Installation) -> None:
    """Its original told nobody that it ran it: the machine was lost within the second, and nothing else shows it."""
    node, waiting = await stopped_with_one_waiting(quick)
    archive = quick.folder / "n-1.backup"
    back_up_node(node, archive)
    run_log = node.run_log.read_text()
    restore_node(node, archive)

    await node.start()
    told = await quick.owner.wait_command(waiting.command_id, lambda view: view.finished_at_ms > 0)

    assert (told.state, told.reason) == (INTERRUPTED, "NODE_RESTORED")
    assert node.run_log.read_text() == run_log
    (after,) = await quick.owner.run("n-1", action="simulated.work", arguments={"device": "pump"})
    assert after.state == SUCCEEDED
