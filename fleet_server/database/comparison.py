"""How the tables of a database differ from `schema`: what a revision number alone does not tell.

A restored dump, a migration that was cut off by hand or an index that somebody dropped leaves the number as it was.
Tables of others are none of our business; defaults of columns are not compared, for SQLite gives them back as text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from fleet_server.database.retired import RETIRED
from fleet_server.database.schema import metadata

_UNKNOWN = "is unknown here"


def differences(connection: Connection, *, unknown_too: bool = True) -> list[str]:
    """One clause for each difference, such as "index ix_command_id is missing"; none when all is as it should be.

    Tables, columns with their types, indexes, unique constraints and foreign keys.

    Args:
        connection: to the database.
        unknown_too: what the database has and `schema` has not is a difference as well.
    """
    context = MigrationContext.configure(connection, opts={"include_name": _is_ours, "compare_type": True})
    clauses = [clause for change in compare_metadata(context, metadata) for clause in _clauses(change)]
    return [clause for clause in clauses if unknown_too or not clause.endswith(_UNKNOWN)]


def _is_ours(name: str | None, kind: str, _parents: Mapping[str, str | None]) -> bool:
    if kind == "index":
        return name not in RETIRED
    return kind != "table" or name in metadata.tables


def _clauses(change: Any) -> Iterator[str]:
    """Alembic says what it would do about a difference; we say what the difference is."""
    if isinstance(change, list):  # all that is to be modified about one column
        for one in change:
            yield from _clauses(one)
        return
    match change:
        case ("add_table", table):
            yield f"table {table.name} is missing"
        case ("add_column", _, table, column):
            yield f"column {table}.{column.name} is missing"
        case ("remove_column", _, table, column):
            yield f"column {table}.{column.name} {_UNKNOWN}"
        case ("modify_type", _, table, column, _, found, wanted):
            yield f"column {table}.{column} is {found}, not {wanted}"
        case ("modify_nullable", _, table, column, _, _, wanted):
            yield f"column {table}.{column} {'must not be NULL' if wanted else 'may be NULL'}"
        case (("add_index" | "add_constraint" | "add_fk") as what, part):
            yield f"{_KINDS[what]} {part.name} of {part.table.name} is missing"
        case (("remove_index" | "remove_constraint" | "remove_fk") as what, part):
            yield f"{_KINDS[what]} {part.name or '(without a name)'} of {part.table.name} {_UNKNOWN}"
        case (what, *_):
            yield str(what)


_KINDS = {
    "add_index": "index",
    "remove_index": "index",
    "add_constraint": "constraint",
    "remove_constraint": "constraint",
    "add_fk": "foreign key",
    "remove_fk": "foreign key",
}
