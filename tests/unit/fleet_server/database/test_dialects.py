"""A fresh SQLite file, and many who open it at once; hosts of PostgreSQL, and the one that is wanted."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fleet_server.database.dialects import DatabaseUrlError, into_wal_mode, parse_url, postgresql_parameters, show_url

_AT_ONCE = 6
_FILES = 60


def test_a_fresh_file_that_many_open_at_once_refuses_nobody(tmp_path: Path) -> None:
    together = threading.Barrier(_AT_ONCE)

    def open_it(path: Path) -> None:
        connection = sqlite3.connect(path, timeout=10)
        together.wait()
        into_wal_mode(connection)
        connection.close()

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for number in range(_FILES):
            opened = [pool.submit(open_it, tmp_path / f"{number}.db") for _ in range(_AT_ONCE)]
            for each in opened:
                each.result()


SEVERAL = "postgresql+psycopg://fleet:hunter2@/fleet?host=db-1:5432&host=db-2:6432"


def test_of_several_hosts_the_one_that_takes_writes_is_wanted() -> None:
    found = postgresql_parameters(SEVERAL)
    assert (found["host"], found["port"], found["target_session_attrs"]) == ("db-1,db-2", "5432,6432", "read-write")
    chosen = postgresql_parameters(f"{SEVERAL}&target_session_attrs=primary")
    assert chosen["target_session_attrs"] == "primary"
    assert "target_session_attrs" not in postgresql_parameters("postgresql://fleet@db-1/fleet")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (SEVERAL, "postgresql+psycopg://fleet:***@/fleet?host=db-1:5432&host=db-2:6432"),
        (f"{SEVERAL}&password=hunter2", "postgresql+psycopg://fleet:***@/fleet?host=db-1:5432&host=db-2:6432"),
        ("postgresql://f@/fleet?host=a,b&port=1,2", "postgresql+psycopg://f@/fleet?host=a:1&host=b:2"),
        ("postgresql://f@/fleet?host=a:1&host=b", "postgresql+psycopg://f@/fleet?host=a:1&host=b"),
        ("postgresql://f@/fleet?host=%2Frun%2Fpg", "postgresql+psycopg://f@/fleet?host=/run/pg"),
        ("postgresql://f:hunter2@db-1:5433/fleet", "postgresql+psycopg://f:***@db-1:5433/fleet"),
    ],
)
def test_hosts_are_shown_and_passwords_are_not(url: str, shown: str) -> None:
    assert show_url(parse_url(url)) == shown


@pytest.mark.parametrize("hosts", ["host=a:x&host=b:2", "host=a,b&port=1,2,3", "host=::1&host=::2"])
def test_hosts_that_cannot_be_read_are_refused_without_the_password(hosts: str) -> None:
    with pytest.raises(DatabaseUrlError, match="host=a:5432&host=b:5432") as refused:
        parse_url(f"postgresql+psycopg://fleet:hunter2@/fleet?{hosts}")
    assert "hunter2" not in str(refused.value)
