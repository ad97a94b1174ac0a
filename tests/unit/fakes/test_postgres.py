"""Each test has a database of its own on a real server, which is started again if a program of PostgreSQL dies."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import create_engine, text

from tests.fakes import postgres as fake
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


def _dies(returncode: int, times: int, asked: list[Path]) -> Callable[..., object]:
    """A `get_server` that fails so often, and notes the folders that it was given."""
    true = fake.wheel.get_server

    def get_server(folder: Path, cleanup_mode: str) -> object:
        asked.append(folder)
        (folder / "half").touch()
        if len(asked) <= times:
            try:
                raise subprocess.CalledProcessError(returncode, ["pg_ctl"])
            except subprocess.CalledProcessError:
                if len(asked) % 2:
                    (folder / "log").read_text()  # as the wheel does, which there is none of
                raise
        (folder / "half").unlink()
        return true(folder, cleanup_mode=cleanup_mode)

    return get_server


def test_a_start_that_dies_of_a_signal_is_tried_again_in_a_new_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(fake.wheel, "get_server", _dies(-signal.SIGSEGV, 2, asked))
    with pytest.warns(RuntimeWarning, match=r"attempt \d of 3.*SIGSEGV") as warned:
        server = PostgresServer()
    name = server.create_database()
    with psycopg.connect(server.plain_url(name)) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    server.stop()
    assert len(warned) == 2
    assert len(set(asked)) == 3
    assert not any(folder.exists() for folder in asked)


@pytest.mark.parametrize(("returncode", "attempts"), [(-signal.SIGSEGV, 3), (1, 1)])
@pytest.mark.filterwarnings("ignore:PostgreSQL's start:RuntimeWarning")
def test_a_start_that_dies_each_time_or_fails_otherwise_is_an_error(
    monkeypatch: pytest.MonkeyPatch, returncode: int, attempts: int
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(fake.wheel, "get_server", _dies(returncode, attempts, asked))
    with pytest.raises((subprocess.CalledProcessError, FileNotFoundError)):
        PostgresServer()
    assert len(asked) == attempts
    assert not any(folder.exists() for folder in asked)


def test_workers_make_the_user_that_runs_it_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = str(tmp_path / "lock")  # of a kind with the wheel's, which other workers hold now and then
    monkeypatch.setattr(fake.wheel.PostgresServer, "_lock", type(fake.wheel.PostgresServer._lock)(path))
    script = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"

    def another_may() -> bool:
        tried = subprocess.run([sys.executable, "-c", script, path], check=False, capture_output=True)
        return tried.returncode == 0

    seen: list[tuple[str, bool]] = []
    monkeypatch.setattr(fake, "OWNER", "somebody")
    monkeypatch.setattr(fake.wheel_system, "ensure_user_exists", lambda user: seen.append((user, another_may())))
    monkeypatch.setattr(fake.wheel_system, "ensure_prefix_permissions", lambda path: None)
    fake.prepare_owner()
    assert seen == [("somebody", False)]
    assert another_may()
