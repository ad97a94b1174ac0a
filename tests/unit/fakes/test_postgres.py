"""Each test has a database of its own on a real server."""

import psycopg
import pytest
from sqlalchemy import create_engine, text

from tests.fakes.lane import Direction
from tests.fakes.postgres import PostgresServer
from tests.fakes.proxy_thread import FaultProxyThread


def _write_marker(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE marker (id int)"))
    engine.dispose()


@pytest.mark.parametrize("turn", [1, 2])
def test_every_test_starts_with_an_empty_database(postgres_url: str, turn: int) -> None:
    assert postgres_url.startswith("postgresql+psycopg://")
    _write_marker(postgres_url)  # a second turn in the same database would fail


def test_a_migrated_database_can_be_a_template(postgres: PostgresServer) -> None:
    template = postgres.create_database()
    _write_marker(postgres.url(template))
    copy = postgres.create_database(template)
    engine = create_engine(postgres.url(copy))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM marker")).scalar() == 0
    engine.dispose()
    for name in (copy, template):
        postgres.drop_database(name)


def test_the_server_can_be_reached_through_a_proxy_and_taken_away(postgres: PostgresServer) -> None:
    with FaultProxyThread(postgres.socket_path) as proxy:
        conninfo = f"host=127.0.0.1 port={proxy.port} user=postgres dbname=postgres"
        with psycopg.connect(conninfo, autocommit=True) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
            proxy.cut_after(Direction.UP, 0)
            proxy.cut()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
