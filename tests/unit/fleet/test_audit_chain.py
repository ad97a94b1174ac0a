"""Each finding by its name, the golden row hash, and what the verifier says when nothing is wrong."""

from __future__ import annotations

import hashlib

import pytest

from fleet import audit_chain, audit_findings
from fleet.audit_chain import ChainVerifier, CheckpointMark
from fleet.audit_findings import AuditFinding
from fleet.envelope import Domain, Signer
from fleet.v1 import admin_pb2, trust_pb2

AUTHORITY = Signer.from_private_bytes(b"\x01" * 32)
KEYS = {AUTHORITY.key_id: AUTHORITY.public_key}


def chain(writer: str, rows: int) -> list[admin_pb2.AuditEntry]:
    entries: list[admin_pb2.AuditEntry] = []
    previous = audit_chain.FIRST_PREVIOUS_HASH
    for number in range(1, rows + 1):
        entry = admin_pb2.AuditEntry(
            writer=writer, number=number, at_ms=number, kind="k", actor="a", subject="s", detail=b"{}"
        )
        entry.previous_hash = previous
        entry.hash = previous = audit_chain.row_hash(
            previous_hash=previous,
            writer=writer,
            number=number,
            at_ms=number,
            kind="k",
            actor="a",
            subject="s",
            detail=b"{}",
        )
        entries.append(entry)
    return entries


def checkpoint(
    number: int, *heads: admin_pb2.AuditEntry, previous: trust_pb2.Signed | None = None, cluster_id: str = "c"
) -> trust_pb2.Signed:
    statement = trust_pb2.AuditCheckpointStatement(
        cluster_id=cluster_id,
        number=number,
        previous_sha256=hashlib.sha256(previous.statement).digest() if previous else b"",
        heads=[trust_pb2.AuditHead(writer=head.writer, number=head.number, hash=head.hash) for head in heads],
        issued_at_ms=number * 1000,
    )
    return AUTHORITY.sign(Domain.AUDIT_CHECKPOINT, statement.SerializeToString())


def read(
    *items: admin_pb2.AuditEntry | trust_pb2.Signed, remembered: CheckpointMark | None = None
) -> audit_chain.ChainSummary:
    verifier = ChainVerifier(cluster_id="c", authority_keys=KEYS, remembered=remembered)
    for item in items:
        if isinstance(item, trust_pb2.Signed):
            verifier.add_checkpoint(item)
        else:
            verifier.add_row(item)
    return verifier.finish()


def mark(signed: trust_pb2.Signed, number: int) -> CheckpointMark:
    return CheckpointMark(number, hashlib.sha256(signed.statement).digest())


def test_the_row_hash_is_what_the_protocol_page_says() -> None:
    row = b"".join(
        len(column).to_bytes(4, "big") + column
        for column in (b"w", (7).to_bytes(8, "big"), (-1).to_bytes(8, "big", signed=True), b"k", b"a", b"s", b"{}")
    )
    expected = hashlib.sha256(b"fleet.v1/audit-row\x00" + bytes(32) + row).digest()
    got = audit_chain.row_hash(
        previous_hash=bytes(32), writer="w", number=7, at_ms=-1, kind="k", actor="a", subject="s", detail=b"{}"
    )
    assert got == expected


def test_a_previous_hash_of_the_wrong_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="31 bytes"):
        audit_chain.row_hash(
            previous_hash=bytes(31), writer="", number=1, at_ms=0, kind="", actor="", subject="", detail=b""
        )


def test_a_clean_audit_is_summed_up() -> None:
    a, b = chain("a", 3), chain("b", 1)
    first = checkpoint(1, a[1])
    second = checkpoint(2, a[1], b[0], previous=first)
    summary = read(a[0], a[1], first, b[0], second, a[2], remembered=mark(first, 1))
    assert summary == audit_chain.ChainSummary(
        rows=4, writers=2, checkpoints=2, newest=mark(second, 2), newest_at_ms=2000, uncovered_rows=1
    )


def test_an_empty_audit_is_clean_for_who_remembers_nothing() -> None:
    assert read().newest is None


def test_every_finding_has_its_name() -> None:
    a = chain("a", 4)
    edited = admin_pb2.AuditEntry()
    edited.CopyFrom(a[1])
    edited.actor = "mallory"
    signed = checkpoint(1, a[2])
    later = checkpoint(2, a[3], previous=signed)
    other = checkpoint(1, chain("b", 1)[0])
    remembered = mark(later, 2)
    cases: list[tuple[str, list[admin_pb2.AuditEntry | trust_pb2.Signed], CheckpointMark | None]] = [
        ("CHANGED", [a[0], edited], None),
        ("REMOVED", [a[0], a[2]], None),
        ("REMOVED", [a[1], a[2]], None),
        ("REORDERED", [a[0], a[2], a[1]], None),
        ("REORDERED", [a[0], a[0]], None),
        ("TRUNCATED", [a[0], a[1], signed], None),
        ("TRUNCATED", [*a, signed, checkpoint(2, a[1], previous=signed)], None),
        ("CHECKPOINT_MISMATCH", [*a, signed, checkpoint(3, a[3], previous=signed)], None),
        ("CHECKPOINT_MISMATCH", [*a, signed, checkpoint(2, a[3], previous=other)], None),
        ("CHECKPOINT_MISMATCH", [*a, checkpoint(1, a[0], a[1])], None),
        ("CHECKPOINT_MISMATCH", [*a, signed], mark(other, 1)),
        ("CHECKPOINT_BAD_SIGNATURE", [*a, checkpoint(1, a[0], cluster_id="other")], None),
        ("CHECKPOINT_BAD_SIGNATURE", [*a, AUTHORITY.sign(Domain.AUDIT_CHECKPOINT, b"\xff\xff")], None),
        ("CHECKPOINT_ROLLED_BACK", [*a[:3], signed], remembered),
        ("CHECKPOINT_ROLLED_BACK", [], remembered),
    ]
    for code, items, seen in cases:
        with pytest.raises(AuditFinding) as caught:
            read(*items, remembered=seen)
        assert caught.value.code == code, str(caught.value)


def test_a_checkpoint_names_what_grew_and_a_whole_one_names_all(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = chain("a", 1), chain("b", 3)
    first = checkpoint(1, a[0], b[0])
    second = checkpoint(2, b[1], previous=first)
    assert read(*a, *b[:2], first, second).uncovered_rows == 0

    monkeypatch.setattr(audit_chain, "WHOLE_CHECKPOINT_EVERY", 3)
    with pytest.raises(audit_findings.ChainTruncated, match="no longer names the chain of a"):
        read(*a, *b, first, second, checkpoint(3, b[2], previous=second))
    assert read(*a, *b, first, second, checkpoint(3, a[0], b[2], previous=second)).uncovered_rows == 0
    without = checkpoint(3, b[2], previous=second)
    again = checkpoint(4, a[0], previous=without)
    assert read(*a, *b, first, second, without, again).uncovered_rows == 0, "its end was put right since"


def test_a_gap_is_told_before_rows_pile_up() -> None:
    rows = chain("a", 3 + audit_chain.MAX_ROWS_AHEAD)
    verifier = ChainVerifier(cluster_id="c", authority_keys=KEYS)
    verifier.add_row(rows[0])
    with pytest.raises(audit_findings.RowRemoved, match="row 2 of a is missing; row 3 follows"):
        for row in rows[2:]:
            verifier.add_row(row)


def test_hashes_that_are_settled_are_not_kept() -> None:
    rows = chain("a", 500)
    verifier = ChainVerifier(cluster_id="c", authority_keys=KEYS)
    previous: trust_pb2.Signed | None = None
    for row in rows:
        verifier.add_row(row)
        previous = checkpoint(row.number, row, previous=previous)
        verifier.add_checkpoint(previous)
    assert len(verifier._chains["a"].unsettled) == 1


def test_a_relinked_row_is_caught_by_its_previous_hash() -> None:
    first = chain("a", 1)[0]
    relinked = admin_pb2.AuditEntry()
    relinked.CopyFrom(first)
    relinked.previous_hash = b"\x01" * 32
    with pytest.raises(audit_findings.RowChanged, match="does not link"):
        read(relinked)
