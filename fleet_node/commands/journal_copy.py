"""A copy of the journal while it is written to.

SQLite's backup takes over what its own connection writes meanwhile (https://sqlite.org/c3ref/backup_finish.html), so
the copy is the file as it is when the last page has been taken, and nothing has to stand still for longer than a few
pages take. A second connection cannot read the journal: its owner keeps it locked.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

STEP_BYTES = 256 * 1024
"""What is copied in one go, some milliseconds at most unless the disk is slow; commits wait for as long."""

Between = Callable[[int, int], None]
"""Called after each step with the bytes copied and the bytes in all. It may write into the journal; what it raises
ends the copy."""


def nothing_between(done: int, of: int) -> None:
    """Copies in one go."""


def copy_journal_into(connection: sqlite3.Connection, path: Path, between: Between = nothing_between) -> None:
    """Write the journal of `connection` into a new file, 0600. What fails or is ended leaves no file.

    Raises:
        sqlite3.Error, OSError: it cannot be read, or the copy not be written.
    """
    page_bytes: int = connection.execute("PRAGMA page_size").fetchone()[0]

    def step(status: int, remaining: int, pages: int) -> None:
        del status
        between((pages - remaining) * page_bytes, pages * page_bytes)

    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    try:
        copy = sqlite3.connect(path, isolation_level=None)
        try:
            # Whoever wants the copy reads it at once: it need not outlive a power cut, or a step that failed.
            copy.execute("PRAGMA journal_mode = OFF")
            copy.execute("PRAGMA synchronous = OFF")
            connection.backup(copy, pages=max(1, STEP_BYTES // page_bytes), progress=step)
        finally:
            copy.close()
    except BaseException:
        path.unlink(missing_ok=True)
        raise
