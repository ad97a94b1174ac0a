"""SQL on the journal's tables `audit` and `audit_state`; `fleet_node.commands.audit_log` calls it within its commits.

Every call raises `sqlite3.Error` when it cannot be done: nothing of its transaction may stand then.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from fleet.node_audit import ROW_BYTES
from fleet_node.commands.evidence_store import EvidenceRow, kept_evidence

AUDIT_SCHEMA = """
CREATE TABLE audit (
    number INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, kind TEXT NOT NULL, detail BLOB NOT NULL, hash BLOB NOT NULL
);
CREATE TABLE audit_state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    number INTEGER NOT NULL,
    hash BLOB NOT NULL,
    sealed_seq INTEGER NOT NULL,
    sealed_report_no INTEGER NOT NULL,
    acked_number INTEGER NOT NULL,
    dropped TEXT NOT NULL,
    chain INTEGER NOT NULL,
    next_chain INTEGER NOT NULL,
    owner_pin TEXT NOT NULL
);
"""
FIRST_STATE = "INSERT INTO audit_state VALUES (1, 0, x'', 0, 0, 0, '{}', 0, 0, '')"


class AuditRow(NamedTuple):
    """One row of the chain: `hash` covers all of it, and the hash before."""

    number: int
    at_ms: int
    kind: str
    detail: bytes
    hash: bytes


class AuditState(NamedTuple):
    """How the chain stands.

    Args:
        number: of its newest row; 0 before the first.
        hash: of that row; empty before the first.
        sealed_seq: acceptances up to it have their row.
        sealed_report_no: ends up to it have theirs.
        acked_number: the server has every row up to it.
        dropped: what was left out since the last gap: JSON, count by kind.
        chain: that is written.
        next_chain: that a floor named; the same when none waits.
        owner_pin: of the owner that the newest row names.
    """

    number: int
    hash: bytes
    sealed_seq: int
    sealed_report_no: int
    acked_number: int
    dropped: str
    chain: int
    next_chain: int
    owner_pin: str


_ROW = ", ".join(AuditRow._fields)
_STATE = ", ".join(AuditState._fields)
_INSERT = "INSERT INTO audit VALUES (?, ?, ?, ?, ?)"
_FIND = f"SELECT {_ROW} FROM audit WHERE number = ?"  # noqa: S608  constants
_AFTER = f"SELECT {_ROW} FROM audit WHERE number > ? ORDER BY number LIMIT ?"  # noqa: S608
_TOLD = "SELECT at_ms, kind, detail FROM audit WHERE number > ? AND kind <> 'chain.signed' ORDER BY number"
_BYTES = f"SELECT kind, sum(length(detail) + {ROW_BYTES}) FROM audit WHERE number > ? GROUP BY kind"  # noqa: S608
_SET_STATE = f"UPDATE audit_state SET {', '.join(f'{name} = ?' for name in AuditState._fields)}"  # noqa: S608


def load_state(connection: sqlite3.Connection) -> AuditState:
    """How the chain stands."""
    return AuditState(*connection.execute(f"SELECT {_STATE} FROM audit_state").fetchone())  # noqa: S608  constants


def save_state(connection: sqlite3.Connection, state: AuditState) -> None:
    """Write down how the chain stands."""
    connection.execute(_SET_STATE, state)


def insert_rows(connection: sqlite3.Connection, rows: Iterable[AuditRow]) -> None:
    """Append rows."""
    connection.executemany(_INSERT, rows)


def forget_rows(connection: sqlite3.Connection, number: int) -> None:
    """Delete every row up to `number`."""
    connection.execute("DELETE FROM audit WHERE number <= ?", (number,))


@contextlib.contextmanager
def chain_replaced(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction of its own, in which every row of the chain before is deleted; what the block writes takes their
    place, or none of it stands."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM audit")
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def find_row(connection: sqlite3.Connection, number: int) -> AuditRow | None:
    """A row; None for one that is forgotten or yet to be."""
    found = connection.execute(_FIND, (number,)).fetchone()
    return None if found is None else AuditRow(*found)


def rows_after(connection: sqlite3.Connection, number: int, limit: int) -> Iterator[AuditRow]:
    """Rows behind `number`, in order; those that are forgotten are passed over."""
    return map(AuditRow._make, connection.execute(_AFTER, (number, limit)))


def told_after(connection: sqlite3.Connection, number: int) -> Iterable[tuple[int, str, bytes]]:
    """(at_ms, kind, detail) of rows behind `number`, in order, without signatures."""
    return connection.execute(_TOLD, (number,))


def bytes_after(connection: sqlite3.Connection, number: int) -> Iterable[tuple[str, int]]:
    """Kind and bytes of what stands behind `number`, a pair a kind."""
    return connection.execute(_BYTES, (number,))


def read_copy(path: Path) -> tuple[AuditState, Sequence[AuditRow], list[EvidenceRow], dict[str, int]]:
    """State, rows and evidence, and how much evidence of which kind is gone, of a journal that no process has open."""
    uri = f"file:{quote(str(path))}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        return load_state(connection), list(rows_after(connection, 0, -1)), *kept_evidence(connection)
