"""Copied disks and restored images: two machines with one node's state folder never both stay, and nothing runs
twice."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

from fleet.errors import Reason
from fleet.node_audit import NodeAuditKind, writer_of
from fleet.v1 import admin_pb2
from fleet.v1.command_pb2 import COMMAND_STATE_INTERRUPTED as INTERRUPTED
from fleet.v1.command_pb2 import COMMAND_STATE_RUNNING as RUNNING
from fleet.v1.command_pb2 import COMMAND_STATE_SUCCEEDED as SUCCEEDED
from fleet_node.app import Node
from fleet_node.commands.audit_log import KEEP_ROWS
from fleet_node.commands.opening import copy_journal
from tests.faults.test_database import copied, restored
from tests.integration.audits import agreed, verify
from tests.integration.installation import Installation, RunningNode
from tests.integration.restoring import back_up_node, note_database_restored, restore_node
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


async def test_a_cloned_disk_is_found_out_and_only_the_adopted_machine_stays(quick: Installation) -> None:
    node = await quick.add_node("n-1")
    await node.stop()
    clone = copy_of(node, quick, "clone")
    for _ in range(2):
        await node.start()
        await node.stop()
    await node.start()

    await clone.start(wait_live=False)
    try:
        assert "another machine" in await clone.wait_refused(Reason.QUARANTINED)
        await node.wait_refused(Reason.QUARANTINED)  # nobody knows which is the right one: both are out
        view = await quick.owner.node("n-1")
        assert (view.state, view.online) == ("QUARANTINED", False)
    finally:
        await clone.stop()

    await quick.owner.adopt("n-1")
    await node.wait_live(2)
    assert (await quick.owner.run("n-1"))[0].state == SUCCEEDED
    await quick.owner.wait_audit("node.ratchet_foreign")
    await quick.owner.wait_audit("node.adopted")
    begun = await quick.owner.wait_audit("chain.begun")
    assert (begun["reason"], begun["continues"]["number"]) == ("ADOPTED", begun["held"]["number"])
    _, between = await agreed(quick, 1)
    assert [(chain.chain, chain.beyond) for chain in between.chains] == [(1, 0)]
    assert not between.broken


async def test_a_restored_image_runs_nothing_twice_and_its_open_commands_are_unknown(quick: Installation) -> None:
    node = await quick.add_node("n-1")
    await node.stop()
    image = quick.folder / "image"
    shutil.copytree(node.folder.path, image, ignore=shutil.ignore_patterns("*.sock"))
    await node.start()
    done = await quick.owner.run("n-1", count=3)
    await agreed(quick, 3)
    await node.stop()
    await node.start()
    working = await quick.owner.issue("n-1", action="simulated.work", arguments={"latency_ms": 600_000})
    await quick.owner.wait_command(working.issued[0].command_id, lambda view: view.state == RUNNING)
    await node.stop()
    with contextlib.closing(sqlite3.connect(quick.database_file)) as database:
        # As if the machine had died at its work, and not been stopped in order.
        database.execute(
            "UPDATE commands SET state = ?, reason = '' WHERE command_id = ?", (RUNNING, working.issued[0].command_id)
        )
        database.commit()
    restore(node, image)

    await node.start(wait_live=False)
    await node.wait_refused(Reason.QUARANTINED)
    queued = await quick.owner.issue("n-1")
    assert [target.reason for target in queued.refused] == [Reason.QUARANTINED]
    await quick.owner.adopt("n-1")
    await node.wait_live()

    assert node.node is not None
    commands = node.node.commands
    await eventually(lambda: commands.hello().last_accepted_seq == 4, "the floor is raised")
    (unknown,) = await quick.owner.outcomes(working.issue_id)
    assert (unknown.state, unknown.reason) == (INTERRUPTED, "ADOPTED")
    (after,) = await quick.owner.run("n-1")
    assert after.state == SUCCEEDED
    runs = node.runs()
    assert {view.command_id.hex() for view in (*done, after)} <= set(runs)
    assert max(runs.values()) == 1

    _, between = await agreed(quick, 4)
    (chain,) = between.chains
    assert (chain.node_id, chain.chain, chain.continues, between.broken) == (node.node_id, 1, 0, ())
    assert chain.beyond > 0, "what the machine wrote that is gone stays"
    shown = await quick.owner.ask("GetNode", admin_pb2.GetNodeRequest(node="n-1"))
    assert (shown.audit.chain, shown.audit.finding) == (1, "")


async def test_a_node_restored_from_a_backup_says_so_in_a_chain_of_its_own(quick: Installation) -> None:
    node = await quick.add_node("n-1")
    await quick.owner.run("n-1", count=2)
    await node.stop()
    archive = quick.folder / "n-1.backup"
    back_up_node(node, archive)
    for _ in range(2):
        await node.start()
        await quick.owner.run("n-1")
        await node.stop()
    await node.start()
    await agreed(quick, 4)
    await node.stop()
    restore_node(node, archive)

    await node.start(wait_live=False)
    await node.wait_refused(Reason.QUARANTINED)
    await quick.owner.adopt("n-1")
    await node.wait_live()
    await quick.owner.run("n-1")

    _, between = await agreed(quick, 5)
    assert [(chain.reason, chain.beyond > 0) for chain in between.chains] == [("RESTORED", True)]
    assert (await quick.owner.wait_audit("journal.restored"))["made_at_ms"] > 0
    assert (between.broken, between.lost) == ((), 0)


async def test_a_disk_that_went_back_within_one_stream_is_found_by_its_audit(quick: Installation) -> None:
    """The ratchet moves with each stream; what was copied while one lives is as good as the original, to it."""
    node = await quick.add_node("n-1")
    await quick.owner.run("n-1")
    await node.stop()
    journal = quick.folder / "copied.db"
    copy_journal(node.folder.journal, node.node_id, journal)
    await node.start()
    await quick.owner.run("n-1")
    await agreed(quick, 2)
    await node.stop()
    shutil.copyfile(journal, node.folder.journal)  # its ratchet is the newest

    await node.start(wait_live=False)
    assert "lacks audit rows" in await node.wait_refused(Reason.QUARANTINED)
    await quick.owner.adopt("n-1")
    await node.wait_live()
    await quick.owner.run("n-1")

    _, between = await agreed(quick, 3)
    assert [(chain.chain, chain.beyond > 0) for chain in between.chains] == [(1, True)]
    assert not between.broken


async def test_a_fork_that_only_its_rows_show_is_adopted_while_it_runs(quick: Installation) -> None:
    node = await quick.add_node("n-1")
    await quick.owner.run("n-1", count=2)
    await agreed(quick, 2)
    await node.stop()
    with contextlib.closing(sqlite3.connect(node.folder.journal)) as database:
        database.execute("UPDATE audit SET hash = zeroblob(32)")
        database.execute("UPDATE audit_state SET hash = zeroblob(32), acked_number = 0")
        database.commit()
    await node.start()
    await quick.owner.wait_audit("node.audit_broken")

    await quick.owner.adopt("n-1")
    await node.wait_live(2)
    await quick.owner.run("n-1")

    async def healed() -> bool:
        shown = await quick.owner.ask("GetNode", admin_pb2.GetNodeRequest(node="n-1"))
        return (shown.audit.chain, shown.audit.finding) == (1, "")

    await eventually(healed, "it goes on in another chain")
    _, between = await agreed(quick, 3)
    assert between.broken == (node.node_id,), "what was found stays"


async def test_what_a_restored_database_lost_of_a_nodes_audit_is_brought_again(quick: Installation) -> None:
    node = await quick.add_node("n-1")
    await quick.owner.run("n-1", count=2)
    await agreed(quick, 2)
    copy = await copied(quick)
    await quick.owner.run("n-1")
    await agreed(quick, 3)
    before = await rows_of(quick, node)
    await restored(quick, copy, start=False)
    await note_database_restored(quick, "the disk failed")

    await quick.start_server()
    await node.wait_live(2)
    begun = await quick.owner.wait_audit("chain.begun")

    after = await rows_of(quick, node)
    assert after[: len(before)] == before
    assert begun["continues"]["number"] >= len(before), "all of it was brought again, in its own chain"
    shown = await quick.owner.ask("GetNode", admin_pb2.GetNodeRequest(node="n-1"))
    assert (shown.audit.chain, shown.audit.finding) == (1, "")


async def test_a_busy_node_goes_on_after_a_restore_though_it_has_forgotten_rows_that_the_database_lost(
    quick: Installation,
) -> None:
    node = await quick.add_node("n-1")
    await quick.owner.run("n-1", count=2)
    await agreed(quick, 2)
    held = len(await rows_of(quick, node))
    copy = await copied(quick)
    for number in range(KEEP_ROWS + 100):
        live(node).commands.audit(NodeAuditKind.DRAIN_ENDED, number=number)
    await quick.owner.run("n-1")
    await agreed(quick, 3)
    live(node).commands.audit(NodeAuditKind.DRAIN_ENDED)  # with it goes what was acknowledged
    oldest = await eventually(lambda: first_row_left(node, above=held + 1), "the node forgets rows")
    await restored(quick, copy, start=False)
    await note_database_restored(quick, "the disk failed")

    await quick.start_server()
    await node.wait_live(2)
    begun = await quick.owner.wait_audit("chain.begun")

    assert begun["continues"]["number"] in range(held, oldest - 1), "what lies between is gone"
    await quick.owner.run("n-1")
    _, between = await agreed(quick, 3)
    assert between.broken == ()
    shown = await quick.owner.ask("GetNode", admin_pb2.GetNodeRequest(node="n-1"))
    assert (shown.audit.chain, shown.audit.finding) == (1, "")
    assert shown.audit.rows >= KEEP_ROWS


def live(node: RunningNode) -> Node:
    """The node that runs."""
    assert node.node is not None
    return node.node


async def first_row_left(node: RunningNode, *, above: int) -> int:
    """Number of the oldest row that the node has, once that is above another one; else 0."""
    rows = await live(node)._journal.query(lambda store: store.audit.after(0))
    return rows[0].number if rows[0].number > above else 0


async def rows_of(installation: Installation, node: RunningNode) -> list[bytes]:
    """Hashes of the node's first chain."""
    return [row.hash for row in await installation.owner.audit() if row.writer == writer_of(node.node_id)]


async def test_a_machine_that_nobody_adopted_cannot_begin_its_history_anew(quick: Installation) -> None:
    node = await quick.add_node("n-1")
    await quick.owner.run("n-1", count=2)
    await agreed(quick, 2)
    await node.stop()
    with contextlib.closing(sqlite3.connect(node.folder.path / "journal.db")) as database:
        database.execute("DELETE FROM audit")
        database.execute("UPDATE audit_state SET number = 0, hash = x'', acked_number = 0, chain = 1, next_chain = 1")
        database.commit()

    await node.start()

    detail = await quick.owner.wait_audit("node.audit_broken")
    assert detail["detail"] == "chain 1 was not opened for this node"
    summary, between = await verify(quick)
    assert (between.commands, between.broken, between.chains) == (2, (node.node_id,), ())
    assert summary.writers == 4, "the rows of its only chain stand"
