"""A copy of the journal: whole, as new as what was accepted, and in nobody's way."""

import asyncio
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet.metrics import Registry
from fleet.v1.command_pb2 import CommandState
from fleet_node.commands.entry import Entry
from fleet_node.commands.journal import Journal
from fleet_node.commands.journal_copy import STEP_BYTES, nothing_between
from fleet_node.commands.journal_file import ensure_journal
from fleet_node.commands.store import Batch, JournalStore, JournalUnavailableError
from fleet_node.observability.metrics import NodeMetrics

NODE = "node-1"
STEPS = 4
ROWS = 8 * STEPS


def batch(seq: int, arguments: bytes = b"{}") -> Batch:
    accepted = CommandState.COMMAND_STATE_ACCEPTED
    entry = Entry(seq, seq.to_bytes(16, "big"), b"d" * 32, "ada", "a.b", arguments, 9, 5, accepted, seq)
    return Batch(accepted=[entry], last_accepted_seq=seq, last_report_no=seq)


def accepted_in(path: Path) -> list[int]:
    store = JournalStore(path, NODE)
    try:
        found = store.recover()
        assert found.last_accepted_seq == max(entry.seq for entry in found.unfinished)
        return [entry.seq for entry in found.unfinished]
    finally:
        store.close()


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    """Larger than what is copied in some steps."""
    path = tmp_path / "journal.db"
    ensure_journal(path, NODE)
    store = JournalStore(path, NODE)
    store.apply([batch(seq, b"x" * (STEP_BYTES // 8)) for seq in range(1, ROWS + 1)], 0)
    journal = Journal(store, commit_duration=NodeMetrics(Registry()).commands.commit_duration)
    journal.start()
    yield journal
    await journal.close()


class Halted:
    """Halts the copy after each step until it may go on."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.first = asyncio.Event()
        self.go_on = threading.Semaphore(0)
        self.told: list[tuple[int, int]] = []

    def __call__(self, done: int, of: int) -> None:
        self.told.append((done, of))
        self.loop.call_soon_threadsafe(self.first.set)
        assert self.go_on.acquire(timeout=30)


async def test_commands_are_accepted_during_the_copy_and_are_in_it(journal: Journal, tmp_path: Path) -> None:
    halted, copy = Halted(), tmp_path / "copy"
    copying = asyncio.create_task(journal.copy(copy, halted))
    await halted.first.wait()
    committed = asyncio.get_running_loop().create_future()
    journal.submit(batch(ROWS + 1), committed.set_result)
    asked = asyncio.create_task(journal.query(lambda store: store.rows))
    await asyncio.sleep(0)  # the turn ends, and what was handed in is queued
    await asyncio.sleep(0)
    halted.go_on.release()
    assert await committed is None
    assert await asked == ROWS + 1
    assert not copying.done()
    halted.go_on.release(2 * ROWS)
    await copying
    assert accepted_in(copy) == list(range(1, ROWS + 2))
    assert len(halted.told) >= STEPS
    assert halted.told[-1][0] == halted.told[-1][1] >= STEPS * STEP_BYTES


async def test_a_copy_is_private_and_alone(journal: Journal, tmp_path: Path) -> None:
    await journal.copy(tmp_path / "copy", nothing_between)
    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.glob("copy*")] == ["copy"]


async def test_a_copy_that_nobody_waits_for_ends_and_leaves_nothing(journal: Journal, tmp_path: Path) -> None:
    halted, copy = Halted(), tmp_path / "copy"
    copying = asyncio.create_task(journal.copy(copy, halted))
    behind = asyncio.create_task(journal.copy(tmp_path / "behind", nothing_between))
    await halted.first.wait()
    copying.cancel()
    behind.cancel()
    await asyncio.wait({copying, behind})
    halted.go_on.release(2 * ROWS)
    assert await journal.query(lambda store: store.rows) == ROWS
    await journal.close()
    assert len(halted.told) == 1
    assert not copy.exists()
    assert not (tmp_path / "behind").exists()


async def test_a_node_that_shuts_down_does_not_wait_for_a_copy(journal: Journal, tmp_path: Path) -> None:
    halted, copy = Halted(), tmp_path / "copy"
    copying = asyncio.create_task(journal.copy(copy, halted))
    behind = asyncio.create_task(journal.copy(tmp_path / "behind", nothing_between))
    await halted.first.wait()
    closing = asyncio.create_task(journal.close())
    await asyncio.sleep(0)
    halted.go_on.release(2 * ROWS)
    for task in (copying, behind):
        with pytest.raises(JournalUnavailableError, match="shutting down"):
            await task
    await closing
    assert not copy.exists()


async def test_a_copy_that_cannot_be_written_leaves_the_journal_as_it_is(journal: Journal, tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"")
    for there in (tmp_path / "taken", tmp_path / "nowhere" / "copy"):
        with pytest.raises(JournalUnavailableError):
            await journal.copy(there, nothing_between)
    committed = asyncio.get_running_loop().create_future()
    journal.submit(batch(ROWS + 1), committed.set_result)
    assert await committed is None
