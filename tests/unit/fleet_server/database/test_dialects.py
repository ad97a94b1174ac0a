"""A fresh SQLite file, and many who open it at once."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sqlalchemy import URL, make_url

from fleet_server.database.dialects import make_write_engine

_AT_ONCE = 6


def test_a_fresh_file_that_many_open_at_once_refuses_nobody(tmp_path: Path) -> None:
    for number in range(10):
        url = make_url(f"sqlite:///{tmp_path / f'{number}.db'}")
        together = threading.Barrier(_AT_ONCE)

        def open_it(url: URL = url, together: threading.Barrier = together) -> str:
            engine = make_write_engine(url)
            together.wait()
            with engine.connect() as connection:
                return str(connection.exec_driver_sql("PRAGMA journal_mode").scalar())

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            opened = [pool.submit(open_it) for _ in range(_AT_ONCE)]
            assert [each.result() for each in opened] == ["wal"] * _AT_ONCE
