"""Servers of an older revision work while a migration runs, and after it: the first is frozen, the others only add."""

import hashlib
import io
import re
from collections.abc import Callable

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations

from fleet_server.database import migrate
from fleet_server.database.migrations.indexes import create_index
from fleet_server.database.replica_schema import REVISION

_FIRST_POSTGRESQL = "61a4b0e5f2119700f63bd6f8dcb0353d44701ddb42bc5dfc573d0dd15741148a"
_FIRST_SQLITE = "387f31810af052af95cff448c574c89e51d0bb431447fa63b062f905c4302a50"

_ALLOWED = (
    re.compile(r"CREATE TABLE \w+ "),
    re.compile(r"CREATE INDEX (CONCURRENTLY )?\w+ ON \w+ "),
    re.compile(r"ALTER TABLE \w+ SET \(fillfactor = \d+\)$"),  # of pages to come
)
# A constant default: PostgreSQL writes no row again. What has none may be NULL.
_TYPE = r"(TEXT|VARCHAR\(\d+\)|BIGINT|INTEGER|DOUBLE( PRECISION)?|BYTEA|BLOB|BOOLEAN)"
_COLUMN = re.compile(rf"ALTER TABLE \w+ ADD COLUMN \w+ {_TYPE}( DEFAULT ('[^']*'|-?\d+|false|true) NOT NULL)?$")
_ADDED = re.compile(r"ALTER TABLE (?P<table>\w+) ADD COLUMN (?P<column>\w+) ")
# An older server knows nothing of a column that the same migration added, so it may be filled.
_FILLED = re.compile(
    r"(ALTER TABLE (?P<table>\w+) ALTER COLUMN (?P<column>\w+) SET DEFAULT '\w*'$)"
    r"|(UPDATE (?P<filled>\w+) SET (?P<with>\w+) = \w+ WHERE [^,]*\(?\w+, \w+\)? (NOT )?IN \(SELECT )"
)


def statements(upgrade: Callable[[], None], dialect: str) -> list[str]:
    """What a migration would have executed."""
    written = io.StringIO()
    context = MigrationContext.configure(dialect_name=dialect, opts={"as_sql": True, "output_buffer": written})
    with Operations.context(context):
        upgrade()
    return [" ".join(statement.split()) for statement in written.getvalue().split(";") if statement.strip()]


_AGAIN = re.compile(r"(BEGIN|COMMIT|SET lock_timeout = \d+)$|DROP INDEX CONCURRENTLY IF EXISTS (?P<index>\w+)$")


def refused(written: list[str]) -> list[str]:
    """Which of the statements do more than add; an index that is built again is dropped in between."""
    found = []
    added = {match.groups() for match in map(_ADDED.match, written) if match}
    for statement, following in zip(written, [*written[1:], ""], strict=True):
        again = _AGAIN.match(statement)
        if again and again["index"]:
            taken = following.startswith(f"CREATE INDEX CONCURRENTLY {again['index']} ")
        else:
            taken = again is not None or only_adds(statement) or fills(statement, added)
        found += [] if taken else [statement]
    return found


def fills(statement: str, added: set[tuple[str, ...]]) -> bool:
    match = _FILLED.match(statement)
    return match is not None and (match["table"] or match["filled"], match["column"] or match["with"]) in added


def only_adds(statement: str) -> bool:
    return any(allowed.match(statement) for allowed in _ALLOWED) or _COLUMN.match(statement) is not None


@pytest.mark.parametrize(("dialect", "digest"), [("postgresql", _FIRST_POSTGRESQL), ("sqlite", _FIRST_SQLITE)])
def test_the_first_migration_is_frozen(dialect: str, digest: str) -> None:
    first = migrate.migrations()[0]
    text = "\n".join(statements(first.module.upgrade, dialect))
    assert hashlib.sha256(text.encode()).hexdigest() == digest, "v0001 was changed: what is new goes into a later one"


@pytest.mark.parametrize("dialect", ["postgresql", "sqlite"])
def test_every_later_migration_only_adds(dialect: str) -> None:
    first, *later = migrate.migrations()
    assert first.revision == "0001"
    for script in later:
        assert refused(statements(script.module.upgrade, dialect)) == [], script.revision
        assert not hasattr(script.module, "downgrade"), script.revision


def test_an_index_that_is_built_beside_traffic_is_taken_and_one_that_goes_is_not() -> None:
    built = statements(lambda: create_index("ix_new", "nodes", ["site"]), "postgresql")
    assert "CREATE INDEX CONCURRENTLY ix_new ON nodes (site)" in built
    assert refused(built) == []
    gone = "DROP INDEX CONCURRENTLY IF EXISTS ix_nodes_decided_at"
    assert refused([gone]) == refused([gone, built[-2]]) == [gone]


def test_a_column_is_filled_by_the_migration_that_adds_it_and_no_other_one() -> None:
    add = "ALTER TABLE nodes ADD COLUMN a INTEGER DEFAULT '0' NOT NULL"
    fill = [
        "ALTER TABLE nodes ALTER COLUMN a SET DEFAULT '1'",
        "UPDATE nodes SET a = 1 WHERE (node_id, site) IN (SELECT node_id, site FROM others)",
    ]
    assert refused([add, *fill]) == []
    assert refused(fill) == fill
    other = [each.replace(" a ", " site ") for each in fill]
    assert refused([add, *other]) == other


def test_revisions_are_numbers_that_grow_and_name_the_oldest_server_beside_them() -> None:
    scripts = migrate.migrations()
    assert [script.revision for script in scripts] == [f"{number:04}" for number in range(1, len(scripts) + 1)]
    assert scripts[-1].revision == REVISION
    for script in scripts[1:]:
        assert "0001" <= script.module.oldest_server < script.revision


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE nodes DROP COLUMN site",
        "ALTER TABLE nodes ADD COLUMN a TEXT NOT NULL",
        "ALTER TABLE nodes ADD COLUMN a BIGINT DEFAULT random() NOT NULL",
        "ALTER TABLE nodes ALTER COLUMN site TYPE TEXT",
        "ALTER TABLE nodes RENAME TO n",
        "ALTER TABLE nodes ADD CONSTRAINT c UNIQUE (site)",
        "CREATE UNIQUE INDEX i ON nodes (site)",
        "UPDATE nodes SET site = ''",
        "DROP TABLE nodes",
        "DROP INDEX ix_nodes_decided_at",
    ],
)
def test_what_an_older_server_would_trip_over_is_refused(statement: str) -> None:
    assert not only_adds(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE nodes ADD COLUMN a TEXT",
        "ALTER TABLE nodes ADD COLUMN a VARCHAR(64) DEFAULT '' NOT NULL",
        "ALTER TABLE nodes ADD COLUMN a BIGINT DEFAULT '0' NOT NULL",
        "ALTER TABLE nodes ADD COLUMN a DOUBLE PRECISION DEFAULT 0 NOT NULL",
        "CREATE INDEX CONCURRENTLY ix_a ON nodes (a)",
        "CREATE TABLE t ( a TEXT NOT NULL )",
    ],
)
def test_what_only_adds_is_taken(statement: str) -> None:
    assert only_adds(statement)
