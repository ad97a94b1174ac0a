"""Audits of nodes, end to end: both sides agree, what was missed is made up for, and whoever alters it is found out."""

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from fleet.audit_chain import row_hash
from fleet.audit_findings import AuditFinding
from fleet.identity import show_fingerprint
from fleet.node_audit import NodeAuditKind, writer_of
from fleet.node_signatures import SIGN_EVERY_S, NodeSignatures
from fleet.v1 import admin_pb2, command_pb2
from tests.integration.audits import agreed, verify
from tests.integration.installation import Installation
from tests.integration.restoring import note_database_restored
from tests.integration.waiting import eventually

SUCCEEDED = command_pb2.COMMAND_STATE_SUCCEEDED


async def test_nodes_and_server_tell_the_same(quick: Installation) -> None:
    await quick.add_nodes(2)
    await quick.owner.run("*", count=20)

    summary, between = await agreed(quick, 40)

    assert summary.writers == 5, "both nodes, the replica, the one that made the installation, and what was spent"
    assert (between.nodes, between.commands, between.awaited, between.broken) == (2, 40, 0, ())
    shown = await quick.owner.ask("GetNode", admin_pb2.GetNodeRequest(node="n-1"))
    assert shown.audit.rows > 0
    assert not shown.audit.finding


async def test_what_a_node_did_while_it_was_cut_off_is_made_up_for(quick: Installation) -> None:
    node = await quick.add_node("n-1")
    issued = await quick.owner.issue("n-1", action="simulated.work", arguments={"latency_ms": 200}, count=3)
    await eventually(lambda: sum(node.runs().values()) == 3, "all three run")
    await quick.crash_server()
    await eventually(lambda: node.ended() == 3, "all three end while nobody listens")
    assert node.node is not None
    node.node.commands.audit(NodeAuditKind.BUNDLE_REFUSED, held=[1, 1], reason="ROLLBACK")

    await quick.start_server()

    await quick.owner.outcomes(issued.issue_id)
    await agreed(quick, 3)
    assert await quick.owner.audit("bundle.refused"), "also what happened while the server was away"


async def test_a_node_goes_on_with_its_chain_after_a_restart(quick: Installation) -> None:
    node = await quick.add_node("n-1")
    await quick.owner.run("n-1")
    await node.stop()
    await node.start()
    await quick.owner.run("n-1")

    await agreed(quick, 2)

    kinds = [row.kind for row in await quick.owner.audit() if row.writer == writer_of(node.node_id)]
    assert kinds.count("process.started") == 2
    assert kinds.count("process.stopped") == 1


async def test_who_holds_all_but_the_nodes_key_cannot_rebuild_its_chain(quick: Installation) -> None:
    """The authority signs checkpoints over anything. What the node signed it does not sign."""
    node = await quick.add_node("n-1")
    await quick.owner.run("n-1")
    await agreed(quick, 1)
    assert node.node is not None
    keys = node.node.link.credentials.keys
    await quick.clock.sleep(SIGN_EVERY_S)
    await quick.owner.run("n-1")
    await agreed(quick, 2)
    rows = [row for row in await quick.owner.audit() if row.writer == writer_of(node.node_id)]

    found = NodeSignatures()
    for row in rows:
        found.add_row(row)
    found.finish()
    assert found.fingerprints == {node.node_id: show_fingerprint(keys.fingerprint)}

    (ended, *_) = [row for row in rows if row.kind == "command.ended"]
    ended.detail = ended.detail.replace(b"SUCCEEDED", b"FAILED")
    forged, previous = NodeSignatures(), rows[0].previous_hash
    for row in rows:
        row.previous_hash = previous
        row.hash = previous = rehashed(row)
        forged.add_row(row)
    with pytest.raises(AuditFinding, match="signs another row"):
        forged.finish()


def rehashed(row: admin_pb2.AuditEntry) -> bytes:
    """Its hash, as whoever rebuilds a chain makes it."""
    parts = ("previous_hash", "writer", "number", "at_ms", "kind", "actor", "subject", "detail")
    return row_hash(**{part: getattr(row, part) for part in parts})


async def test_a_node_whose_chain_was_rewritten_is_found_and_keeps_its_stream(quick: Installation) -> None:
    node = await quick.add_node("n-1")
    await quick.owner.run("n-1")
    await agreed(quick, 1)
    await node.stop()
    journal = node.folder.path / "journal.db"
    with contextlib.closing(sqlite3.connect(journal)) as database:
        database.execute("UPDATE audit SET hash = zeroblob(32)")
        database.execute("UPDATE audit_state SET hash = zeroblob(32), acked_number = 0")
        database.commit()

    await node.start()

    detail = await quick.owner.wait_audit("node.audit_broken")
    assert detail["finding"] == "CHANGED"
    assert (await quick.owner.run("n-1"))[0].state == SUCCEEDED
    shown = await quick.owner.ask("GetNode", admin_pb2.GetNodeRequest(node="n-1"))
    assert shown.audit.finding.startswith("CHANGED: row 1 ")
    assert (await verify(quick))[1].broken == (node.node_id,)


Tamper = Callable[[sqlite3.Connection, str], Any]


def change(database: sqlite3.Connection, writer: str) -> None:
    database.execute("UPDATE audit_rows SET detail = ? WHERE writer = ? AND number = 2", (b"{}", writer))


def remove(database: sqlite3.Connection, writer: str) -> None:
    database.execute("DELETE FROM audit_rows WHERE writer = ? AND number = 2", (writer,))


def swap(database: sqlite3.Connection, writer: str) -> None:
    for number, place in ((2, -1), (3, 2), (-1, 3)):
        database.execute("UPDATE audit_rows SET number = ? WHERE writer = ? AND number = ?", (place, writer, number))


def cut_off(database: sqlite3.Connection, writer: str) -> None:
    database.execute("DELETE FROM audit_rows WHERE writer = ? AND number > 1", (writer,))
    database.execute("UPDATE audit_heads SET number = 1 WHERE writer = ?", (writer,))


def cut_off_whole(database: sqlite3.Connection, writer: str) -> None:
    for table in ("audit_rows", "audit_heads", "audit_signed"):
        database.execute(f"DELETE FROM {table} WHERE writer = ?", (writer,))


def rewrite(database: sqlite3.Connection, writer: str) -> None:
    """Another second row, and every hash from there on made again."""
    rows = list(
        database.execute(
            "SELECT number, at_ms, kind, actor, subject, detail, previous_hash FROM audit_rows WHERE writer = ?"
            " ORDER BY number",
            (writer,),
        )
    )
    previous = rows[0][6]
    for number, at_ms, kind, actor, subject, detail, _ in rows:
        content = b"{}" if number == 2 else detail
        digest = row_hash(
            previous_hash=previous,
            writer=writer,
            number=number,
            at_ms=at_ms,
            kind=kind,
            actor=actor,
            subject=subject,
            detail=content,
        )
        database.execute(
            "UPDATE audit_rows SET detail = ?, previous_hash = ?, hash = ? WHERE writer = ? AND number = ?",
            (content, previous, digest, writer, number),
        )
        previous = digest
    database.execute("UPDATE audit_heads SET hash = ? WHERE writer = ?", (previous, writer))


def rewrite_and_forget(database: sqlite3.Connection, writer: str) -> None:
    """With every checkpoint gone nothing in the database contradicts it: only who remembers one does. No server lets
    people in that finds it so, until one of them has said how it goes on."""
    rewrite(database, writer)
    database.execute("DELETE FROM audit_checkpoints")
    database.execute("DELETE FROM audit_newest")


TAMPERINGS: dict[str, tuple[Tamper, str]] = {
    "a row is changed": (change, "CHANGED"),
    "a row is removed": (remove, "REMOVED"),
    "two rows change places": (swap, "REORDERED"),
    "the end is cut off": (cut_off, "TRUNCATED"),
    "the whole chain is gone": (cut_off_whole, "TRUNCATED"),
    "the chain is written anew": (rewrite, "CHECKPOINT_MISMATCH"),
    "the chain and all signatures are written anew": (rewrite_and_forget, "CHECKPOINT_ROLLED_BACK CHECKPOINT_MISMATCH"),
}


async def test_every_tampering_with_a_nodes_chain_is_found_and_named(quick: Installation) -> None:
    node = await quick.add_node("n-1")
    for _ in range(3):
        await quick.owner.run("n-1")
    summary, _ = await agreed(quick, 3)
    await node.stop()
    await quick.stop_server()
    whole = quick.folder / "whole.db"
    checkpointed(quick)
    shutil.copyfile(quick.database_file, whole)
    for what, (tamper, code) in TAMPERINGS.items():
        with contextlib.closing(sqlite3.connect(quick.database_file)) as database:
            tamper(database, writer_of(node.node_id))
            database.commit()
        if tamper is rewrite_and_forget:
            await note_database_restored(quick, "it was rewritten")
        await quick.start_server()

        with pytest.raises(AuditFinding) as caught:
            await verify(quick, remembered=summary.newest)

        assert caught.value.code in code.split(), f"{what}: {caught.value}"
        await quick.crash_server()
        checkpointed(quick)
        shutil.copyfile(whole, quick.database_file)


def checkpointed(installation: Installation) -> None:
    """Nothing of the database is beside its file."""
    with contextlib.closing(sqlite3.connect(installation.database_file)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
