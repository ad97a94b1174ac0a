"""Many rows with one statement mean what one statement for each of them means, on both databases."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from sqlalchemy import Connection

from fleet_server.database.bulk import EachUpdate, insert_many
from fleet_server.database.engine import Database, IntegrityError
from fleet_server.database.statements import fetch

COLUMNS = {"writer": "text", "number": "bigint", "hash": "bytea", "mac": "bytea"}
ODD = ("", "a,b", '"', "\\", "{}", "NULL", "'; --", " \t\n", "ü 😀")
UPDATE = EachUpdate(
    "audit_heads",
    {"number": "bigint", "hash": "bytea", "mac": "bytea", "writer": "text"},
    "number = v.number, hash = v.hash, mac = v.mac",
    "t.writer = v.writer",
    "t.number < 100",
)


def heads(conn: Connection) -> list[tuple[object, ...]]:
    return sorted((row[0], row[1], bytes(row[2]), bytes(row[3])) for row in fetch(conn, "SELECT * FROM audit_heads"))


def rows(count: int) -> list[tuple[str, int, bytes, bytes]]:
    return [(f"{number}{ODD[number % len(ODD)]}", number, bytes([number % 256]), b"\\x") for number in range(count)]


@pytest.mark.parametrize("count", [0, 1, 5, 70, 300])
async def test_what_is_inserted_is_what_was_given(database: Database, count: int) -> None:
    await database.write(lambda tx: insert_many(tx.conn, "audit_heads", COLUMNS, rows(count)))
    assert await database.read(heads) == sorted(rows(count))


@pytest.mark.parametrize("count", [2, 100])
async def test_a_taken_key_is_an_integrity_error(database: Database, count: int) -> None:
    with pytest.raises(IntegrityError):
        await database.write(lambda tx: insert_many(tx.conn, "audit_heads", COLUMNS, [*rows(count), *rows(1)]))
    assert await database.read(heads) == []


@pytest.mark.parametrize("count", [0, 1, 2, 1500])
async def test_each_row_gets_its_own_values_where_the_condition_holds(database: Database, count: int) -> None:
    await database.write(lambda tx: insert_many(tx.conn, "audit_heads", COLUMNS, rows(count)))
    changes: Sequence[tuple[int, bytes, bytes, str]] = [
        (number + 1000, bytes([number % 7]) * (20_000 if number == 1 else 2), b"", writer)
        for writer, number, _, _ in rows(count)
    ]
    absent = (7, b"", b"", "nobody")
    changed = await database.write(lambda tx: UPDATE.run(tx.conn, [*changes, absent]))
    assert changed == min(count, 100)
    expected = [
        (row[0], change[0], change[1], change[2]) if row[1] < 100 else row
        for row, change in zip(rows(count), changes, strict=True)
    ]
    assert await database.read(heads) == sorted(expected)
