"""The journal's file: what it survives, what it refuses to be opened as, and what it forgets."""

import os
import shutil
import stat
from pathlib import Path

import pytest

from fleet.v1 import command_pb2
from fleet.v1.command_pb2 import CommandState
from fleet_node.commands.entry import Change, Entry
from fleet_node.commands.journal_file import CHECKPOINT_PAGES, JournalDamagedError, ensure_journal
from fleet_node.commands.rules import FINAL_STATES
from fleet_node.commands.store import Batch, JournalStore, JournalUnavailableError

NODE = "node-1"


def entry(seq: int, report_no: int = 0, state: CommandState.ValueType = CommandState.COMMAND_STATE_ACCEPTED) -> Entry:
    return Entry(seq, seq.to_bytes(16, "big"), b"d" * 32, "ada", "a.b", b'{"secret":1}', 9, 5, state, report_no or seq)


def change(one: Entry, report_no: int, state: CommandState.ValueType, output: bytes = b"") -> Change:
    """What makes an entry so, numbered."""
    ended = None
    if state in FINAL_STATES:
        ended = command_pb2.Report(command_id=one.command_id, monotonic_seq=one.seq, state=state, output=output)
    made = Change(one, state, 7, 8 if ended else 0, ended)
    made.number(report_no)
    return made


def copy_as_left(path: Path) -> Path:
    """The journal as a node that is killed now leaves it."""
    left = path.with_name("left.db")
    shutil.copyfile(path, left)
    shutil.copyfile(path.with_name(path.name + "-wal"), left.with_name(left.name + "-wal"))
    return left


def report(one: Entry) -> command_pb2.Report:
    return command_pb2.Report.FromString(one.report())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "journal.db"
    ensure_journal(path, NODE)
    return path


def test_what_was_applied_is_there_after_a_reopen(path: Path) -> None:
    store = JournalStore(path, NODE)
    store.apply([Batch(accepted=[entry(1), entry(2)], last_accepted_seq=2, last_report_no=2)], 0)
    done = change(entry(1), 3, CommandState.COMMAND_STATE_SUCCEEDED, b"out")
    store.apply([Batch(changed=[done], last_report_no=3), Batch(tombstones=[(9, b"t" * 16)])], 2)
    store.close()

    store = JournalStore(path, NODE)
    found = store.recover()

    assert (found.last_accepted_seq, found.last_report_no, found.acked_report_no) == (2, 3, 2)
    assert [(one.seq, one.arguments) for one in found.unfinished] == [(2, b'{"secret":1}')]
    assert found.unacknowledged == {3: len(done.final_report)}
    assert found.tombstones == {9: b"t" * 16}
    ended = store.find([1, 7])[1]
    assert (ended.arguments, ended.report(), ended.digest) == (b"", done.final_report, b"d" * 32)
    assert report(ended) == done.report
    assert (ended.accepted_at_ms, ended.started_at_ms) == (5, 7)
    assert [one.seq for one in store.reported([1, 3, 4])] == [1]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_the_last_of_several_changes_in_one_commit_stands(path: Path) -> None:
    store = JournalStore(path, NODE)
    many = [entry(seq) for seq in range(1, 72)]  # more than one statement writes
    ran = [change(one, 100 + one.seq, CommandState.COMMAND_STATE_RUNNING) for one in many]
    ended = [change(one, 200 + one.seq, CommandState.COMMAND_STATE_SUCCEEDED) for one in many[1:]]

    store.apply([Batch(accepted=many), Batch(changed=ran), Batch(changed=ended)], 0)

    found = store.find(range(1, 72))
    assert [report(one).report_no for one in found.values()] == [101, *range(202, 272)]
    assert found[1].state == CommandState.COMMAND_STATE_RUNNING
    assert [one.arguments for one in found.values()] == [b'{"secret":1}', *[b""] * 70]
    assert store.rows == 71


def test_what_is_told_again_brings_no_forgotten_command_back(path: Path) -> None:
    store = JournalStore(path, NODE)
    store.apply([Batch(accepted=[entry(1)], last_accepted_seq=1, last_report_no=1)], 0)
    again = [change(one, 10 + one.seq, one.state) for one in (entry(1), entry(2))]

    store.apply([Batch(told_again=again, last_report_no=12)], 0)

    assert {seq: one.report_no for seq, one in store.find([1, 2]).items()} == {1: 11}
    assert store.find([1])[1].arguments == b'{"secret":1}'


def test_a_commit_counts_what_it_ends_after_what_it_tells_again(path: Path) -> None:
    store = JournalStore(path, NODE)
    store.apply([Batch(accepted=[entry(1)], last_accepted_seq=1, last_report_no=1)], 0)
    again = change(entry(1), 2, CommandState.COMMAND_STATE_ACCEPTED)
    ended = change(entry(1), 3, CommandState.COMMAND_STATE_SUCCEEDED)

    store.apply([Batch(told_again=[again], last_report_no=2), Batch(changed=[ended], last_report_no=3)], 0)

    assert store.find([1])[1].report() == ended.final_report


def test_counters_never_go_back(path: Path) -> None:
    store = JournalStore(path, NODE)
    store.apply([Batch(last_accepted_seq=7, last_report_no=9)], 5)
    store.apply([Batch(accepted=[entry(3)])], 2)

    found = store.recover()

    assert (found.last_accepted_seq, found.last_report_no, found.acked_report_no) == (7, 9, 5)


@pytest.mark.parametrize("count", [1, 3, 32, 50])
def test_counters_are_known_from_the_rows_of_a_node_that_was_killed(path: Path, count: int) -> None:
    store = JournalStore(path, NODE)
    commands = [entry(seq) for seq in range(1, count + 1)]
    ends = [change(one, count + one.seq, CommandState.COMMAND_STATE_SUCCEEDED) for one in commands]
    store.apply([Batch(accepted=commands, last_accepted_seq=count, last_report_no=count)], 0)
    store.apply([Batch(changed=ends, last_report_no=2 * count)], count)

    found = JournalStore(copy_as_left(path), NODE).recover()

    assert (found.last_accepted_seq, found.last_report_no) == (count, 2 * count)
    assert list(found.unacknowledged) == list(range(count + 1, 2 * count + 1))
    assert found.unfinished == []


def test_counters_outlive_the_rows_that_said_them(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet_node.commands.store._TRIM_SLACK_ROWS", 0)
    store = JournalStore(path, NODE, keep_rows=1)
    first, second = entry(1), entry(2)
    store.apply([Batch(accepted=[first, second], last_accepted_seq=2, last_report_no=2)], 0)
    store.apply([Batch(changed=[change(second, 3, CommandState.COMMAND_STATE_SUCCEEDED)], last_report_no=3)], 0)
    store.apply([Batch(changed=[change(first, 4, CommandState.COMMAND_STATE_SUCCEEDED)], last_report_no=4)], 0)
    store.apply([Batch()], 4)
    assert sorted(store.find([1, 2])) == [2]

    found = JournalStore(copy_as_left(path), NODE).recover()

    assert (found.last_accepted_seq, found.last_report_no, found.acked_report_no) == (2, 4, 4)


def test_a_seq_that_is_too_far_away_does_not_count_after_a_restart(path: Path) -> None:
    store = JournalStore(path, NODE)
    far = entry(2**40)
    far.accepted_at_ms = 0
    refused = change(far, 2, CommandState.COMMAND_STATE_REJECTED)
    store.apply([Batch(accepted=[far], changed=[refused], last_accepted_seq=0, last_report_no=2)], 0)
    store.apply([Batch(accepted=[entry(1, 3)], last_accepted_seq=1, last_report_no=3)], 0)

    found = JournalStore(copy_as_left(path), NODE).recover()

    assert (found.last_accepted_seq, found.last_report_no) == (1, 3)


def test_a_killed_node_repeats_few_reports_that_are_acknowledged(path: Path) -> None:
    store = JournalStore(path, NODE)
    for seq in range(1, 1001):
        store.apply([Batch(accepted=[entry(seq)], last_accepted_seq=seq, last_report_no=seq)], seq - 1)

    found = JournalStore(copy_as_left(path), NODE).recover()

    assert 700 < found.acked_report_no < 1000


def test_only_the_oldest_acknowledged_ends_are_forgotten(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet_node.commands.store._TRIM_SLACK_ROWS", 4)
    store = JournalStore(path, NODE, keep_rows=5)
    store.apply([Batch(accepted=[entry(seq) for seq in range(1, 21)], last_accepted_seq=20, last_report_no=20)], 0)
    ends = [change(entry(seq), 20 + seq, CommandState.COMMAND_STATE_SUCCEEDED) for seq in range(2, 21)]
    store.apply([Batch(changed=ends, last_report_no=40)], 0)
    assert store.rows == 20

    store.apply([], acked_report_no=30)

    remembered = sorted(store.find(range(1, 21)))
    assert remembered == [1, *range(11, 21)]
    assert store.rows == len(remembered)


def test_large_outputs_are_forgotten_sooner(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet_node.commands.store._TRIM_SLACK_BYTES", 0)
    store = JournalStore(path, NODE, keep_bytes=5000)
    for seq in range(1, 11):
        end = change(entry(seq), 2 * seq, CommandState.COMMAND_STATE_SUCCEEDED, b"x" * 1000)
        store.apply([Batch(accepted=[entry(seq)]), Batch(changed=[end], last_report_no=2 * seq)], 2 * seq)

    assert 3 <= store.rows <= 5


def test_many_small_commands_take_no_room_that_they_do_not_need(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet_node.commands.store._TRIM_SLACK_ROWS", 0)
    monkeypatch.setattr("fleet_node.commands.store._TRIM_SLACK_BYTES", 0)
    store = JournalStore(path, NODE, keep_rows=10, keep_bytes=1000)
    for seq in range(1, 200):
        end = change(entry(seq), 2 * seq, CommandState.COMMAND_STATE_SUCCEEDED)
        store.apply([Batch(accepted=[entry(seq)]), Batch(changed=[end], last_report_no=2 * seq)], 2 * seq)

    assert store.rows == 10


def test_the_write_ahead_log_is_written_over_and_does_not_grow(path: Path) -> None:
    store = JournalStore(path, NODE)
    sizes = []
    for seq in range(1, 2 * CHECKPOINT_PAGES):
        store.apply([Batch(accepted=[entry(seq)], last_accepted_seq=seq, last_report_no=seq)], 0)
        sizes.append(path.with_name(path.name + "-wal").stat().st_size)

    assert max(sizes) < 4096 * (CHECKPOINT_PAGES + 16) * 1.01  # the commit that fills it, and a header for each page
    assert sizes[-1] == max(sizes)


def test_a_missing_journal_stops_the_node(tmp_path: Path) -> None:
    with pytest.raises(JournalDamagedError, match=r"missing.*Revoke the node"):
        JournalStore(tmp_path / "journal.db", NODE)
    assert not (tmp_path / "journal.db").exists()


@pytest.mark.parametrize("content", [b"", b"not a database" * 1000])
def test_a_journal_that_is_no_journal_stops_the_node(path: Path, content: bytes) -> None:
    path.write_bytes(content)

    with pytest.raises(JournalDamagedError, match="damaged"):
        JournalStore(path, NODE)


def test_a_journal_with_a_torn_page_stops_the_node(path: Path) -> None:
    store = JournalStore(path, NODE)
    store.apply([Batch(accepted=[entry(seq) for seq in range(1, 200)])], 0)
    store.close()
    data = bytearray(path.read_bytes())
    data[3 * 4096 : 5 * 4096] = b"\xff" * 8192
    path.write_bytes(data)

    with pytest.raises(JournalDamagedError, match="damaged"):
        JournalStore(path, NODE)


def test_a_damaged_report_holds_up_none_behind_it_and_a_damaged_command_is_not_run(path: Path) -> None:
    store = JournalStore(path, NODE)
    store.apply([Batch(accepted=[entry(1), entry(2), entry(3)], last_accepted_seq=3)], 0)
    ends = [change(entry(seq), 10 + seq, CommandState.COMMAND_STATE_SUCCEEDED) for seq in (1, 2)]
    store.apply([Batch(changed=ends)], 0)
    store.connection.execute("UPDATE entries SET report = x'ffff' WHERE seq IN (1, 3)")

    assert [found.report_no for found in store.reported([11, 12])] == [12]
    with pytest.raises(JournalUnavailableError, match="entry of seq 3 is damaged"):
        store.recover()
    with pytest.raises(JournalUnavailableError, match="enroll it again"):
        store.find([1])


def test_another_nodes_journal_stops_the_node(path: Path) -> None:
    with pytest.raises(JournalDamagedError, match="not the journal of node other"):
        JournalStore(path, "other")
    with pytest.raises(JournalDamagedError):
        ensure_journal(path, "other")


def test_a_newer_journal_stops_the_node(path: Path) -> None:
    store = JournalStore(path, NODE)
    store.connection.execute("PRAGMA user_version = 99")
    store.close()

    with pytest.raises(JournalDamagedError, match="newer fleet-node"):
        JournalStore(path, NODE)


def test_a_journal_of_before_the_first_release_stops_the_node(path: Path) -> None:
    store = JournalStore(path, NODE)
    store.connection.execute("PRAGMA user_version = 1")
    store.close()

    with pytest.raises(JournalDamagedError, match=r"version 1.*Revoke the node"):
        JournalStore(path, NODE)


def test_two_processes_cannot_share_a_journal(path: Path) -> None:
    store = JournalStore(path, NODE)

    with pytest.raises(JournalDamagedError, match="another process uses it"):
        JournalStore(path, NODE)
    store.close()


def test_making_a_journal_again_keeps_what_it_holds(path: Path) -> None:
    store = JournalStore(path, NODE)
    store.apply([Batch(accepted=[entry(1)], last_accepted_seq=1)], 0)
    store.close()

    ensure_journal(path, NODE)

    assert JournalStore(path, NODE).recover().last_accepted_seq == 1
