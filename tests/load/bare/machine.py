"""What this machine's disk and processor give: commits, signatures, the start of an interpreter."""

import asyncio
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.load.results import Figures

_ROW = bytes(200)
_MESSAGE = bytes(300)
_MICROSECONDS = 1_000_000
_PROGRAM_TIMEOUT_S = 30.0
_PAUSE_S = 0.002


def _mean_us(step: Callable[[], object], count: int) -> float:
    started_at_s = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - started_at_s) / count * _MICROSECONDS


def _open_log(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE IF NOT EXISTS entry (id INTEGER PRIMARY KEY, content BLOB)")
    return database


def _commit(database: sqlite3.Connection, rows: int) -> None:
    database.execute("BEGIN IMMEDIATE")
    database.executemany("INSERT INTO entry (content) VALUES (?)", [(_ROW,)] * rows)
    database.execute("COMMIT")


def commit_costs(folder: Path, commits: int) -> Figures:
    """Microseconds of an SQLite commit (WAL, synchronous=FULL) of one row, and a row of 32-row commits."""
    database = _open_log(folder / "commit-cost.db")
    try:
        single_us = _mean_us(lambda: _commit(database, 1), commits)
        batch_us = _mean_us(lambda: _commit(database, 32), commits)
    finally:
        database.close()
    return {"sqlite_commit_us": single_us, "sqlite_row_of_32_us": batch_us / 32}


async def handed_commit_us(folder: Path, commits: int) -> float:
    """Median microseconds of a commit that an event loop hands to a thread and is told of, a pause before each: what
    a commit costs who must not wait for the disk, on a machine that had gone to sleep."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as thread:
        database = await loop.run_in_executor(thread, _open_log, folder / "handed-commit.db")
        try:
            seconds = []
            for _ in range(commits):
                await asyncio.sleep(_PAUSE_S)
                started_at_s = time.perf_counter()
                await loop.run_in_executor(thread, _commit, database, 1)
                seconds.append(time.perf_counter() - started_at_s)
        finally:
            await loop.run_in_executor(thread, database.close)
    return statistics.median(seconds) * _MICROSECONDS


def signature_costs(count: int) -> Figures:
    """Microseconds of an Ed25519 signature and of its verification, over 300 bytes."""
    key = Ed25519PrivateKey.generate()
    signature, public = key.sign(_MESSAGE), key.public_key()
    return {
        "ed25519_sign_us": _mean_us(lambda: key.sign(_MESSAGE), count),
        "ed25519_verify_us": _mean_us(lambda: public.verify(signature, _MESSAGE), count),
    }


async def program_start_s(argv: list[str], times: int, environment: Mapping[str, str] | None = None) -> float:
    """Median seconds from start to exit of a program, after one unmeasured start.

    Raises:
        ChildProcessError: it ended with another code than 0.
        TimeoutError: it ran for more than 30 s; it is killed.
    """
    seconds = []
    for _ in range(times + 1):
        started_at_s = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        try:
            async with asyncio.timeout(_PROGRAM_TIMEOUT_S):
                await process.wait()
        except BaseException:
            process.kill()
            await process.wait()
            raise
        if process.returncode != 0:
            raise ChildProcessError(f"{argv[:3]} ended with {process.returncode}")
        seconds.append(time.perf_counter() - started_at_s)
    return statistics.median(seconds[1:])


async def python_start_s(program: str, times: int) -> float:
    """Median seconds that this interpreter takes to run `program` (Python source)."""
    return await program_start_s([sys.executable, "-c", program], times)
