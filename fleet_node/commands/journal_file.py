"""The journal as a file: made when the node is enrolled, opened and checked at every start.

It is made once and never again: a node that lost its journal would run everything twice, so a journal that is missing,
damaged or another node's stops the node.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from fleet_node.commands.audit_store import AUDIT_SCHEMA, FIRST_STATE
from fleet_node.commands.evidence_store import EVIDENCE_SCHEMA
from fleet_node.commands.intent_store import INTENTS_SCHEMA

SCHEMA_VERSION = 8
_FIRST_VERSION = 1
CHECKPOINT_PAGES = 256
"""Pages in the write-ahead log before it is folded in and written over from its start: overwriting costs a disk less
than letting a file grow, and a small log stays in the page cache."""

_SCHEMA = f"""
CREATE TABLE entries (
    seq INTEGER PRIMARY KEY,
    command_id BLOB NOT NULL,
    digest BLOB NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    arguments BLOB NOT NULL,
    not_after_ms INTEGER NOT NULL,
    accepted_at_ms INTEGER NOT NULL,
    state INTEGER NOT NULL,
    report_no INTEGER NOT NULL,
    started_at_ms INTEGER NOT NULL,
    report BLOB NOT NULL
);
CREATE TABLE tombstones (seq INTEGER PRIMARY KEY, command_id BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE counters (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    node_id TEXT NOT NULL,
    last_accepted_seq INTEGER NOT NULL,
    last_report_no INTEGER NOT NULL,
    acked_report_no INTEGER NOT NULL
);
{INTENTS_SCHEMA}
{AUDIT_SCHEMA}
{EVIDENCE_SCHEMA}
PRAGMA user_version = {SCHEMA_VERSION};
"""
_START_OVER = (
    "Without it this node cannot know what it already ran, so it does not start. Revoke the node"
    " (`fleetctl nodes revoke`), then enroll it again with an empty state folder"
)


class JournalDamagedError(Exception):
    """The journal cannot be used at all. Says what is wrong and what to do."""

    def __init__(self, path: Path, problem: str, remedy: str) -> None:
        super().__init__(f"{path}: {problem}. {remedy}")
        self.problem = problem
        self.remedy = remedy


def ensure_journal(path: Path, node_id: str) -> None:
    """Make an empty journal for a node that is being enrolled; one that is there already must be this node's.

    Raises:
        JournalDamagedError: what is there cannot be used.
        OSError: the folder cannot be written.
    """
    if path.exists():
        open_file(path, node_id).close()
        return
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    connection = sqlite3.connect(draft, isolation_level=None)
    try:
        connection.executescript(_SCHEMA)
        connection.execute("INSERT INTO counters VALUES (1, ?, 0, 0, 0)", (node_id,))
        connection.execute(FIRST_STATE)
    except sqlite3.DatabaseError as error:
        raise JournalDamagedError(
            path, f"the journal cannot be made ({error})", "Make room on its disk, then run `fleet-node enroll` again"
        ) from error
    finally:
        connection.close()
    draft.rename(path)  # whole or absent: an empty file would look like a damaged journal
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def open_file(path: Path, node_id: str) -> sqlite3.Connection:
    """A connection to a journal that is whole, of this version, and that node's. Any thread may use it, one at a time.

    Raises:
        JournalDamagedError: missing, damaged, another node's, in use, or not readable.
    """
    if not path.exists():
        raise JournalDamagedError(path, "the journal is missing", _START_OVER)
    # Transactions are begun and ended by statements that stay prepared; sqlite3's own are parsed each time.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.0)
    try:
        # Nobody else reads it, and a second process must not write it; this also spares the shared-memory file.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cache_size = -1024")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("COMMIT")
        _check(connection, path, node_id)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise _damaged(path, error) from error
    except JournalDamagedError:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection, path: Path, node_id: str) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise JournalDamagedError(
            path, f"it is of version {version}", "A newer fleet-node wrote it: install that one again"
        )
    problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok" or version < _FIRST_VERSION:
        raise JournalDamagedError(path, "the journal is damaged", _START_OVER)
    if version < SCHEMA_VERSION:  # no release wrote such a one
        raise JournalDamagedError(path, f"it is of version {version}, which this fleet-node cannot read", _START_OVER)
    row = connection.execute("SELECT node_id FROM counters").fetchone()
    if row is None or row[0] != node_id:
        raise JournalDamagedError(
            path, f"it is not the journal of node {node_id}", "Put this node's own state folder back"
        )


def _damaged(path: Path, error: sqlite3.DatabaseError) -> JournalDamagedError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return JournalDamagedError(path, "another process uses it", "End the other fleet-node of this state folder")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return JournalDamagedError(path, f"the journal is damaged ({error})", _START_OVER)
    return JournalDamagedError(
        path, f"it cannot be opened ({error})", "Make room on its disk, or make file and folder writable for this user"
    )
