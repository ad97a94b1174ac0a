"""Fault: the node is killed with SIGKILL at every journal write (docs/protocol.md, "Commands").

Must hold after the restart, when the server gives everything again: every command ends, none ran twice, and a command
is INTERRUPTED exactly when its RUNNING was journaled and its result was not. An intent is used exactly when its
command was accepted, and never by a second one. The node's audit is one unbroken chain, and says of each command once
what became of it.
"""

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.v1.command_pb2 import CommandState
from fleet_node.commands.journal_file import ensure_journal
from fleet_node.commands.rules import STATE_NAMES
from fleet_node.commands.store import JournalStore, Recovered
from tests.faults.journal_victim import CANCELLED_SEQ, REPLAYED_SEQ, STATEMENTS
from tests.unit.fleet_node.commands.audit_reader import read_audit_of
from tests.unit.fleet_node.commands.node import NODE

RUNS = {seq for statement in STATEMENTS for seq, _, _ in statement} - {6, CANCELLED_SEQ, REPLAYED_SEQ}
WITH_INTENT = {1, 4, 5}
ON_THE_ARM = [2, 3, 7]
MAX_POINTS = 400


class Zygote:
    """Starts lives of the victim without paying for its imports each time."""

    def __init__(self, log: Path) -> None:
        self._log = log.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.journal_victim"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def live(self, folder: Path, kill_at: int = 0) -> int:
        """Exit code of one life; negative when a signal ended it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{folder} {kill_at}\n")
        self._process.stdin.flush()
        while not (line := self._process.stdout.readline()).startswith("exit "):
            assert line, f"the victim ended: {Path(self._log.name).read_text()}"
        return int(line.split()[1])

    def close(self) -> None:
        self._process.communicate(timeout=20)
        self._log.close()


@pytest.fixture
def zygote(tmp_path: Path) -> Iterator[Zygote]:
    zygote = Zygote(tmp_path / "victim.log")
    yield zygote
    zygote.close()


def journaled(folder: Path) -> Recovered:
    store = JournalStore(folder / "journal.db", NODE)
    try:
        return store.recover()
    finally:
        store.close()


def started(folder: Path) -> list[int]:
    """Seqs that the driver began, in order."""
    log = folder / "runs.log"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [int(line["command_id"], 16) for line in lines if line["event"] == "start"]


def check(folder: Path, running: set[int], point: int) -> None:
    states = {int(seq): state for seq, state in json.loads((folder / "states.json").read_text()).items()}
    runs = started(folder)
    where = f"killed at point {point}: {states}, ran {runs}, RUNNING in the journal {running}"
    assert states.pop(6) == "REJECTED", where
    assert states.pop(REPLAYED_SEQ) == "REJECTED", where
    assert {use.seq for use in journaled(folder).used} == WITH_INTENT, where
    assert states.pop(CANCELLED_SEQ) == "CANCELLED", where
    assert set(states) == RUNS, where
    assert {seq for seq, state in states.items() if state == "INTERRUPTED"} == running, where
    assert set(states.values()) <= {"SUCCEEDED", "INTERRUPTED"}, where
    assert max(Counter(runs).values(), default=0) <= 1, where
    assert {seq for seq, state in states.items() if state == "SUCCEEDED"} <= set(runs), where
    assert [seq for seq in runs if seq in ON_THE_ARM] == [seq for seq in ON_THE_ARM if seq in runs], where


def check_audit(folder: Path, before: list[tuple[object, ...]], point: int) -> None:
    """The chain is one, goes on from what was on the disk, and says of each command once what the server was told."""
    states = {int(seq): state for seq, state in json.loads((folder / "states.json").read_text()).items()}
    audit = read_audit_of(folder / "journal.db", NODE)
    where = f"killed at point {point}: {audit.kinds()}"
    assert audit_on_disk(folder)[: len(before)] == before, where
    assert set(audit.accepted) == set(states), where
    assert audit.ended == states, where
    assert set(audit.times_ended.values()) == {1}, where
    assert "command.cancel" in audit.kinds(), where


def audit_on_disk(folder: Path) -> list[tuple[object, ...]]:
    """Rows as they stand, nothing chained on the way."""
    store = JournalStore(folder / "journal.db", NODE)
    try:
        return list(store.connection.execute("SELECT * FROM audit ORDER BY number"))
    finally:
        store.close()


def test_kill_at_every_journal_write(zygote: Zygote, tmp_path: Path) -> None:
    found = Counter[str]()
    for point in range(1, MAX_POINTS):
        folder = tmp_path / str(point)
        folder.mkdir()
        ensure_journal(folder / "journal.db", NODE)
        exit_code = zygote.live(folder, kill_at=point)
        if exit_code == 0:
            check(folder, set(), point)
            check_audit(folder, [], point)
            break
        assert exit_code == -signal.SIGKILL
        kept = journaled(folder)
        left = kept.unfinished
        accepted = {seq for seq in WITH_INTENT if seq <= kept.last_accepted_seq}
        assert {use.seq for use in kept.used} == accepted, f"killed at point {point}"
        running = {entry.seq for entry in left if entry.state == CommandState.COMMAND_STATE_RUNNING}
        found.update(STATE_NAMES[entry.state] for entry in left)
        before = audit_on_disk(folder)

        assert zygote.live(folder) == 0

        check(folder, running, point)
        check_audit(folder, before, point)
    else:
        pytest.fail(f"the victim still found writes after {MAX_POINTS} points")
    assert point > 20, "too few points: the victim writes no journal"
    assert set(found) == {"ACCEPTED", "RUNNING"}, found


def test_killed_twice_in_a_row(zygote: Zygote, tmp_path: Path) -> None:
    """A second kill, while the restarted node decides about what the first one left."""
    for first, second in [(9, 3), (14, 5), (20, 2), (20, 7), (26, 4), (31, 6)]:
        folder = tmp_path / f"{first}-{second}"
        folder.mkdir()
        ensure_journal(folder / "journal.db", NODE)
        assert zygote.live(folder, kill_at=first) == -signal.SIGKILL
        interrupted = {
            entry.seq for entry in journaled(folder).unfinished if entry.state == CommandState.COMMAND_STATE_RUNNING
        }
        assert zygote.live(folder, kill_at=second) == -signal.SIGKILL

        assert zygote.live(folder) == 0

        states = {int(seq): state for seq, state in json.loads((folder / "states.json").read_text()).items()}
        runs = started(folder)
        assert max(Counter(runs).values(), default=0) <= 1
        assert all(states[seq] == "INTERRUPTED" for seq in interrupted)
        assert {seq for seq in RUNS if states[seq] == "SUCCEEDED"} <= set(runs)
