from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, inspect

from fleet_server.database import migrate
from fleet_server.database.migrate import DatabaseUnreachableError, SchemaError, SchemaState
from fleet_server.database.schema import metadata
from tests.fakes import newer_schema
from tests.fakes.postgres import PostgresServer


@pytest.fixture
def reference(empty_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """A database of the same kind that the schema built directly."""
    if empty_url.startswith("sqlite"):
        engine = create_engine(f"sqlite:///{tmp_path / 'reference.db'}")
        metadata.create_all(engine)
        yield engine
        engine.dispose()
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    name = server.create_database()
    engine = create_engine(server.url(name))
    metadata.create_all(engine)
    yield engine
    engine.dispose()
    server.drop_database(name)


def describe(engine: Engine) -> dict[str, Any]:
    inspector = inspect(engine)
    tables: dict[str, Any] = {}
    for name in inspector.get_table_names():
        if name == "alembic_version":
            continue
        tables[name] = {
            "columns": [
                (column["name"], repr(column["type"]), column["nullable"], column["default"])
                for column in inspector.get_columns(name)
            ],
            "primary key": inspector.get_pk_constraint(name),
            "unique": sorted(map(str, inspector.get_unique_constraints(name))),
            "indexes": sorted(map(describe_index, inspector.get_indexes(name))),
            "foreign keys": sorted(map(str, inspector.get_foreign_keys(name))),
            "options": inspector.get_table_options(name),
        }
    return tables


def describe_index(index: Any) -> str:
    options = {name: str(value) for name, value in index["dialect_options"].items()}
    return f"{index['name']} {index['column_names']} {index['unique']} {options}"


def set_revision(url: str, revision: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{revision}'")
    engine.dispose()


def test_the_migrations_build_exactly_the_schema(empty_url: str, reference: Engine) -> None:
    before = migrate.upgrade(empty_url)
    assert before.state is SchemaState.EMPTY
    assert migrate.check(empty_url).state is SchemaState.CURRENT
    migrated = create_engine(empty_url)
    built, wanted = describe(migrated), describe(reference)
    migrated.dispose()
    assert built.keys() == wanted.keys() == metadata.tables.keys()
    for name, table in wanted.items():
        assert built[name] == table, name


def test_upgrading_twice_changes_nothing(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    assert migrate.upgrade(empty_url).state is SchemaState.CURRENT


def test_servers_that_upgrade_at_once_take_turns(empty_url: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        reports = list(threads.map(migrate.upgrade, [empty_url] * 4))
    assert sorted(report.state for report in reports) == ["current", "current", "current", "empty"]


def test_a_newer_database_is_left_alone(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    set_revision(empty_url, "9999")
    assert migrate.check(empty_url).state is SchemaState.NEWER
    with pytest.raises(SchemaError, match="install the newer fleet-server"):
        migrate.upgrade(empty_url)
    assert migrate.check(empty_url).found == "9999"


def revisions(url: str) -> dict[str, str]:
    engine = create_engine(url)
    with engine.connect() as connection:
        found = dict(connection.exec_driver_sql("SELECT revision, oldest_server FROM schema_revisions").all())
    engine.dispose()
    return found


def test_each_revision_says_which_servers_may_run_beside_it(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    assert revisions(empty_url) == {
        script.revision: script.module.oldest_server for script in migrate.migrations() if script.down_revision
    }


def upgrade_to_later(url: str, folder: Path, oldest: str = "") -> None:
    """As a later release does."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(migrate, "MIGRATIONS", newer_schema.write_migrations(folder, oldest=oldest))
        migrate.upgrade(url)
        assert migrate.check(url).state is SchemaState.CURRENT


def test_a_server_runs_on_a_later_schema_that_says_so(empty_url: str, tmp_path: Path) -> None:
    migrate.upgrade(empty_url)
    upgrade_to_later(empty_url, tmp_path)
    report = migrate.check(empty_url)
    assert (report.state, report.found) == (SchemaState.COMPATIBLE, newer_schema.later(2))
    assert migrate.upgrade(empty_url) == report, "there is nothing to do"
    assert migrate.differences(empty_url, report.state) == []
    change_by_hand(empty_url, "DROP INDEX ix_commands_command_id")
    assert migrate.differences(empty_url, report.state) == ["index ix_commands_command_id of commands is missing"]


def test_a_server_does_not_run_on_a_later_schema_that_does_not_say_so(empty_url: str, tmp_path: Path) -> None:
    migrate.upgrade(empty_url)
    upgrade_to_later(empty_url, tmp_path, oldest=newer_schema.later(1))
    assert migrate.check(empty_url).state is SchemaState.NEWER
    with pytest.raises(SchemaError, match="install the newer fleet-server"):
        migrate.upgrade(empty_url)


def test_a_table_that_somebody_holds_keeps_no_others_waiting(postgres_url: str, tmp_path: Path) -> None:
    migrate.upgrade(postgres_url)
    engine = create_engine(postgres_url)
    with ThreadPoolExecutor(1) as threads, engine.connect() as holder:
        holder.exec_driver_sql("SELECT count(*) FROM nodes")  # its lock on the table lasts as long as its transaction
        upgrading = threads.submit(upgrade_to_later, postgres_url, tmp_path)
        waited = blocked = 0
        while waited < 2:  # the upgrade has given way and come again
            with engine.connect() as other:
                found = other.exec_driver_sql("SELECT count(*) FROM pg_locks WHERE NOT granted").scalar()
            waited, blocked = waited + (blocked > found), found
        with engine.connect() as other:
            other.exec_driver_sql("SELECT count(*) FROM nodes")
        assert not upgrading.done()
        holder.rollback()
        upgrading.result(timeout=30)
    engine.dispose()
    assert migrate.check(postgres_url).state is SchemaState.COMPATIBLE


def test_a_table_that_is_held_for_too_long_is_told_with_who_holds_it(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "UPGRADE_PATIENCE_S", 1.0)
    migrate.upgrade(postgres_url)
    engine = create_engine(postgres_url, connect_args={"application_name": "a report"})
    with engine.connect() as holder:
        holder.exec_driver_sql("SELECT count(*) FROM nodes")
        with pytest.raises(
            SchemaError, match=r"process \d+ \(a report\) since \d+ s.*run `fleet-server db upgrade` again"
        ):
            upgrade_to_later(postgres_url, tmp_path)
    engine.dispose()
    assert migrate.check(postgres_url).state is SchemaState.CURRENT, "nothing was changed"


def test_an_index_that_broke_off_is_built_again(postgres_url: str, tmp_path: Path) -> None:
    migrate.upgrade(postgres_url)
    change_by_hand(postgres_url, "CREATE INDEX ix_of_later ON nodes (name)")
    upgrade_to_later(postgres_url, tmp_path)
    engine = create_engine(postgres_url)
    (found,) = [each for each in inspect(engine).get_indexes("nodes") if each["name"] == "ix_of_later"]
    engine.dispose()
    assert found["column_names"] == ["of_later"]


def change_by_hand(url: str, *statements: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def test_what_the_migrations_build_has_no_differences(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    change_by_hand(empty_url, "CREATE TABLE of_somebody_else (id INTEGER)")
    assert migrate.differences(empty_url) == []


def test_a_schema_that_was_changed_under_its_revision_is_told_part_by_part(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    change_by_hand(
        empty_url,
        "DROP TABLE audit_heads",
        "DROP INDEX ix_commands_command_id",
        "CREATE INDEX added ON nodes (state)",
        "ALTER TABLE operators RENAME COLUMN role TO rank",
    )
    assert migrate.check(empty_url).state is SchemaState.CURRENT
    assert sorted(migrate.differences(empty_url)) == [
        "column operators.rank is unknown here",
        "column operators.role is missing",
        "index added of nodes is unknown here",
        "index ix_commands_command_id of commands is missing",
        "table audit_heads is missing",
    ]


def test_columns_of_another_kind_are_told(postgres_url: str) -> None:
    migrate.upgrade(postgres_url)
    change_by_hand(
        postgres_url,
        "ALTER TABLE nodes ALTER COLUMN name DROP NOT NULL, ALTER COLUMN state TYPE integer USING 0",
        "ALTER TABLE operators DROP CONSTRAINT uq_operators_name",
    )
    assert sorted(migrate.differences(postgres_url)) == [
        "column nodes.name may be NULL",
        "column nodes.state is INTEGER, not VARCHAR(16)",
        "constraint uq_operators_name of operators is missing",
    ]


def test_checking_makes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    assert migrate.check(f"sqlite:///{path}").state is SchemaState.EMPTY
    assert not path.exists()


def test_a_database_that_does_not_answer_is_named_without_its_password() -> None:
    url = "postgresql+psycopg://fleet:hunter2@127.0.0.1:1/fleet"
    for call in (migrate.check, migrate.upgrade):
        with pytest.raises(DatabaseUnreachableError, match=r"127\.0\.0\.1") as refused:
            call(url)
        assert "hunter2" not in str(refused.value)


def test_a_file_that_cannot_be_opened_is_no_server_that_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnreachableError, match="check that its folder is there and can be written") as refused:
        migrate.upgrade(f"sqlite:///{tmp_path / 'missing' / 'fleet.db'}")
    assert "check that it runs" not in str(refused.value)
