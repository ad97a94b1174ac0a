"""SQL over `secret_key_state` and `sealed_secrets`: which secret encryption key writes, and what outlives it."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import delete, insert, select, update

from fleet_server.database.engine import Connection, for_update
from fleet_server.database.installation_schema import sealed_secrets, secret_key_state
from fleet_server.database.schema import cluster_authorities


class KeyStateRow(NamedTuple):
    """Which key the newest change named, when it began and ended, and the MAC over that; `master_keys` verifies it."""

    name: str
    key_id: bytes
    changed_at_ms: int
    done_at_ms: int
    mac: bytes


def lock_clusters(conn: Connection) -> None:
    """Let nobody else change the key until this transaction ends."""
    every = "SELECT cluster_id FROM clusters"
    conn.exec_driver_sql(every + for_update(conn)).fetchall()


def load_state(conn: Connection, *, lock: bool = False) -> KeyStateRow | None:
    """The record of the newest change; None when there was none.

    Args:
        lock: nobody else changes it before this transaction ends.
    """
    text = f"SELECT {', '.join(KeyStateRow._fields)} FROM secret_key_state"  # noqa: S608 - constants
    row = conn.exec_driver_sql(text + (for_update(conn) if lock else "")).fetchone()
    return None if row is None else KeyStateRow(*row)


def replace_state(conn: Connection, row: KeyStateRow) -> None:
    """Keep this record in place of the one before, in its row: who waits to lock it would find none after a delete."""
    named = secret_key_state.c.name == row.name
    conn.execute(delete(secret_key_state).where(~named))
    if not conn.execute(update(secret_key_state).where(named).values(row._asdict())).rowcount:
        conn.execute(insert(secret_key_state).values(row._asdict()))


def newest_sealed_authority(conn: Connection) -> bytes | None:
    """The sealed private key of the newest authority: nothing private is kept of those before it."""
    newest = cluster_authorities.c.generation.desc()
    row = conn.execute(select(cluster_authorities.c.sealed_private).order_by(newest).limit(1)).fetchone()
    return None if row is None else bytes(row[0])


def read_sealed(conn: Connection, name: str) -> bytes | None:
    """What is kept sealed under a name."""
    row = conn.execute(select(sealed_secrets.c.sealed).where(sealed_secrets.c.name == name)).fetchone()
    return None if row is None else bytes(row[0])


def put_sealed(conn: Connection, name: str, sealed: bytes) -> None:
    """Keep it in place of what was there."""
    conn.execute(delete(sealed_secrets).where(sealed_secrets.c.name == name))
    conn.execute(insert(sealed_secrets).values(name=name, sealed=sealed))
