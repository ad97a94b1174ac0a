"""Reads the node's audit from a copy of its journal, and verifies it: for the person at the node."""

from __future__ import annotations

import hmac
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fleet.audit_chain import FIRST_PREVIOUS_HASH
from fleet.node_audit import node_row_hash
from fleet.v1 import gateway_pb2
from fleet_node.commands.audit_store import read_copy
from fleet_node.commands.evidence_store import EvidenceRow
from fleet_node.commands.store import JournalUnavailableError


@dataclass(frozen=True, slots=True)
class NodeAuditCopy:
    """What the journal holds of the audit.

    Args:
        chain: that is written; 0 is the first.
        next_chain: that a floor named; the same when none waits.
        number: newest row of that chain.
        hash: of that row, 32 bytes; empty before the first.
        acked_number: newest row that the server says it has.
        rows: of that chain, in order; those that were forgotten are not among them.
        evidence: kept apart, oldest first.
        evidence_gone: how many rows of which kind were evidence and are not kept any more.
        findings: what is wrong; empty when everything that is here was hashed just so.
    """

    chain: int
    next_chain: int
    number: int
    hash: bytes
    acked_number: int
    rows: Sequence[EvidenceRow]
    evidence: Sequence[EvidenceRow]
    evidence_gone: dict[str, int]
    findings: Sequence[str]


def read_audit_copy(path: Path, node_id: str) -> NodeAuditCopy:
    """Read and verify it.

    Args:
        path: a copy of a journal that no process has open.
        node_id: whose it is.

    Raises:
        JournalUnavailableError: it cannot be read.
    """
    try:
        state, stored, evidence, gone = read_copy(path)
    except sqlite3.Error as error:
        raise JournalUnavailableError(f"the copy of the journal cannot be read ({error})") from error
    rows: list[EvidenceRow] = []
    previous = FIRST_PREVIOUS_HASH
    for row in stored:
        known = b"" if not rows and row.number != 1 else previous
        rows.append(EvidenceRow(state.chain, *row, known))
        previous = row.hash
    findings = [*_broken(node_id, rows), *_cut(rows, state.number, state.hash), *_differing(node_id, rows, evidence)]
    return NodeAuditCopy(
        state.chain, state.next_chain, state.number, state.hash, state.acked_number, rows, evidence, gone, findings
    )


def _broken(node_id: str, rows: Sequence[EvidenceRow]) -> Iterator[str]:
    expected = rows[0].number if rows else 0
    for row in rows:
        if row.number != expected:
            yield f"REMOVED: row {row.number} of chain {row.chain} stands where row {expected} belongs"
        elif row.previous_hash and not _holds(node_id, row):  # of the first that is left nobody knows it
            yield f"CHANGED: row {row.number} of chain {row.chain} is not what was hashed"
        expected = row.number + 1


def _cut(rows: Sequence[EvidenceRow], number: int, head: bytes) -> Iterator[str]:
    last, last_hash = (rows[-1].number, rows[-1].hash) if rows else (0, b"")
    if (last, last_hash) != (number, head):
        yield f"TRUNCATED: row {number} was written, and the chain ends with row {last}"


def _differing(node_id: str, rows: Sequence[EvidenceRow], evidence: Sequence[EvidenceRow]) -> Iterator[str]:
    chained = {(row.chain, row.number): row.hash for row in rows}
    for row in evidence:
        if not row.number:
            continue
        if not _holds(node_id, row) or chained.get((row.chain, row.number), row.hash) != row.hash:
            yield f"CHANGED: row {row.number} of chain {row.chain}, kept as evidence, is not what was hashed"


def _holds(node_id: str, row: EvidenceRow) -> bool:
    told = gateway_pb2.AuditRow(number=row.number, at_ms=row.at_ms, kind=row.kind, detail=row.detail)
    try:
        return hmac.compare_digest(row.hash, node_row_hash(node_id, row.previous_hash, told, chain=row.chain))
    except ValueError:
        return False
