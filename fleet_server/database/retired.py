"""Indexes that only servers of an older revision need.

A migration runs while such servers serve, and takes nothing from them. What they alone look things up by goes later:
with the first `fleet-server db upgrade` that finds none of them, which is the first one where none ran before, and
otherwise one more once all were replaced. Until then it costs what an index costs, and nobody else reads it. An older
server that comes back all the same works without it, and reads the whole table where it used it.
"""

from __future__ import annotations

from sqlalchemy import Connection, inspect, select

from fleet_server.database.replica_schema import replicas

RETIRED = {"ix_commands_open": ("commands", "0002")}
"""By name: its table, and the first revision whose servers do without it."""

_GONE = ("STOPPED", "LOST")


def still_there(connection: Connection) -> list[str]:
    """Which of them the database has."""
    inspector = inspect(connection)
    return [
        name for name, (table, _) in RETIRED.items() if name in {each["name"] for each in inspector.get_indexes(table)}
    ]


def drop(connection: Connection) -> list[str]:
    """Drop those that no server needs any more; their names."""
    unused = [name for name in still_there(connection) if not users(connection, name)]
    for name in unused:
        connection.exec_driver_sql(f"DROP INDEX IF EXISTS {name}")
    return unused


def users(connection: Connection, name: str) -> list[str]:
    """Ids of the replicas that need an index, as far as they are not known to have ended. SQLite's only server is
    stopped while its schema is changed, whatever its row says."""
    if connection.dialect.name == "sqlite":
        return []
    _, first_without = RETIRED[name]
    older = (replicas.c.schema_revision < first_without) & replicas.c.state.not_in(_GONE)
    return sorted(connection.execute(select(replicas.c.replica_id).where(older)).scalars())
