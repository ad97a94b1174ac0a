"""An index that only older servers need goes once none of them runs; what was open before is found after."""

import pytest
from alembic import command
from sqlalchemy import Engine, create_engine, inspect

from fleet_server.database import dialects, migrate
from fleet_server.database.migrate import SchemaState

_INDEX = "ix_commands_open"


def indexes(engine: Engine) -> set[str | None]:
    return {index["name"] for index in inspect(engine).get_indexes("commands")}


@pytest.fixture
def older(empty_url: str) -> str:
    """URL of a database of revision 0001, with a replica that serves on it and commands that it issued: two that are
    open, of two runs, and one that ended."""
    parsed = dialects.parse_url(empty_url)
    engine = dialects.make_write_engine(parsed)
    config = migrate._config()
    with dialects.schema_change(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO replicas (replica_id, version, state, started_at_ms, heartbeat_at_ms)"
            " VALUES ('old', '0.1', 'READY', 1, 1)"
        )
        for number, state in enumerate((1, 5, 4)):
            connection.exec_driver_sql(
                "INSERT INTO command_runs (issue_id, node_id, first_seq, count)"
                f" VALUES ('i{number}', 'n', {number + 1}, 1)"
            )
            connection.exec_driver_sql(
                "INSERT INTO commands (node_id, seq, command_id, issue_id, spec_no, not_after_ms, mac, state)"
                f" VALUES ('n', {number + 1}, '{number}', 'i{number}', 0, 1, '', {state})"
            )
    engine.dispose()
    return empty_url


def test_it_stays_while_an_older_server_runs_and_goes_after_that(older: str) -> None:
    engine = create_engine(older)
    assert migrate.upgrade(older).state is SchemaState.OLDER
    if engine.dialect.name == "postgresql":
        assert _INDEX in indexes(engine)
        assert migrate.left_for_older(older) == {_INDEX: ["old"]}
        assert migrate.differences(older) == []
        assert migrate.upgrade(older).state is SchemaState.CURRENT
        assert _INDEX in indexes(engine)
        with engine.begin() as connection:
            connection.exec_driver_sql("UPDATE replicas SET state = 'STOPPED'")
        assert migrate.left_for_older(older) == {_INDEX: []}
        migrate.upgrade(older)
    assert _INDEX not in indexes(engine)
    assert migrate.left_for_older(older) == {}
    assert migrate.differences(older) == []
    engine.dispose()


def test_a_new_database_never_has_it(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    engine = create_engine(empty_url)
    assert _INDEX not in indexes(engine)
    engine.dispose()


def test_the_runs_that_were_open_before_the_upgrade_are_open_after_it_and_no_others(older: str) -> None:
    migrate.upgrade(older)
    engine = create_engine(older)
    insert = "INSERT INTO command_runs (issue_id, node_id, first_seq, count) VALUES ('i3', 'n', 4, 1)"
    with engine.begin() as connection:
        connection.exec_driver_sql(insert)  # as the older server goes on doing
        found = connection.exec_driver_sql("SELECT issue_id, is_open FROM command_runs").all()
    assert dict(map(tuple, found)) == {"i0": 1, "i1": 0, "i2": 1, "i3": 1}
    engine.dispose()
