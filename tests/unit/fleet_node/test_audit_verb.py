"""`fleet-node audit`: what the node wrote down, read on the node and verified, whether or not its daemon runs."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fleet.node_audit import NodeAuditKind
from fleet_node.commands import audit_rows
from fleet_node.commands.audit_log import KEEP_ROWS
from fleet_node.commands.store import Batch, JournalStore
from fleet_node.enrollment.folder import StateFolder
from tests.fakes.gateway import NODE, FakeGateway
from tests.unit.fleet_node.program import end, fleet_node, start

ATTEMPT = NodeAuditKind.PROTECTED_REFUSED


def write(member: StateFolder, *told: tuple[NodeAuditKind, dict[str, Any]], acked: int = 0) -> None:
    store = JournalStore(member.journal, NODE)
    store.audit.acked(acked)
    events = [audit_rows.event(kind, 1_790_000_000_000, detail) for kind, detail in told]
    store.apply([Batch(audit=events)], 0)
    store.audit.acked(acked)
    store.apply([Batch(audit=[audit_rows.event(NodeAuditKind.DRAIN_ENDED, 7, {})])], 0)
    store.close()


async def read(member: StateFolder, *options: str) -> Any:
    ended = await fleet_node("audit", "--json", *options, "--state-dir", member.path)
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


async def test_the_chain_is_shown_and_verified(member: StateFolder) -> None:
    write(member, (ATTEMPT, {"reason": "INTENT_MISSING", "actor": "\x1b[2Jmallory"}))
    shown = await fleet_node("audit", "--state-dir", member.path)
    assert shown.code == 0, shown.err
    assert "verified: every row is what was hashed" in shown.out
    assert "0/1       2026-09-21 14:13:20 UTC  protected.refused" in shown.out
    assert "INTENT_MISSING" in shown.out
    assert "\x1b" not in shown.out
    document = await read(member)
    assert [row["kind"] for row in document["rows"]] == ["protected.refused", "drain.ended"]
    assert document["rows"][-1]["hash"] == document["hash"]
    assert document["findings"] == []
    assert not list(member.path.glob("*copy*")), "the copy is gone"


async def test_evidence_is_shown_that_the_chain_has_forgotten(member: StateFolder) -> None:
    junk = [(NodeAuditKind.DRAIN_ORDERED, {"number": number}) for number in range(KEEP_ROWS + 50)]
    write(member, (ATTEMPT, {"seq": 5}), *junk, acked=2 * KEEP_ROWS)
    write(member, (NodeAuditKind.DRAIN_ORDERED, {}), acked=2 * KEEP_ROWS)
    document = await read(member)
    assert document["rows"][0]["number"] > 1
    assert "protected.refused" not in [row["kind"] for row in document["rows"]]
    (row,) = (await read(member, "--evidence"))["rows"]
    assert (row["kind"], row["detail"], row["number"]) == ("protected.refused", {"seq": 5}, 1)


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("UPDATE audit SET detail = x'7b7d' WHERE number = 1", "CHANGED: row 1 of chain 0 is not"),
        ("UPDATE audit SET at_ms = 1 WHERE number = 2", "CHANGED: row 2 of chain 0 is not"),
        ("DELETE FROM audit WHERE number = 2", "REMOVED: row 3 of chain 0 stands where row 2 belongs"),
        ("DELETE FROM audit WHERE number = 3", "TRUNCATED: row 3 was written, and the chain ends with row 2"),
        ("DELETE FROM audit", "TRUNCATED"),
        ("UPDATE audit_evidence SET detail = x'7b7d'", "CHANGED: row 1 of chain 0, kept as evidence"),
    ],
)
async def test_what_was_changed_on_the_disk_is_found(member: StateFolder, statement: str, finding: str) -> None:
    write(member, (ATTEMPT, {"seq": 5}), (NodeAuditKind.DRAIN_ORDERED, {}))
    with closing(sqlite3.connect(member.journal)) as database:
        database.execute(statement)
        database.commit()
    shown = await fleet_node("audit", "--state-dir", member.path)
    assert shown.code == 1
    assert finding in shown.err
    document = await fleet_node("audit", "--json", "--state-dir", member.path)
    assert document.code == 1
    assert any(one.startswith(finding) for one in json.loads(document.out)["findings"])


async def test_a_running_daemon_is_not_disturbed(gateway: FakeGateway, member: StateFolder) -> None:
    process = await start("run", "--state-dir", member.path)
    await gateway.wait_stream()
    document = await read(member)
    assert document["rows"][0]["kind"] == "process.started"
    again = await read(member, "--evidence")
    assert (again["number"] >= 1, again["node_id"]) == (True, NODE)
    process.terminate()
    assert (await end(process)).code == 0


async def test_without_a_node_there_is_no_audit(tmp_path: Path) -> None:
    ended = await fleet_node("audit", "--state-dir", tmp_path / "none")
    assert (ended.code, "not enrolled" in ended.err) == (2, True)
