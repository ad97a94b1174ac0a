"""SQL on the journal's tables `intents` and `intent_times`; `fleet_node.commands.store` calls it within its commits."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import astuple

from fleet_node.commands.used_intents import Use, UsedIntents

INTENTS_SCHEMA = """
CREATE TABLE intents (
    intent_id BLOB PRIMARY KEY,
    seq INTEGER NOT NULL,
    issued_at_ms INTEGER NOT NULL,
    not_after_ms INTEGER NOT NULL,
    signing BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE intent_times (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    latest_signed_ms INTEGER NOT NULL,
    issued_after_ms INTEGER NOT NULL
);
INSERT INTO intent_times VALUES (1, 0, 0);
"""


def use_intents(connection: sqlite3.Connection, uses: Sequence[Use]) -> None:
    """Write uses within the transaction that accepts their commands. An intent that is there already fails it.

    Raises:
        sqlite3.Error: nothing of the transaction may stand.
    """
    connection.executemany("INSERT INTO intents VALUES (?, ?, ?, ?, ?)", map(astuple, uses))
    latest_ms = max(use.issued_at_ms for use in uses)
    connection.execute("UPDATE intent_times SET latest_signed_ms = max(latest_signed_ms, ?)", (latest_ms,))
    connection.execute("DELETE FROM intents WHERE not_after_ms <= (SELECT latest_signed_ms FROM intent_times)")


def refuse_intents_until(connection: sqlite3.Connection, issued_after_ms: int) -> None:
    """Write, within a transaction, that intents issued up to then count for nothing.

    Raises:
        sqlite3.Error: nothing of the transaction may stand.
    """
    connection.execute("UPDATE intent_times SET issued_after_ms = max(issued_after_ms, ?)", (issued_after_ms,))


def used_intents(connection: sqlite3.Connection) -> UsedIntents:
    """What the journal remembers.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    times = connection.execute("SELECT latest_signed_ms, issued_after_ms FROM intent_times").fetchone()
    rows = connection.execute("SELECT intent_id, seq, issued_at_ms, not_after_ms, signing FROM intents")
    return UsedIntents([Use(*row) for row in rows], *times)
