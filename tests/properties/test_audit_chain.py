"""No single act on an exported audit goes unseen: change, removal, swap, repeat, cut, or a forged checkpoint."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet import audit_chain, audit_findings
from fleet.audit_chain import ChainSummary, ChainVerifier, CheckpointMark
from fleet.audit_findings import AuditFinding
from fleet.envelope import Domain, Signer
from fleet.v1 import trust_pb2

CLUSTER = "cluster-1"
AUTHORITY = Signer.from_private_bytes(b"\x07" * 32)
STRANGER = Signer.from_private_bytes(b"\x08" * 32)
KEYS = {AUTHORITY.key_id: AUTHORITY.public_key}


@dataclass(frozen=True)
class Row:
    writer: str
    number: int
    at_ms: int
    kind: str
    actor: str
    subject: str
    detail: bytes
    previous_hash: bytes
    hash: bytes


Export = list[Row | trust_pb2.Signed]


def sealed(row: Row, previous_hash: bytes) -> Row:
    return replace(row, previous_hash=previous_hash, hash=audit_chain.hash_of(row, previous_hash))


@st.composite
def exports(draw: st.DrawFn) -> Export:
    """An honest export: rows of up to three writers, checkpoints in between, every row covered by the last one."""
    export: Export = []
    heads: dict[str, Row] = {}
    previous = b""
    for number in range(1, draw(st.integers(1, 5)) + 1):
        for _ in range(draw(st.integers(1, 4))):
            writer = draw(st.sampled_from(["replica-a", "replica-b", "node:n1"]))
            last = heads.get(writer)
            row = Row(
                writer=writer,
                number=last.number + 1 if last else 1,
                at_ms=draw(st.integers(-(2**63), 2**63 - 1)),
                kind=draw(st.text(max_size=4)),
                actor=draw(st.text(max_size=4)),
                subject=draw(st.text(max_size=4)),
                detail=draw(st.binary(max_size=4)),
                previous_hash=b"",
                hash=b"",
            )
            heads[writer] = sealed(row, last.hash if last else audit_chain.FIRST_PREVIOUS_HASH)
            export.append(heads[writer])
        checkpoint = trust_pb2.AuditCheckpointStatement(
            cluster_id=CLUSTER,
            number=number,
            previous_sha256=previous,
            heads=[
                trust_pb2.AuditHead(writer=name, number=head.number, hash=head.hash)
                for name, head in sorted(heads.items())
            ],
        ).SerializeToString()
        previous = hashlib.sha256(checkpoint).digest()
        export.append(AUTHORITY.sign(Domain.AUDIT_CHECKPOINT, checkpoint))
    return export


def read(export: Export, remembered: CheckpointMark | None = None) -> ChainSummary:
    verifier = ChainVerifier(cluster_id=CLUSTER, authority_keys=KEYS, remembered=remembered)
    for item in export:
        if isinstance(item, Row):
            verifier.add_row(item)
        else:
            verifier.add_checkpoint(item)
    return verifier.finish()


def mark(export: Export) -> CheckpointMark:
    newest = read(export).newest
    assert newest is not None
    return newest


@given(exports())
def test_an_honest_export_verifies_and_covers_every_row(export: Export) -> None:
    rows = [item for item in export if isinstance(item, Row)]
    summary = read(export, remembered=mark(export))
    assert summary.rows == len(rows)
    assert summary.uncovered_rows == 0
    assert summary.writers == len({row.writer for row in rows})


@given(exports())
def test_checkpoints_may_come_before_or_after_all_rows(export: Export) -> None:
    rows = [item for item in export if isinstance(item, Row)]
    checkpoints = [item for item in export if not isinstance(item, Row)]
    assert read([*rows, *checkpoints]) == read(export)
    assert read([*checkpoints, *rows]) == read(export)


@given(exports(), st.data())
def test_a_changed_field_is_found(export: Export, data: st.DataObject) -> None:
    at = data.draw(st.sampled_from([i for i, item in enumerate(export) if isinstance(item, Row)]))
    row = export[at]
    assert isinstance(row, Row)
    name = data.draw(st.sampled_from(["at_ms", "kind", "actor", "subject", "detail", "previous_hash", "hash"]))
    old = getattr(row, name)
    changed = {int: lambda: old ^ 1, str: lambda: old + "x", bytes: lambda: old + b"x"}[type(old)]()
    export[at] = replace(row, **{name: changed})
    with pytest.raises(AuditFinding):
        read(export)


@given(exports(), st.data())
def test_a_removed_item_is_found_by_who_remembers(export: Export, data: st.DataObject) -> None:
    remembered = mark(export)
    del export[data.draw(st.integers(0, len(export) - 1))]
    with pytest.raises(AuditFinding):
        read(export, remembered)


@given(exports(), st.data())
def test_a_cut_is_found_by_who_remembers(export: Export, data: st.DataObject) -> None:
    remembered = mark(export)
    with pytest.raises(AuditFinding):
        read(export[: data.draw(st.integers(0, len(export) - 1))], remembered)


@given(exports(), st.data())
def test_a_repeated_item_is_found(export: Export, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(export) - 1))
    export.insert(data.draw(st.integers(at, len(export))), export[at])
    with pytest.raises(AuditFinding):
        read(export)


@given(exports(), st.data())
def test_two_swapped_rows_of_a_writer_are_found(export: Export, data: st.DataObject) -> None:
    places: dict[str, list[int]] = {}
    for i, item in enumerate(export):
        if isinstance(item, Row):
            places.setdefault(item.writer, []).append(i)
    longest = max(places.values(), key=len)
    if len(longest) < 2:
        return
    one, two = data.draw(st.lists(st.sampled_from(longest), min_size=2, max_size=2, unique=True))
    export[one], export[two] = export[two], export[one]
    with pytest.raises(audit_findings.RowReordered):
        read(export)


@given(exports(), st.data())
def test_history_rebuilt_without_the_authority_is_found(export: Export, data: st.DataObject) -> None:
    """A database writer can hash a whole new chain; the signed checkpoint still names the old one."""
    writer = data.draw(st.sampled_from(sorted({item.writer for item in export if isinstance(item, Row)})))
    previous = audit_chain.FIRST_PREVIOUS_HASH
    for i, item in enumerate(export):
        if isinstance(item, Row) and item.writer == writer:
            rebuilt = sealed(replace(item, actor=item.actor + "!"), previous)
            export[i], previous = rebuilt, rebuilt.hash
    with pytest.raises(audit_findings.CheckpointMismatch):
        read(export)


@given(exports(), st.data(), st.sampled_from([Domain.LEASE, Domain.TRUST_BUNDLE]))
def test_a_checkpoint_by_a_stranger_or_for_another_purpose_is_found(
    export: Export, data: st.DataObject, domain: Domain
) -> None:
    at = data.draw(st.sampled_from([i for i, item in enumerate(export) if not isinstance(item, Row)]))
    checkpoint = export[at]
    assert not isinstance(checkpoint, Row)
    forged = data.draw(
        st.sampled_from(
            [STRANGER.sign(Domain.AUDIT_CHECKPOINT, checkpoint.statement), AUTHORITY.sign(domain, checkpoint.statement)]
        )
    )
    export[at] = forged
    with pytest.raises(audit_findings.CheckpointBadSignature):
        read(export)


TEXTS = st.text(max_size=6)


@given(
    st.lists(TEXTS, min_size=4, max_size=4),
    st.lists(TEXTS, min_size=4, max_size=4),
    st.binary(max_size=6),
    st.binary(max_size=6),
)
def test_two_different_rows_never_hash_alike(
    one: list[str], two: list[str], detail_one: bytes, detail_two: bytes
) -> None:
    def hashed(texts: list[str], detail: bytes) -> bytes:
        writer, kind, actor, subject = texts
        return audit_chain.row_hash(
            previous_hash=audit_chain.FIRST_PREVIOUS_HASH,
            writer=writer,
            number=1,
            at_ms=0,
            kind=kind,
            actor=actor,
            subject=subject,
            detail=detail,
        )

    assert (hashed(one, detail_one) == hashed(two, detail_two)) == ((one, detail_one) == (two, detail_two))
