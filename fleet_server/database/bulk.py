"""Many rows with one statement.

A statement for each row costs its way to the database and back, some ten microseconds at either end, where the row
itself takes two to five. SQLite is in the same process and takes them one by one; for PostgreSQL rows travel together,
as one array for each column. Not by COPY, and not by a pipeline of statements: either waits for more, and while it
waits none of PostgreSQL's timeouts counts. A process that was frozen in one would hold all that its transaction had
locked until it was thawed. Errors are SQLAlchemy's, as in `statements`.
"""

# Every part of a statement is a constant of the module that names it; values only ever travel as parameters.
# ruff: noqa: S608

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, TypeVar

from sqlalchemy import Connection

from fleet_server.database.statements import Parameters, execute, execute_many, fetch

_VALUE = re.compile(r"\bv\.(\w+)")
_ROWS_AT_ONCE = 64
_MOST_IN_ARRAYS = 1024
_LONGEST_IN_ARRAYS = 8 * 1024
_MOST_BYTES = 1024 * 1024


def insert_many(
    conn: Connection, table: str, columns: Mapping[str, str], rows: Sequence[Parameters], suffix: str = ""
) -> None:
    """Insert rows.

    On SQLite each execution gives the interpreter's lock away and has to wait for it again, beside a busy event loop
    for longer than a row takes to write, so there, too, a statement has many.

    Args:
        columns: PostgreSQL type by name of the columns.
        rows: one value for each of `columns`; in one array of each go so many that their long values fit memory, which
            is theirs to see to (`bounded`).
        suffix: ``ON CONFLICT ...``.
    """
    named = f"{table} ({', '.join(columns)})"
    if conn.dialect.name == "postgresql" and len(rows) > 1:
        kinds = list(columns.values())
        # Side by side, not from one `unnest` of all: what that gives is kept as a table first.
        values = ", ".join(f"unnest({array})" for array in _marks(kinds))
        text = f"INSERT INTO {named} SELECT {values}{suffix}"
        for start in range(0, len(rows), _MOST_IN_ARRAYS):
            execute(conn, text, _arrays(kinds, rows[start : start + _MOST_IN_ARRAYS]))
        return
    row = f"({', '.join('?' * len(columns))})"
    whole = 0
    if conn.dialect.name == "sqlite":
        whole = len(rows) - len(rows) % _ROWS_AT_ONCE
        text = f"INSERT INTO {named} VALUES {', '.join([row] * _ROWS_AT_ONCE)}{suffix}"
        for start in range(0, whole, _ROWS_AT_ONCE):
            execute(conn, text, list(chain.from_iterable(rows[start : start + _ROWS_AT_ONCE])))
    if whole < len(rows):
        execute_many(conn, f"INSERT INTO {named} VALUES {row}{suffix}", rows[whole:])


Row = TypeVar("Row", bound=Parameters)


def bounded(rows: Sequence[Row], place: int) -> Iterator[Sequence[Row]]:
    """Rows in their order, in parts of which the values at `place` have together a mebibyte, or are one."""
    start = size = 0
    for index, row in enumerate(rows):
        size += len(row[place])
        if size > _MOST_BYTES and index > start:
            yield rows[start:index]
            start, size = index, len(row[place])
    if start < len(rows):
        yield rows[start:]


def fetch_of(
    conn: Connection,
    select: str,
    column: str,
    ids: Sequence[str] | Sequence[bytes],
    *,
    lock: str = "",
    fetch: Callable[[Connection, str, Parameters], list[tuple[Any, ...]]] = fetch,
) -> list[tuple[Any, ...]]:
    """The rows whose `column` is among these ids. On PostgreSQL however many are one statement, prepared once.

    Args:
        select: ``SELECT ... FROM table``.
        lock: suffix that locks the rows, one after another as `column` grows: who locks others of them in the same
            order does not wait in a circle.
        fetch: or `fetch_any`.
    """
    if conn.dialect.name == "postgresql":
        order = f" ORDER BY {column}{lock}" if lock else ""
        return fetch(conn, f"{select} WHERE {column} = ANY(?){order}", (list(ids),)) if ids else []
    found: list[tuple[Any, ...]] = []
    for start in range(0, len(ids), _MOST_IN_ARRAYS // 2):
        chunk = ids[start : start + _MOST_IN_ARRAYS // 2]
        found += fetch(conn, f"{select} WHERE {column} IN ({', '.join('?' * len(chunk))})", chunk)
    return found


@dataclass(frozen=True)
class EachUpdate:
    """An UPDATE that gives every row values of its own.

    Args:
        table: called ``t`` in the other texts.
        values: PostgreSQL type by name of the values of a row, in their order.
        assign: ``column = v.name, ...``.
        key: which row of ``t`` a row of values ``v`` belongs to.
        condition: what has to hold of that row.
    """

    table: str
    values: Mapping[str, str]
    assign: str
    key: str
    condition: str = ""

    @cached_property
    def for_one(self) -> tuple[str, Sequence[int]]:
        """Text for one row with ``?``, and which of the row's values each of these is."""
        text = f"UPDATE {self.table} AS t SET {self.assign} WHERE {self._where}"
        places = {name: index for index, name in enumerate(self.values)}
        return _VALUE.sub("?", text), [places[name] for name in _VALUE.findall(text)]

    @cached_property
    def for_arrays(self) -> str:
        """Text for many rows, an array for each value."""
        values = f"unnest({', '.join(_marks(self.values.values()))}) AS v ({', '.join(self.values)})"
        return f"UPDATE {self.table} AS t SET {self.assign} FROM {values} WHERE {self._where}"

    @cached_property
    def _where(self) -> str:
        # By what it knows of the columns in a condition PostgreSQL may take it that no row fulfils it, begin with those
        # rows, and look through the whole table once for each key. A CASE it takes to hold for half of them.
        return f"{self.key} AND CASE WHEN {self.condition} THEN TRUE ELSE FALSE END" if self.condition else self.key

    def run(self, conn: Connection, rows: Sequence[Parameters]) -> int:
        """How many rows were changed. No two of `rows` may be about the same one."""
        changed = 0
        if conn.dialect.name == "postgresql" and len(rows) > 1:
            rows, short = [], rows
            for start in range(0, len(short), _MOST_IN_ARRAYS):
                chunk, long = self._apart(short[start : start + _MOST_IN_ARRAYS])
                rows += long
                if chunk:
                    # Planned anew each time: a plan that was made for a small table would outlive its being one.
                    arrays = _arrays(self.values.values(), chunk)
                    changed += execute(conn, self.for_arrays, arrays, prepare=False)
        if rows:
            text, places = self.for_one
            changed += execute_many(conn, text, [[row[place] for place in places] for row in rows])
        return changed

    def _apart(self, rows: Sequence[Parameters]) -> tuple[Sequence[Parameters], Sequence[Parameters]]:
        """Rows that go together, and those with a long value, which would make an array of any size."""
        places = [place for place, kind in enumerate(self.values.values()) if kind in _LONG_KINDS]
        columns = list(zip(*rows, strict=True))
        if all(max(map(len, filter(None, columns[place])), default=0) <= _LONGEST_IN_ARRAYS for place in places):
            return rows, []
        apart: tuple[list[Parameters], list[Parameters]] = ([], [])
        for row in rows:
            apart[any(len(row[place] or "") > _LONGEST_IN_ARRAYS for place in places)].append(row)
        return apart


def _marks(kinds: Iterable[str]) -> Iterator[str]:
    return (f"CAST(? AS {kind}[])" for kind in kinds)


def _arrays(kinds: Iterable[str], rows: Sequence[Parameters]) -> list[str]:
    return [_LITERALS[kind](column) for kind, column in zip(kinds, zip(*rows, strict=True), strict=True)]


def _numbers(column: Iterable[int]) -> str:
    return "{" + ",".join(map(str, map(int, column))) + "}"


def _floats(column: Iterable[float]) -> str:
    return "{" + ",".join(map(repr, map(float, column))) + "}"


def _texts(column: Sequence[str]) -> str:
    # Ids and reasons have nothing to escape: looked for in all of them at once.
    together = '","'.join(column)
    if "\\" not in together and together.count('"') == 2 * (len(column) - 1):
        return '{"' + together + '"}'
    return "{" + ",".join(['"' + text.replace("\\", r"\\").replace('"', r"\"") + '"' for text in column]) + "}"


def _octets(column: Sequence[bytes | None]) -> str:
    return "{" + ",".join(["NULL" if data is None else rf'"\\x{data.hex()}"' for data in column]) + "}"


_LITERALS: Mapping[str, Callable[[Any], str]] = {
    "bigint": _numbers,
    "integer": _numbers,
    "double precision": _floats,
    "text": _texts,
    "bytea": _octets,
}
"""An array as PostgreSQL reads it; the driver's own takes a microsecond for each value, which is most of the cost."""
_LONG_KINDS = ("text", "bytea")
