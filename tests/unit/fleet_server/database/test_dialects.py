"""A fresh SQLite file, and many who open it at once."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fleet_server.database.dialects import into_wal_mode

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
