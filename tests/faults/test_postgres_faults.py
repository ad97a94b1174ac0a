"""PostgreSQL restarts, dies, hangs, is slow, has no connection left, while orders are given without pause.

Must hold: streams stay; what cannot be done is refused with UNAVAILABLE and when to come again, never INTERNAL;
delivery goes on by itself; nothing is lost, nothing runs twice, seqs are dense.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fakes.postgres_pair import PostgresMachine
from tests.fakes.proxy import FaultProxy
from tests.faults.insisting import Insisting, assert_whole, serving
from tests.integration.clock import QuickClock
from tests.integration.installation import free_ports

if TYPE_CHECKING:
    from tests.fakes.postgres import PostgresServer


@pytest.fixture
def machine(postgres: "PostgresServer") -> Iterator[PostgresMachine]:
    """A PostgreSQL server of this test's own. (`postgres` made the user that it runs as.)"""
    with tempfile.TemporaryDirectory(prefix="fleet-machine-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        made = PostgresMachine(Path(folder) / "a", *free_ports(1))
        made.initialise()
        made.start()
        made.sql("CREATE ROLE fleet LOGIN")
        made.sql("CREATE DATABASE fleet OWNER fleet")
        yield made
        made.kill()


async def test_restarts_and_deaths_of_the_database_cost_no_stream_and_no_command(
    machine: PostgresMachine, tmp_path: Path, impatient: None
) -> None:
    url = f"postgresql+psycopg://fleet@127.0.0.1:{machine.port}/fleet"
    async with serving(tmp_path, url, QuickClock()) as installation:
        node = await installation.add_node("n-1")
        script = Insisting(installation)
        for fault in (restarted_fast, restarted_like_a_crash, without_its_postmaster, frozen, full):
            await script.more(3)
            with fault(machine):
                await script.wait_refused()
        for _ in range(3):  # others are there at once, so nobody may have to be refused
            await script.more(2)
            end_backends(machine)
        await script.more(3)
        await assert_whole(script, node)


async def test_a_slow_database_costs_time_and_nothing_else(machine: PostgresMachine, tmp_path: Path) -> None:
    async with FaultProxy(("127.0.0.1", machine.port)) as line:
        url = f"postgresql+psycopg://fleet@127.0.0.1:{line.port}/fleet"
        async with serving(tmp_path, url, QuickClock()) as installation:
            node = await installation.add_node("n-1")
            line.slow(latency_s=0.005)
            script = Insisting(installation)
            await script.more(3)
            await assert_whole(script, node)
            assert script.refused == []


@contextlib.contextmanager
def restarted_fast(machine: PostgresMachine) -> Iterator[None]:
    machine.stop("fast")
    yield
    machine.start()


@contextlib.contextmanager
def restarted_like_a_crash(machine: PostgresMachine) -> Iterator[None]:
    machine.stop("immediate")
    yield
    machine.start()


@contextlib.contextmanager
def without_its_postmaster(machine: PostgresMachine) -> Iterator[None]:
    machine.kill_postmaster()
    yield
    machine.start()


@contextlib.contextmanager
def frozen(machine: PostgresMachine) -> Iterator[None]:
    machine.freeze()
    yield
    machine.thaw()


@contextlib.contextmanager
def full(machine: PostgresMachine) -> Iterator[None]:
    """There is no connection left: FATAL 53300."""
    machine.sql("ALTER ROLE fleet CONNECTION LIMIT 0")
    end_backends(machine)
    yield
    machine.sql("ALTER ROLE fleet CONNECTION LIMIT -1")


def end_backends(machine: PostgresMachine) -> None:
    """As an administrator does: FATAL 57P01."""
    machine.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'fleet'")
