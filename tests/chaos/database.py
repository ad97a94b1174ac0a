"""PostgreSQL that is killed, and comes back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import psycopg

from tests.fakes.postgres import PostgresServer

_END_TIMEOUT_S = 20.0
_START_ATTEMPTS = 8
_LISTENING = "query ILIKE 'listen%'"
_ANY_THIRD = "random() < 0.34"


class MortalPostgres(PostgresServer):
    """The server of one run, with one database. Calls block: from a loop they go to a thread.

    It is killed as a process is, not as a machine is: it needs no fsync to have kept what it committed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.name = self.create_database()

    @property
    def log_path(self) -> Path:
        """What it logged, over all its lives."""
        return Path(self._server.log)

    def end(self, how: signal.Signals) -> None:
        """End it: SIGINT is its fast shutdown, SIGQUIT its immediate one, SIGKILL is what it is."""
        postmaster = psutil.Process(self._server.get_postmaster_info().pid)
        backends = postmaster.children()
        os.kill(postmaster.pid, how)
        postmaster.wait(_END_TIMEOUT_S)
        psutil.wait_procs(backends, _END_TIMEOUT_S)  # they hold its shared memory for as long as they live

    def start(self) -> None:
        """Start it again on its files; it recovers what it committed.

        Raises:
            subprocess.SubprocessError: it does not come up.
        """
        for attempt in range(_START_ATTEMPTS):
            try:
                self._server.ensure_postgres_running()
                break
            except subprocess.SubprocessError:
                if attempt == _START_ATTEMPTS - 1:
                    raise
        self._admin.close()
        self._admin = psycopg.connect(self._server.get_uri(), autocommit=True)

    def end_sessions(self, *, listening: bool) -> int:
        """Terminate sessions of the installation: those that listen for notifications, or any third of all.

        Returns:
            How many were ended; 0 as well when it is not there to be asked.
        """
        which = _LISTENING if listening else _ANY_THIRD
        with contextlib.suppress(psycopg.OperationalError):
            rows = self.ask(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE datname = current_database() AND pid <> pg_backend_pid() AND {which}"
            )
            return len(rows)
        return 0

    def ask(self, statement: str) -> list[tuple[Any, ...]]:
        """What the installation's database says now.

        Raises:
            psycopg.OperationalError: it is away.
        """
        with psycopg.connect(self.plain_url(self.name), connect_timeout=5) as connection:
            return connection.execute(statement.encode()).fetchall()
