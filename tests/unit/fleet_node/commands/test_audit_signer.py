"""The node signs its chain: at most once a minute, at its stop, and again in a chain that begins anew."""

import itertools
from pathlib import Path

import pytest

from fleet.clock import ServerTime
from fleet.identity import NodeKeys, show_fingerprint
from fleet.node_audit import NodeAuditKind, writer_of
from fleet.node_keys import sign_rotation
from fleet.node_signatures import MAX_UNSIGNED_ROWS, SIGN_EVERY_ROWS, SIGN_EVERY_S, NodeSignatures
from fleet.v1 import admin_pb2, gateway_pb2
from fleet_node.commands import audit_rows
from fleet_node.commands.audit_rows import AuditEvent
from fleet_node.commands.audit_sender import GATHER_S
from fleet_node.commands.audit_signer import AuditSigner
from fleet_node.commands.store import Batch, JournalStore
from tests.fakes.clock import MockClock
from tests.unit.fleet_node.commands.audit_reader import read_audit
from tests.unit.fleet_node.commands.node import NODE, TestNode
from tests.unit.fleet_node.commands.test_store import path

__all__ = ["path"]

KEYS = NodeKeys.generate()


def told(kind: NodeAuditKind = NodeAuditKind.DRAIN_ORDERED) -> AuditEvent:
    return audit_rows.event(kind, 7, {})


def signing(store: JournalStore, clock: MockClock) -> JournalStore:
    store.audit.signer = AuditSigner(lambda: KEYS, clock, ServerTime(clock))
    return store


def kinds(store: JournalStore) -> list[str]:
    return read_audit(store, NODE).kinds()


def verified(store: JournalStore) -> NodeSignatures:
    """What a reader finds in the chain that is written."""
    signatures, previous = NodeSignatures(), bytes(32)
    for row in read_audit(store, NODE).rows:
        entry = admin_pb2.AuditEntry(
            writer=writer_of(NODE, store.audit.chain), number=row.number, kind=row.kind, detail=row.detail,
            previous_hash=previous, hash=row.hash,
        )  # fmt: skip
        signatures.add_row(entry)
        previous = row.hash
    signatures.finish()
    return signatures


@pytest.fixture
def clock() -> MockClock:
    return MockClock()


async def test_rows_are_signed_once_a_minute_and_the_last_one_when_it_stops(path: Path, clock: MockClock) -> None:
    store = signing(JournalStore(path, NODE), clock)
    for _ in range(3):
        store.apply([Batch(audit=[told()])], 0)
    assert kinds(store) == ["drain.ordered", "chain.signed", "drain.ordered", "drain.ordered"]
    await clock.advance(SIGN_EVERY_S)
    store.apply([Batch(audit=[told()])], 0)
    assert kinds(store)[4:] == ["chain.signed", "drain.ordered"]
    store.apply([Batch(audit=[told(NodeAuditKind.PROCESS_STOPPED)])], 0)
    assert kinds(store)[6:] == ["process.stopped", "chain.signed"]
    assert verified(store).unsigned_rows == 0
    store.close()
    again = signing(JournalStore(path, NODE), clock)
    assert again.audit.unsigned == 0
    again.apply([Batch(audit=[told()])], 0)
    assert kinds(again)[-3:] == ["chain.signed", "drain.ordered", "chain.signed"], "nothing is signed twice"
    again.close()


def test_many_rows_do_not_wait_for_the_minute(path: Path, clock: MockClock) -> None:
    store = signing(JournalStore(path, NODE), clock)
    for _ in range(3):
        store.apply([Batch(audit=[told() for _ in range(SIGN_EVERY_ROWS)])], 0)
    assert store.audit.unsigned == 0
    assert kinds(store).count("chain.signed") == 3
    store.apply([Batch(audit=[told() for _ in range(SIGN_EVERY_ROWS + 1)])], 0)
    assert kinds(store)[-2:] == ["chain.signed", "drain.ordered"], "nor for the end of a large commit"
    store.close()


async def test_other_keys_sign_from_the_row_on_that_says_so_however_late_that_is_written(
    path: Path, clock: MockClock
) -> None:
    keys = [NodeKeys.generate() for _ in range(3)]
    in_force = keys[0]
    store = JournalStore(path, NODE)
    store.audit.signer = AuditSigner(lambda: in_force, clock, ServerTime(clock))
    store.apply([Batch(audit=[told()])], 0)
    for old, new in itertools.pairwise(keys):
        in_force = new  # the disk hung meanwhile
        await clock.advance(SIGN_EVERY_S)
        store.apply([Batch(audit=[told()])], 0)
        statement = sign_rotation(cluster_id="c", node_id=NODE, old=old, new=new, issued_at_ms=1)
        stored = {"subject": "node_keys", "statement": statement.SerializeToString().hex()}
        events = [audit_rows.event(NodeAuditKind.CREDENTIAL_STORED, 7, stored), told(NodeAuditKind.CREDENTIAL_IN_FORCE)]
        store.apply([Batch(audit=events)], 0)
    found = verified(store)
    assert found.fingerprints == {NODE: show_fingerprint(keys[-1].fingerprint)}
    assert (found.unsigned_rows, kinds(store)[-1]) == (0, "chain.signed")
    store.close()


def test_a_chain_that_begins_anew_is_signed_anew(path: Path, clock: MockClock) -> None:
    store = signing(JournalStore(path, NODE), clock)
    floor = AuditEvent(NodeAuditKind.FLOOR_RAISED, 7, b"{}", opens_chain=1)
    for event in (told(), floor, told()):
        store.apply([Batch(audit=[event])], 0)
    assert "chain.signed" in kinds(store)
    assert store.audit.answered(gateway_pb2.AuditAck(number=0, paused="CHAIN_ENDED"), store.audit.number, 77)
    assert kinds(store) == ["chain.begun", "drain.ordered", "floor.raised", "drain.ordered"]
    store.apply([Batch(audit=[told(NodeAuditKind.PROCESS_STOPPED)])], 0)
    assert verified(store).unsigned_rows == 0
    store.close()


async def test_what_was_told_last_is_signed_a_minute_later_and_then_there_is_peace(tmp_path: Path) -> None:
    node = TestNode(tmp_path, MockClock())
    signing(node.store, node.clock)
    node.open_stream()

    async def next_kinds() -> list[str]:
        while (frame := node.stream.next_audit()) is None:
            await node.wait_news()
        rows = gateway_pb2.NodeControl.FromString(frame).audit.rows
        node.service.audit_acked(gateway_pb2.AuditAck(number=rows[-1].number))
        return [row.kind for row in rows]

    node.service.audit(NodeAuditKind.DRAIN_ORDERED, deadline_ms=0)
    await node.clock.wait_sleepers(1)
    await node.clock.advance(GATHER_S)
    assert await next_kinds() == ["drain.ordered", "chain.signed"]
    for _ in range(5):  # the round ends, or it would take the next row along
        await node.journal.query(lambda store: None)
    node.service.audit(NodeAuditKind.DRAIN_ENDED, deadline_ms=0)
    await node.clock.wait_sleepers(1)
    await node.clock.advance(GATHER_S)
    assert await next_kinds() == ["drain.ended"]
    await node.clock.wait_sleepers(1)
    await node.clock.advance(SIGN_EVERY_S)
    await node.clock.wait_sleepers(1)
    await node.clock.advance(GATHER_S)
    assert await next_kinds() == ["chain.signed"]
    await node.journal.query(lambda store: None)
    assert node.store.audit.unsigned == 0
    await node.close()


def test_what_waited_and_comes_again_in_another_chain_is_signed_as_it_comes(path: Path, clock: MockClock) -> None:
    """A server that took nothing for days, until a person adopted the node: else readers take it for made up."""
    store = signing(JournalStore(path, NODE), clock)
    for _ in range(MAX_UNSIGNED_ROWS // SIGN_EVERY_ROWS + 1):
        store.apply([Batch(audit=[told() for _ in range(SIGN_EVERY_ROWS)])], 0)
    floor = AuditEvent(NodeAuditKind.FLOOR_RAISED, 7, b"{}", opens_chain=1)
    store.apply([Batch(audit=[floor])], 0)
    assert store.audit.answered(gateway_pb2.AuditAck(number=0, paused="CHAIN_ENDED"), store.audit.number, 77)
    assert store.audit.unsigned < SIGN_EVERY_ROWS
    assert verified(store).unsigned_rows == store.audit.unsigned
    store.close()


def test_keys_that_were_replaced_among_what_comes_again_are_named_before_the_new_ones_sign(
    path: Path, clock: MockClock
) -> None:
    old, new = NodeKeys.generate(), NodeKeys.generate()
    in_force = old
    store = JournalStore(path, NODE)
    store.audit.signer = AuditSigner(lambda: in_force, clock, ServerTime(clock))
    store.apply([Batch(audit=[told() for _ in range(SIGN_EVERY_ROWS + 1)])], 0)
    statement = sign_rotation(cluster_id="c", node_id=NODE, old=old, new=new, issued_at_ms=1)
    stored = {"subject": "node_keys", "statement": statement.SerializeToString().hex()}
    in_force = new
    events = [audit_rows.event(NodeAuditKind.CREDENTIAL_STORED, 7, stored), told(NodeAuditKind.CREDENTIAL_IN_FORCE)]
    store.apply([Batch(audit=events)], 0)
    before = verified(store)
    floor = AuditEvent(NodeAuditKind.FLOOR_RAISED, 7, b"{}", opens_chain=1)
    store.apply([Batch(audit=[floor])], 0)
    assert store.audit.answered(gateway_pb2.AuditAck(number=0, paused="CHAIN_ENDED"), store.audit.number, 77)
    store.apply([Batch(audit=[told(NodeAuditKind.PROCESS_STOPPED)])], 0)
    found = kinds(store)
    assert found.index("chain.signed") > found.index("credential.in_force")
    assert verified(store).fingerprints == before.fingerprints
    store.close()
