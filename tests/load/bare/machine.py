"""What this machine's disk and processor give: commits, signatures, the start of an interpreter."""

import asyncio
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.load.results import Figures

_ROW = bytes(200)
_MESSAGE = bytes(300)
_MICROSECONDS = 1_000_000
_PROGRAM_TIMEOUT_S = 30.0


def _mean_us(step: Callable[[], object], count: int) -> float:
    started_at_s = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - started_at_s) / count * _MICROSECONDS


def commit_costs(folder: Path, commits: int) -> Figures:
    """Microseconds of an SQLite commit (WAL, synchronous=FULL) of one row, and a row of 32-row commits."""
    database = sqlite3.connect(folder / "commit-cost.db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE IF NOT EXISTS entry (id INTEGER PRIMARY KEY, content BLOB)")

    def commit(rows: int) -> None:
        database.execute("BEGIN IMMEDIATE")
        database.executemany("INSERT INTO entry (content) VALUES (?)", [(_ROW,)] * rows)
        database.execute("COMMIT")

    try:
        single_us = _mean_us(lambda: commit(1), commits)
        batch_us = _mean_us(lambda: commit(32), commits)
    finally:
        database.close()
    return {"sqlite_commit_us": single_us, "sqlite_row_of_32_us": batch_us / 32}


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
