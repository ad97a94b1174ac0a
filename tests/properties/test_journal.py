"""The journal's file against a dictionary: applied, acknowledged, refused and reopened in any order, it remembers."""

import tempfile
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fleet.v1 import command_pb2
from fleet.v1.command_pb2 import CommandState
from fleet_node.commands.entry import Change, Entry
from fleet_node.commands.journal_file import ensure_journal
from fleet_node.commands.rules import FINAL_STATES
from fleet_node.commands.store import Batch, JournalStore, JournalUnavailableError

NODE = "node-1"
KEEP_ROWS = 6
ACCEPTED, RUNNING = CommandState.COMMAND_STATE_ACCEPTED, CommandState.COMMAND_STATE_RUNNING
finals = st.sampled_from(sorted(FINAL_STATES))


class JournalMachine(RuleBasedStateMachine):
    """The model: entry by seq, counters, tombstones."""

    def __init__(self) -> None:
        super().__init__()
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr("fleet_node.commands.store._TRIM_SLACK_ROWS", 2)
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name) / "journal.db"
        ensure_journal(self._path, NODE)
        self._store = JournalStore(self._path, NODE, keep_rows=KEEP_ROWS)
        self._entries: dict[int, Entry] = {}
        self._tombstones: dict[int, bytes] = {}
        self._last_seq = self._last_report_no = self._acked = 0

    @rule(count=st.integers(1, 5), starts=st.booleans(), full=st.booleans())
    def accept(self, count: int, starts: bool, full: bool) -> None:
        entries = []
        for offset in range(1, count + 1):
            seq, number = self._last_seq + offset, self._last_report_no + offset
            state = RUNNING if starts else ACCEPTED
            entries.append(_entry(seq, number, state))
        batch = Batch(
            accepted=entries,
            last_accepted_seq=self._last_seq + count,
            last_report_no=self._last_report_no + count,
        )
        if self._apply(batch, full):
            self._entries |= {entry.seq: entry for entry in entries}
            self._last_seq += count
            self._last_report_no += count

    @precondition(lambda self: self._unfinished())
    @rule(choice=st.integers(0, 99), state=finals, full=st.booleans())
    def finish(self, choice: int, state: CommandState.ValueType, full: bool) -> None:
        unfinished = self._unfinished()
        entry = self._entries[unfinished[choice % len(unfinished)]]
        report = command_pb2.Report(command_id=entry.command_id, monotonic_seq=entry.seq, state=state)
        change = Change(entry, state, 3, 4, report)
        change.number(self._last_report_no + 1)
        if self._apply(Batch(changed=[change], last_report_no=change.report_no), full):
            change.stands()
            self._last_report_no += 1

    @rule(ahead=st.integers(1, 5), full=st.booleans())
    def bury(self, ahead: int, full: bool) -> None:
        seq = self._last_seq + ahead
        if self._apply(Batch(tombstones=[(seq, _id(seq))]), full):
            self._tombstones[seq] = _id(seq)

    @rule(share=st.floats(0, 1))
    def acknowledge(self, share: float) -> None:
        self._acked = max(self._acked, int(share * self._last_report_no))
        self._apply(Batch(), full=False)

    @rule()
    def reopen(self) -> None:
        self._store.close()
        self._store = JournalStore(self._path, NODE, keep_rows=KEEP_ROWS)

    @invariant()
    def recovers_what_the_model_says(self) -> None:
        found = self._store.recover()
        assert (found.last_accepted_seq, found.last_report_no) == (self._last_seq, self._last_report_no)
        assert found.acked_report_no <= self._acked
        assert [entry.seq for entry in found.unfinished] == self._unfinished()
        assert found.tombstones == {seq: one for seq, one in self._tombstones.items() if seq > self._last_seq}
        unacknowledged = sorted(one.report_no for one in self._entries.values() if one.report_no > self._acked)
        assert [number for number in found.unacknowledged if number > self._acked] == unacknowledged

    @invariant()
    def forgets_only_acknowledged_ends_and_the_oldest_first(self) -> None:
        remembered = self._store.find(self._entries)
        assert self._store.rows == len(remembered)
        for seq, entry in remembered.items():
            assert _columns(entry) == _columns(self._entries[seq])
            assert entry.report() == self._entries[seq].report()
            assert bool(entry.arguments) == (entry.state not in FINAL_STATES)
        forgotten = set(self._entries) - set(remembered)
        endings = [seq for seq in remembered if self._entries[seq].state in FINAL_STATES]
        for seq in forgotten:
            assert self._entries[seq].state in FINAL_STATES
            assert self._entries[seq].report_no <= self._acked
        if forgotten:
            assert len(remembered) >= min(KEEP_ROWS, len(self._entries))
            assert endings or self._unfinished()

    def _apply(self, batch: Batch, full: bool) -> bool:
        if not full:
            self._store.apply([batch], self._acked)
            return True
        self._store.connection.execute("PRAGMA query_only = ON")
        with pytest.raises(JournalUnavailableError):
            self._store.apply([batch], self._acked)
        self._store.connection.execute("PRAGMA query_only = OFF")
        return False

    def _unfinished(self) -> list[int]:
        return sorted(seq for seq, one in self._entries.items() if one.state not in FINAL_STATES)

    def teardown(self) -> None:
        self._store.close()
        self._folder.cleanup()
        self._patch.undo()


def _id(seq: int) -> bytes:
    return seq.to_bytes(16, "big")


def _entry(seq: int, number: int, state: CommandState.ValueType) -> Entry:
    return Entry(seq, _id(seq), b"d" * 32, "ada", "a.b", b"{}", 9, 2, state, number)


def _columns(entry: Entry) -> list[object]:
    return [getattr(entry, field.name) for field in fields(entry)]


TestJournal = JournalMachine.TestCase
TestJournal.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
