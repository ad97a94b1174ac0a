"""What differs between SQLite and PostgreSQL: the only place in the server that asks which one it is.

Both give the same promises. A transaction of the writer is durable when it returns (synchronous=FULL, and
synchronous_commit is left on). A read sees one snapshot and can write nothing. A statement that hangs is cut off, and
a server that vanished is noticed within seconds.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import URL, Connection, Engine, NullPool, QueuePool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from tenacity import retry, retry_if_exception, stop_after_delay, wait_random

from fleet_server.database.statements import execute

Dialect = Literal["sqlite", "postgresql"]

BUSY_TIMEOUT_MS = 10_000
STATEMENT_TIMEOUT_MS = 30_000
LOCK_TIMEOUT_MS = 10_000
WRITER_LOCK_TIMEOUT_MS = 200
"""PostgreSQL looks for a circle of waits after a second, and only its superuser may change that: a writer goes on with
something else before (`jobs`), for all that a replica has to write waits as long."""
WRITER_IDLE_TIMEOUT_MS = 8_000
"""PostgreSQL: so long a transaction may stand still before it is undone. A replica that is frozen, or cut off, in the
middle of one holds rows that all others may want: it is shorter than what these wait (`LOCK_TIMEOUT_MS`), so nobody
gives up over one that will not go on."""
WRITER_STATEMENT_TIMEOUT_MS = 12_000
"""Less than what a writer is given until its connection is cut (`writer.STALL_S`): PostgreSQL would go on with the
statement for longer, and keep its rows from the next attempt."""
SCHEMA_LOCK_TIMEOUT_MS = 500
CONNECT_TIMEOUT_S = 5
_LOCK_ASKED_EVERY_S = 0.1

_SCHEMA_LOCK = 0x666C6565745F7631  # "fleet_v1": advisory locks are numbers that all programs on a database share
_INSTALLATION_LOCK = _SCHEMA_LOCK + 1

_READ_ONLY = "25006"  # SQLSTATE read_only_sql_transaction
_FAULTY = "XX"  # class "internal error"
# serialization_failure, deadlock_detected, lock_not_available
_CONTENDED = frozenset({"40001", "40P01", "55P03"})

# A vanished server must not hold a commit for the two hours of TCP's own patience.
_POSTGRESQL_CONNECT: dict[str, Any] = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "application_name": "fleet-server",
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "prepare_threshold": 3,
}
# Nor must a server of ours that vanished hold rows for as long: its end of the connection belongs to PostgreSQL.
_POSTGRESQL_KEEPALIVES = (
    "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3;"
    " SET tcp_user_timeout = 20000"
)
# No statement here runs long enough to be worth compiling; of a large fleet some would be, each time, for longer than
# they run.
_POSTGRESQL_SESSION = (
    f"SET statement_timeout = {STATEMENT_TIMEOUT_MS}; SET lock_timeout = {LOCK_TIMEOUT_MS};"
    f" SET idle_in_transaction_session_timeout = {2 * STATEMENT_TIMEOUT_MS}; SET timezone = 'UTC'; SET jit = off;"
    f" {_POSTGRESQL_KEEPALIVES}"
)

# A writer looks up rows that it, or its like, wrote a moment before: they are in memory.
_LOOK_UP = "SET random_page_cost = 1.1"


class DatabaseUrlError(ValueError):
    """A database URL cannot be used. The message holds no credential."""


def parse_url(url: str) -> URL:
    """Check a database URL and settle its driver.

    Args:
        url: ``sqlite:////folder/fleet.db`` or ``postgresql+psycopg://user:password@host/name``; of several hosts,
            ``postgresql+psycopg://user:password@/name?host=a:5432&host=b:5432``, the one that can be written is found.

    Raises:
        DatabaseUrlError: another database, another driver, hosts and ports that do not fit, or no file.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        # The parser's own message quotes the text, and the text may hold a password.
        raise DatabaseUrlError(
            "database_url: malformed; write sqlite:////folder/fleet.db or postgresql+psycopg://user:password@host/name"
        ) from None
    if parsed.drivername in ("postgresql", "postgresql+psycopg"):
        return _to_the_primary(parsed.set(drivername="postgresql+psycopg"))
    if parsed.drivername in ("sqlite", "sqlite+pysqlite"):
        if not parsed.database or parsed.database == ":memory:" or parsed.database.startswith("file:"):
            raise DatabaseUrlError("database_url: it names no file; write sqlite:////folder/fleet.db")
        return parsed.set(drivername="sqlite+pysqlite")
    raise DatabaseUrlError(
        f"database_url: {parsed.drivername!r} is no database of this server; use sqlite:////folder/fleet.db or postgresql+psycopg://host/name"
    )


def _to_the_primary(url: URL) -> URL:
    """Of several hosts the one that takes writes; libpq asks each when it connects."""
    several = len(_hosts(url)) > 1
    asks = "target_session_attrs" in url.query
    return url.update_query_dict({"target_session_attrs": "read-write"}) if several and not asks else url


def _hosts(url: URL) -> list[str]:
    """`host:port` of each server that a PostgreSQL URL names."""
    try:
        _, found = url.get_dialect()().create_connect_args(url)
    except (ArgumentError, ValueError):
        raise DatabaseUrlError(
            "database_url: its hosts and ports are malformed; write postgresql+psycopg://user:password@/name?host=a:5432&host=b:5432"
        ) from None
    hosts = str(found.get("host", "")).split(",")
    ports = str(found.get("port", "")).split(",")
    return [f"{host}:{port}" if port else host for host, port in zip_longest(hosts, ports, fillvalue="")]


def dialect_of(url: URL) -> Dialect:
    """Which of the two a parsed URL names."""
    return "sqlite" if url.get_backend_name() == "sqlite" else "postgresql"


def show_url(url: URL) -> str:
    """The URL for people and logs: no password, and nothing of the query but hosts, for drivers take passwords there
    too."""
    shown = url.set(query={}).render_as_string(hide_password=True)
    if "host" not in url.query:
        return shown
    return "".join([shown, *(f"{'&' if no else '?'}host={host}" for no, host in enumerate(_hosts(url)))])


def make_write_engine(url: URL, *, lock_timeout_ms: int = LOCK_TIMEOUT_MS) -> Engine:
    """Engine of the writer thread, which keeps one connection for itself: nothing is pooled.

    Args:
        lock_timeout_ms: PostgreSQL: how long to wait for a row that another replica writes.
    """
    if dialect_of(url) == "sqlite":
        engine = _sqlite_engine(url, poolclass=NullPool)
        _prepare_sqlite(engine, begin="BEGIN IMMEDIATE", session=("PRAGMA foreign_keys = ON",))
        return engine
    engine = create_engine(
        url,
        poolclass=NullPool,
        hide_parameters=True,
        isolation_level="READ COMMITTED",  # whatever the database's default is
        connect_args=_POSTGRESQL_CONNECT,
    )
    waits = (
        f"SET lock_timeout = {lock_timeout_ms}; SET statement_timeout = {WRITER_STATEMENT_TIMEOUT_MS};"
        f" SET idle_in_transaction_session_timeout = {WRITER_IDLE_TIMEOUT_MS}"
    )
    _prepare_postgresql(engine, session=f"{_POSTGRESQL_SESSION}; {_LOOK_UP}; {waits}")
    return engine


def make_read_engine(url: URL, *, connections: int) -> Engine:
    """Engine of the readers: `connections` kept, none above, each unable to write."""
    pool: dict[str, Any] = {"poolclass": QueuePool, "pool_size": connections, "max_overflow": 0}
    if dialect_of(url) == "sqlite":
        engine = _sqlite_engine(url, **pool)
        _prepare_sqlite(engine, begin="BEGIN", session=("PRAGMA query_only = ON",))
        return engine
    engine = create_engine(
        url,
        hide_parameters=True,
        isolation_level="REPEATABLE READ",
        connect_args=_POSTGRESQL_CONNECT,
        pool_use_lifo=True,
        **pool,
    )
    _prepare_postgresql(engine, session=_POSTGRESQL_SESSION + "; SET default_transaction_read_only = on")
    return engine


def postgresql_parameters(url: str) -> dict[str, Any]:
    """What libpq needs for a connection outside of the engines, credentials included.

    Args:
        url: of a PostgreSQL database; see `parse_url`.
    """
    parsed = parse_url(url)
    _, parameters = parsed.get_dialect()().create_connect_args(parsed)
    return {**parameters, **_POSTGRESQL_CONNECT}


def for_update(conn: Connection) -> str:
    """Suffix of a SELECT that locks its rows. SQLite needs none: its writer holds the whole database."""
    return " FOR UPDATE" if conn.dialect.name == "postgresql" else ""


def for_change(conn: Connection) -> str:
    """As `for_update`, but `for_key_share` goes on beside it: what an UPDATE locks by itself."""
    return " FOR NO KEY UPDATE" if conn.dialect.name == "postgresql" else ""


def for_key_share(conn: Connection) -> str:
    """Suffix of a SELECT whose rows nobody locks by `for_update` until the transaction ends; plain updates go on."""
    return " FOR KEY SHARE" if conn.dialect.name == "postgresql" else ""


def for_update_of_free(conn: Connection) -> str:
    """As `for_update`, of rows that nobody holds: whoever does is at them. For what every replica does now and then."""
    return " FOR UPDATE SKIP LOCKED" if conn.dialect.name == "postgresql" else ""


def for_change_of_free(conn: Connection) -> str:
    """As `for_change`, of rows that nobody holds."""
    return " FOR NO KEY UPDATE SKIP LOCKED" if conn.dialect.name == "postgresql" else ""


def octets(value: object) -> bytes:
    """A column of bytes as bytes. SQLite keeps text there if somebody edits the row; such a value is none."""
    return value if isinstance(value, bytes) else b""


def is_lost(error: Exception) -> bool:
    """Whether the connection behind an error is of no use any more: it broke, or its server became a standby, which
    answers and refuses every write until another connection finds the new primary."""
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or getattr(error.orig, "sqlstate", None) == _READ_ONLY


def is_away(error: Exception) -> bool:
    """Whether the database could not do what it was asked for: it is away, full, busy, ending, or faulty itself. Who
    asked may come again; whatever else it says is about what it was asked."""
    if is_lost(error) or isinstance(error, OperationalError):
        return True
    return isinstance(error, DBAPIError) and str(getattr(error.orig, "sqlstate", "")).startswith(_FAULTY)


def is_contended(error: BaseException) -> bool:
    """Whether it stood in another transaction's way, held a row too long or waited for one that waited for it: it may
    be tried again."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) in _CONTENDED


def wait_for_rows(conn: Connection, at_most_ms: int) -> None:
    """Wait no longer for a row that somebody holds, in this transaction. SQLite's writer holds all of them."""
    if conn.dialect.name == "postgresql":
        conn.exec_driver_sql(f"SET LOCAL lock_timeout = {at_most_ms:d}")


def hang_up(conn: Connection) -> None:
    """Break the connection under a thread that waits on it; the wait then fails as if the server had closed.

    A database whose machine still acknowledges, but whose process hangs, trips neither TCP's limits nor its own
    statement timeout. SQLite has no other end that could hang.
    """
    if conn.dialect.name == "postgresql":
        with contextlib.suppress(Exception):  # it may be closing at this moment, which is as good
            dbapi_connection: Any = conn.connection.dbapi_connection
            with socket.socket(fileno=os.dup(dbapi_connection.pgconn.socket)) as wire:
                wire.shutdown(socket.SHUT_RDWR)


@contextmanager
def schema_change(engine: Engine) -> Iterator[Connection]:
    """A connection to change the schema on, one server at a time. SQLite: all of it is one transaction, the
    connection's. PostgreSQL: no transaction is open, each migration has one of its own, and no lock on a table is
    waited for long: behind a change that waits for somebody's long transaction, everybody would wait."""
    if engine.dialect.name == "sqlite":
        with engine.begin() as connection:
            yield connection
        return
    with engine.connect() as connection:
        connection.exec_driver_sql(f"SET statement_timeout = 0; SET lock_timeout = {SCHEMA_LOCK_TIMEOUT_MS}")
        _wait_for(connection, f"pg_try_advisory_lock({_SCHEMA_LOCK})")
        connection.commit()
        yield connection  # the lock ends with the connection, which no pool keeps


def long_transactions(conn: Connection) -> str:
    """Who has worked for longer than a second in this PostgreSQL database, oldest first, for people."""
    found = conn.exec_driver_sql(
        "SELECT pid, application_name, extract(epoch FROM now() - xact_start)::bigint FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start < now() - interval '1 second'"
        " ORDER BY xact_start LIMIT 3"
    )
    shown = [f"process {pid} ({name or 'unnamed'}) since {seconds} s" for pid, name, seconds in found]
    return ", ".join(shown) or "nobody any more"


def lock_installation(conn: Connection) -> None:
    """Let one program at a time make an installation in a PostgreSQL database, for as long as the transaction lasts,
    which does nothing else and is in nobody's way."""
    conn.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
    _wait_for(conn, f"pg_try_advisory_xact_lock({_INSTALLATION_LOCK})")


def _wait_for(conn: Connection, lock: str) -> None:
    # Asked again and again: a statement that waits keeps its snapshot, and an index that is built beside traffic waits
    # for all snapshots before its own.
    while not conn.exec_driver_sql(f"SELECT {lock}").scalar():
        time.sleep(_LOCK_ASKED_EVERY_S)


def _sqlite_engine(url: URL, **pool: Any) -> Engine:
    _make_private_file(Path(str(url.database)))
    connect = {"timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False}
    return create_engine(url, hide_parameters=True, connect_args=connect, **pool)


def _make_private_file(path: Path) -> None:
    # SQLite would follow the umask, and its -wal and -shm files take their mode from this one.
    with contextlib.suppress(FileExistsError, OSError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def _prepare_sqlite(engine: Engine, *, begin: str, session: tuple[str, ...]) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(dbapi_connection: Any, _record: Any) -> None:
        # The driver's own BEGIN comes late and never IMMEDIATE; `on_begin` issues it instead.
        dbapi_connection.isolation_level = None
        into_wal_mode(dbapi_connection)
        for pragma in (
            "PRAGMA synchronous = FULL",
            "PRAGMA cache_size = -65536",
            "PRAGMA mmap_size = 268435456",
            "PRAGMA temp_store = MEMORY",
            "PRAGMA wal_autocheckpoint = 4000",  # a page that many commits change is copied back once for all of them
            "PRAGMA journal_size_limit = 67108864",
            *session,
        ):
            dbapi_connection.execute(pragma).close()

    @event.listens_for(engine, "begin")
    def on_begin(conn: Connection) -> None:
        execute(conn, begin)


@retry(
    retry=retry_if_exception(lambda error: getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_BUSY),
    wait=wait_random(0.005, 0.05),
    stop=stop_after_delay(5.0),
    reraise=True,
)
def into_wal_mode(connection: sqlite3.Connection) -> None:
    """Turn a file to WAL; a fresh one does it once.

    Of several connections that try at that moment SQLite refuses all but one at once, without the patience that it has
    with every other lock.

    Raises:
        sqlite3.OperationalError: it cannot be done, or others had the file for five seconds.
    """
    connection.execute("PRAGMA journal_mode = WAL").close()


def _prepare_postgresql(engine: Engine, *, session: str) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.execute(session)
        dbapi_connection.commit()
