"""Rows of the audit that are evidence, kept in a ring of their own in the journal.

A server that is in the wrong hands may acknowledge rows that it throws away, or take none until the node has no room
for more. So what shows that somebody tried is kept apart: no acknowledgement frees it, and only newer rows of the same
kind take its place, so that no kind of junk displaces another kind. What went is counted.

SQL on the tables `audit_evidence` and `audit_evidence_gone`; `fleet_node.commands.audit_log` calls it within its
commits.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from fleet.node_audit import ROW_BYTES, NodeAuditKind

MAX_ROWS = 256
MAX_BYTES = 128 * 1024
"""Of one kind; the newest row stays in any case."""

EVIDENCE = frozenset(
    {
        NodeAuditKind.INTENT_USED,
        NodeAuditKind.PROTECTED_REFUSED,
        NodeAuditKind.COMMAND_REFUSED,
        NodeAuditKind.STATEMENT_REFUSED,
        NodeAuditKind.BUNDLE_APPLIED,
        NodeAuditKind.BUNDLE_REFUSED,
        NodeAuditKind.OWNER_PINNED,
        NodeAuditKind.PEOPLE_TAKEN,
        NodeAuditKind.PEOPLE_REFUSED,
        NodeAuditKind.CREDENTIAL_STORED,
        NodeAuditKind.CREDENTIAL_IN_FORCE,
        NodeAuditKind.CREDENTIAL_REFUSED,
        NodeAuditKind.FLOOR_RAISED,
        NodeAuditKind.FLOOR_REFUSED,
        NodeAuditKind.AUDIT_GAP,
        NodeAuditKind.CHAIN_BEGUN,
        NodeAuditKind.JOURNAL_RESTORED,
    }
)
"""All but each day's work: commands that were accepted, ended or cancelled, drains, starts and stops."""

EVIDENCE_SCHEMA = """
CREATE TABLE audit_evidence (
    kept INTEGER PRIMARY KEY,
    chain INTEGER NOT NULL,
    number INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    kind TEXT NOT NULL,
    detail BLOB NOT NULL,
    hash BLOB NOT NULL,
    previous_hash BLOB NOT NULL
);
CREATE INDEX audit_evidence_kinds ON audit_evidence (kind, kept);
CREATE TABLE audit_evidence_gone (kind TEXT PRIMARY KEY, rows INTEGER NOT NULL) WITHOUT ROWID;
"""
_COLUMNS = "chain, number, at_ms, kind, detail, hash, previous_hash"
_KEEP = f"INSERT INTO audit_evidence ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"  # noqa: S608  constants
_KEPT = f"SELECT {_COLUMNS} FROM audit_evidence ORDER BY kept"  # noqa: S608  constants
_OF_KIND = f"SELECT kept, length(detail) + {ROW_BYTES} FROM audit_evidence WHERE kind = ? ORDER BY kept DESC"  # noqa: S608
_GONE = (
    "INSERT INTO audit_evidence_gone VALUES (?, ?) ON CONFLICT (kind) DO UPDATE SET rows = audit_evidence_gone.rows"
    " + excluded.rows"
)


@dataclass(frozen=True, slots=True)
class EvidenceRow:
    """A row as it was chained.

    Args:
        chain: of the node, that it stands in.
        number: in that chain; 0 when it was counted and not chained, since the server took no rows of its kind.
        at_ms: server time as the node knew it, Unix milliseconds.
        kind: what happened.
        detail: canonical JSON.
        hash: 32 bytes; empty when it was not chained.
        previous_hash: of the row before it; empty when it was not chained.
    """

    chain: int
    number: int
    at_ms: int
    kind: str
    detail: bytes
    hash: bytes
    previous_hash: bytes


def keep_evidence(connection: sqlite3.Connection, rows: Sequence[EvidenceRow]) -> None:
    """Write rows within a transaction; the oldest of their kinds go.

    Raises:
        sqlite3.Error: nothing of the transaction may stand.
    """
    connection.executemany(_KEEP, map(astuple, rows))
    for kind in dict.fromkeys(row.kind for row in rows):
        _trim(connection, kind)


def kept_evidence(connection: sqlite3.Connection) -> tuple[list[EvidenceRow], dict[str, int]]:
    """What is kept, oldest first, and how many rows of which kind are not any more.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    rows = [EvidenceRow(*row) for row in connection.execute(_KEPT)]
    return rows, dict(connection.execute("SELECT kind, rows FROM audit_evidence_gone ORDER BY kind"))


def _trim(connection: sqlite3.Connection, kind: str) -> None:
    found = connection.execute(_OF_KIND, (kind,)).fetchall()
    size = 0
    for count, (kept, length) in enumerate(found):
        size += length
        if count and (count == MAX_ROWS or size > MAX_BYTES):
            connection.execute("DELETE FROM audit_evidence WHERE kind = ? AND kept <= ?", (kind, kept))
            connection.execute(_GONE, (kind, len(found) - count))
            return
