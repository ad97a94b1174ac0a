"""Evidence stays on the node: no acknowledgement frees it, no junk displaces it, and what goes is counted."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.node_audit import NodeAuditKind, node_row_hash
from fleet.v1 import gateway_pb2
from fleet_node.commands import audit_log, audit_rows, evidence_store
from fleet_node.commands.audit_log import AuditLog
from fleet_node.commands.audit_rows import AuditEvent
from fleet_node.commands.evidence_store import EvidenceRow, kept_evidence
from fleet_node.commands.protection import Verifier
from fleet_node.commands.store import Batch, JournalStore
from tests.fakes.clock import MockClock
from tests.properties.persons import NOW_MS
from tests.unit.fleet_node.commands.audit_reader import read_audit
from tests.unit.fleet_node.commands.node import NODE, TestNode
from tests.unit.fleet_node.commands.protected import SEALED, refused, wished
from tests.unit.fleet_node.commands.test_store import copy_as_left, path

__all__ = ["path"]

ATTEMPT = NodeAuditKind.PROTECTED_REFUSED
JUNK = NodeAuditKind.STATEMENT_REFUSED
WORK = NodeAuditKind.DRAIN_ORDERED


def an_event(kind: NodeAuditKind, **detail: Any) -> AuditEvent:
    return audit_rows.event(kind, 7, detail)


def kept(store: JournalStore, kind: NodeAuditKind = ATTEMPT) -> list[EvidenceRow]:
    return [row for row in kept_evidence(store.connection)[0] if row.kind == kind]


async def test_a_server_that_acknowledges_and_floods_wipes_nothing(tmp_path: Path, verifier: Verifier) -> None:
    node = TestNode(tmp_path, MockClock(NOW_MS), verifier=verifier)
    node.open_stream()
    used = wished(node)
    await node.give(used)
    await node.wait_reported(used, "SUCCEEDED")
    await refused(node, node.command(SEALED))
    for seq in range(100_000, 100_300):
        await node.stream.command_frame(node.frame(node.command(seq=seq), node_id=f"other-{seq}"))
    for number in range(2 * evidence_store.MAX_ROWS):
        node.service.audit(NodeAuditKind.CREDENTIAL_REFUSED, number=number)
        node.service.audit(WORK, number=number)
        await node.journal.query(lambda store: store.next_audit(store.audit.number, 0))

    await node.crash()
    store = JournalStore(node.path, NODE)
    store.apply([Batch(audit=[an_event(WORK)])], 0)
    assert not {row.kind for row in store.audit.after(0)} & {"intent.used", ATTEMPT.value}, "the chain forgot them"
    (attempt,) = kept(store)
    assert b"INTENT_MISSING" in attempt.detail
    (use,) = kept(store, NodeAuditKind.INTENT_USED)
    assert SEALED.encode() in use.detail
    assert kept_evidence(store.connection)[1] == {"credential.refused": evidence_store.MAX_ROWS}
    store.close()


def test_a_server_that_takes_nothing_leaves_room_for_each_kind(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_log, "MAX_UNACKED_EVIDENCE_BYTES", 4096)
    store = JournalStore(path, NODE)
    store.audit = AuditLog(store.connection, NODE, max_unacked_bytes=4096)
    for number in range(100):
        store.apply([Batch(audit=[an_event(WORK, number=number), an_event(JUNK, number=number)])], 0)
    store.apply([Batch(audit=[an_event(ATTEMPT, seq=5)])], 0)

    waiting = read_audit(store, NODE)
    assert waiting.details(ATTEMPT) == [{"seq": 5}]
    assert waiting.kinds()[-1] == ATTEMPT, "and no gap while there is no room for what it tells of"
    assert len(waiting.details(JUNK)) < 100
    assert [row.detail for row in kept(store, JUNK)][-1] == b'{"number":99}', "counted, and kept all the same"
    store.close()

    again = JournalStore(path, NODE)
    again.audit = AuditLog(again.connection, NODE, max_unacked_bytes=4096)
    again.apply([Batch(audit=[an_event(WORK, number=100)])], 0)
    assert read_audit(again, NODE).kinds()[-1] == ATTEMPT, "a restart makes no room"
    again.audit.acked(again.audit.number)
    again.apply([Batch(audit=[an_event(WORK, number=101)])], 0)
    tail = read_audit(again, NODE)
    (gap,) = tail.details("audit.gap")
    told = {kind.value: len(waiting.details(kind)) for kind in (WORK, JUNK)}
    assert gap == {"drain.ordered": 101 - told[WORK], "statement.refused": 100 - told[JUNK]}
    assert tail.details(WORK)[-1] == {"number": 101}
    again.close()


def test_each_row_is_kept_as_it_was_chained_in_the_commit_that_chains_it(path: Path) -> None:
    store = JournalStore(path, NODE)
    store.apply([Batch(audit=[an_event(WORK), an_event(ATTEMPT, seq=1)])], 0)
    left = JournalStore(copy_as_left(path), NODE)
    (row,) = kept(left)
    chained = gateway_pb2.AuditRow(number=row.number, at_ms=row.at_ms, kind=row.kind, detail=row.detail)
    assert (row.chain, row.number) == (0, 2)
    assert row.hash == node_row_hash(NODE, row.previous_hash, chained) == left.audit.after(1)[0].hash
    left.close()
    store.close()


def test_a_chain_that_begins_anew_keeps_what_was_kept_once(path: Path) -> None:
    store = JournalStore(path, NODE)
    floor = AuditEvent(NodeAuditKind.FLOOR_RAISED, 7, b"{}", opens_chain=1)
    store.apply([Batch(audit=[an_event(ATTEMPT, seq=1), floor])], 0)
    assert store.audit.answered(gateway_pb2.AuditAck(number=0, paused="CHAIN_ENDED"), 2, 77)
    rows, _ = kept_evidence(store.connection)
    assert [(row.chain, row.kind) for row in rows] == [(0, ATTEMPT), (0, "floor.raised"), (1, "chain.begun")]
    store.close()


@given(st.lists(st.tuples(st.sampled_from([ATTEMPT, JUNK]), st.integers(0, 3000)), max_size=60))
def test_of_each_kind_the_newest_are_kept_within_bounds_and_the_others_counted(
    events: list[tuple[NodeAuditKind, int]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence_store, "MAX_ROWS", 5)
        patch.setattr(evidence_store, "MAX_BYTES", 4096)
        connection = sqlite3.connect(":memory:")
        connection.executescript(evidence_store.EVIDENCE_SCHEMA)
        told: dict[str, list[EvidenceRow]] = {}
        for number, (kind, size) in enumerate(events):
            row = EvidenceRow(0, number, 7, kind.value, b"x" * size, b"h", b"p")
            evidence_store.keep_evidence(connection, [row])
            told.setdefault(kind.value, []).append(row)
        rows, gone = kept_evidence(connection)
        for kind, all_of_kind in told.items():
            left = [row for row in rows if row.kind == kind]
            assert left == all_of_kind[-len(left) :]
            assert len(left) + gone.get(kind, 0) == len(all_of_kind)
            assert 0 < len(left) <= 5
            assert len(left) == 1 or sum(len(row.detail) + 128 for row in left) <= 4096
        connection.close()
