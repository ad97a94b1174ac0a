"""Copied disks and restored images: two machines with one node's state folder never both stay, and nothing runs
twice."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

from fleet.errors import Reason
from fleet.v1.command_pb2 import COMMAND_STATE_INTERRUPTED as INTERRUPTED
from fleet.v1.command_pb2 import COMMAND_STATE_RUNNING as RUNNING
from fleet.v1.command_pb2 import COMMAND_STATE_SUCCEEDED as SUCCEEDED
from tests.integration.installation import Installation, RunningNode
from tests.integration.waiting import eventually


def copy_of(node: RunningNode, installation: Installation, name: str) -> RunningNode:
    """A machine that was made from a copy of the stopped node's disk."""
    clone = RunningNode(installation.folder / name, name, node.clock)
    shutil.rmtree(clone.folder.path)
    shutil.copytree(node.folder.path, clone.folder.path, ignore=shutil.ignore_patterns("*.sock"))
    clone.membership = node.membership
    return clone


def restore(node: RunningNode, image: Path) -> None:
    """Put the whole state folder of a stopped node back to what it was."""
    shutil.rmtree(node.folder.path)
    shutil.copytree(image, node.folder.path)


async def test_a_cloned_disk_is_found_out_and_only_the_adopted_machine_stays(installation: Installation) -> None:
    node = await installation.add_node("n-1")
    await node.stop()
    clone = copy_of(node, installation, "clone")
    for _ in range(2):
        await node.start()
        await node.stop()
    await node.start()

    await clone.start(wait_live=False)
    try:
        assert "another machine" in await clone.wait_refused(Reason.QUARANTINED)
        await node.wait_refused(Reason.QUARANTINED)  # nobody knows which is the right one: both are out
        view = await installation.owner.node("n-1")
        assert (view.state, view.online) == ("QUARANTINED", False)
    finally:
        await clone.stop()

    await installation.owner.adopt("n-1")
    await node.wait_live(2)
    assert (await installation.owner.run("n-1"))[0].state == SUCCEEDED
    await installation.owner.wait_audit("node.ratchet_foreign")
    await installation.owner.wait_audit("node.adopted")


async def test_a_restored_image_runs_nothing_twice_and_its_open_commands_are_unknown(
    installation: Installation,
) -> None:
    node = await installation.add_node("n-1")
    await node.stop()
    image = installation.folder / "image"
    shutil.copytree(node.folder.path, image, ignore=shutil.ignore_patterns("*.sock"))
    await node.start()
    done = await installation.owner.run("n-1", count=3)
    await node.stop()
    await node.start()
    working = await installation.owner.issue("n-1", action="simulated.work", arguments={"latency_ms": 60_000})
    await installation.owner.wait_command(working.issued[0].command_id, lambda view: view.state == RUNNING)
    await node.stop()
    with contextlib.closing(sqlite3.connect(installation.database_file)) as database:
        # As if the machine had died at its work, and not been stopped in order.
        database.execute(
            "UPDATE commands SET state = ?, reason = '' WHERE command_id = ?", (RUNNING, working.issued[0].command_id)
        )
        database.commit()
    restore(node, image)

    await node.start(wait_live=False)
    await node.wait_refused(Reason.QUARANTINED)
    queued = await installation.owner.issue("n-1")
    assert [target.reason for target in queued.refused] == [Reason.QUARANTINED]
    await installation.owner.adopt("n-1")
    await node.wait_live()

    assert node.node is not None
    commands = node.node.commands
    await eventually(lambda: commands.hello().last_accepted_seq == 4, "the floor is raised")
    (unknown,) = await installation.owner.outcomes(working.issue_id)
    assert (unknown.state, unknown.reason) == (INTERRUPTED, "ADOPTED")
    (after,) = await installation.owner.run("n-1")
    assert after.state == SUCCEEDED
    runs = node.runs()
    assert {view.command_id.hex() for view in (*done, after)} <= set(runs)
    assert max(runs.values()) == 1
