"""What is open costs what it is, however long the history; a run ends once all its commands have."""

from collections.abc import Callable
from typing import Any

import pytest

from fleet.v1 import command_pb2 as wire
from fleet_server.commands import history_store, open_store, store
from fleet_server.database.engine import Connection
from fleet_server.database.writer import Transaction
from tests.unit.fleet_server.commands.room import Room, order, report

_DONE = 20_000
_NODES = 10
_RUNS = 4
_OF_RUN = 25
_OPEN = _NODES * _RUNS * _OF_RUN

_EXAMINED = (
    "SELECT SUM(pg_stat_get_xact_tuples_returned(c.oid) + pg_stat_get_xact_tuples_fetched(c.oid)) FROM pg_class c"
    " WHERE c.relname IN ('commands', 'command_runs', 'command_issues') OR c.oid IN"
    " (SELECT indexrelid FROM pg_index WHERE indrelid IN"
    " ('commands'::regclass, 'command_runs'::regclass, 'command_issues'::regclass))"
)


async def _insert(room: Room, node: str, issues: str, *, first: int, runs: int, of_run: int, state: int) -> None:
    """Runs of a node by hand, each of an issue of its own, whose id begins with `issues`."""
    await room.tamper(
        "INSERT INTO commands (node_id, seq, command_id, issue_id, spec_no, not_after_ms, mac, state)"
        f" SELECT '{node}', n, decode(md5('{node}' || n), 'hex'), '{issues}' || (n - {first}) / {of_run}, 0, {state},"
        f" '', {state} FROM generate_series({first}, {first + runs * of_run - 1}) n"
    )
    await room.tamper(
        "INSERT INTO command_runs (issue_id, node_id, first_seq, count, is_open)"
        f" SELECT '{issues}' || n, '{node}', {first} + n * {of_run}, {of_run}, {int(state < 5)}"
        f" FROM generate_series(0, {runs - 1}) n"
    )
    await room.tamper(
        "INSERT INTO command_issues (issue_id, cluster_id, actor, request_sha256, specs, refused, issued_count,"
        f" issued_at_ms, not_after_ms) SELECT '{issues}' || n, '', 'alice', '', '', '', {of_run}, n, {state}"
        f" FROM generate_series(0, {runs - 1}) n"
    )


Read = Callable[[Connection], Any]
_KEYS = [("n0", _DONE + n) for n in range(3)]
_OPEN_RUNS = [(f"open-{number}-{run}", f"n{number}") for number in range(_NODES) for run in range(_RUNS)]
_OF_ALL: dict[str, Read] = {
    "survey": lambda conn: open_store.survey(conn, 0).nodes,
    "asked_cancels": open_store.asked_cancels,
    "end_runs": lambda conn: open_store.end_runs(conn, _OPEN_RUNS),
    "unsigned_past": lambda conn: store.unsigned_past(conn, 2**40, 500),
    "signed_past": lambda conn: store.signed_past(conn, 2**40, 500),
    "open_issues": history_store.open_issues,
    "found_open": lambda conn: history_store.found_open(conn, 10_000),
}
_OF_NODE: dict[str, Read] = {
    "pending": lambda conn: store.pending(conn, "n0", _DONE - 1, 0, 32),
    "mark_queued_sent": lambda conn: store.mark_queued_sent(conn, "n0", _DONE, _DONE + 1, b"k", 1),
    "mark_sent": lambda conn: store.mark_sent(conn, "n0", _DONE, _DONE + 2, b"k", 1),
    "lowest_open": lambda conn: store.lowest_open(conn, "n0", _DONE, _DONE + 3),
    "answered_above": lambda conn: store.answered_above(conn, "n0", _DONE),
    "signed_open": lambda conn: store.signed_open(conn, "n0"),
    "open_by_keys": lambda conn: store.open_by_keys(conn, "n0", [seq for _, seq in _KEYS]),
    "with_queued": lambda conn: store.with_queued(conn, ["n0"]),
    "count_open_of": lambda conn: store.count_open_of(conn, "n0", _DONE),
    "open_of_issue": lambda conn: store.open_of_issue(conn, "open-0-0"),
    "open_keys": lambda conn: history_store.open_keys(conn, "open-0-0"),
    "open_marks": lambda conn: history_store.open_marks(conn, "open-0-0"),
    "marks_of": lambda conn: history_store.marks_of(conn, _KEYS),
    "open_of_node": lambda conn: history_store.page_of_node(
        conn, "n0", issue_id="", before_seq=None, limit=100, open_only=True
    ),
}
_FIND_NOTHING = {"asked_cancels", "end_runs", "answered_above", "mark_sent"}


@pytest.mark.parametrize("known", ["quiet", "now", "beside older servers"])
async def test_what_is_read_grows_with_what_is_open_and_not_with_the_history(room: Room, known: str) -> None:
    """By statistics of a quiet hour nothing is open, and the shortest way to that looks like the way to anything: while
    older servers run, an index of all open commands is there, too."""
    if room.database.dialect == "sqlite":
        pytest.skip("its plans depend on no statistics: test_run_store holds them")
    if known == "beside older servers":
        await room.tamper("CREATE INDEX ix_commands_open ON commands (not_after_ms) WHERE state < 5")
    await _insert(room, "n0", "long-", first=1, runs=_DONE // 2 // _OF_RUN, of_run=_OF_RUN, state=5)
    await _insert(room, "old", "small-", first=1, runs=_DONE // 2, of_run=1, state=5)
    await room.tamper("ANALYZE")
    for number in range(_NODES):
        state = 1 + number % 2
        await _insert(room, f"n{number}", f"open-{number}-", first=_DONE, runs=_RUNS, of_run=_OF_RUN, state=state)
    if known == "now":
        await room.tamper("ANALYZE")

    def examined(tx: Transaction) -> dict[str, int]:
        found, before = {}, 0
        for name, read in {"nothing": lambda conn: [1], **_OF_ALL, **_OF_NODE}.items():
            assert read(tx.conn) or name in _FIND_NOTHING or name == "signed_open", name
            now = int(tx.conn.exec_driver_sql(_EXAMINED).scalar() or 0)
            found[name], before = now - before, now
        return found

    try:
        found = await room.database.write(examined)
    finally:
        await room.tamper("DROP INDEX IF EXISTS ix_commands_open")
    # A row counts where its index entry is read and where it is fetched; what is due is found first, then locked.
    assert {name: rows for name, rows in found.items() if name in _OF_ALL and rows > 6 * _OPEN} == {}
    assert {name: rows for name, rows in found.items() if name in _OF_NODE and rows > 6 * _OPEN // _NODES} == {}


async def _is_open(room: Room) -> dict[str, int]:
    return {str(node_id): int(flag) for node_id, flag in await room.query("SELECT node_id, is_open FROM command_runs")}


async def test_a_run_ends_once_all_its_commands_have(room: Room) -> None:
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1", count=2))
    first, second = await room.claim(node.node_id)
    await room.commands.record_reports(node.node_id, [report(first, wire.COMMAND_STATE_SUCCEEDED)])
    for _ in range(2):
        await room.commands.poll()
    assert await _is_open(room) == {node.node_id: 1}
    await room.commands.record_reports(node.node_id, [report(second, wire.COMMAND_STATE_FAILED)])
    for _ in range(2):
        await room.commands.poll()
    assert await _is_open(room) == {node.node_id: 0}
    assert room.commands.open_count(node.node_id) == 0


async def test_a_run_as_an_older_server_inserts_it_is_open_and_found(room: Room) -> None:
    node = await room.add_node("n1")
    await room.commands.issue("alice", order("n1", count=2))
    await room.tamper("CREATE TEMPORARY TABLE said AS SELECT issue_id, node_id, first_seq, count FROM command_runs")
    await room.tamper("DELETE FROM command_runs")
    await room.tamper("INSERT INTO command_runs (issue_id, node_id, first_seq, count) SELECT * FROM said")
    other = room.another_replica()
    await other.load()
    assert other.open_count(node.node_id) == 2


async def test_what_was_surveyed_before_the_database_went_back_ends_no_run_that_is_open(room: Room) -> None:
    """A standby took its place that lacks the end of a command: without its run nobody would ever find that again."""
    node, other = await room.add_node("n1"), await room.add_node("n2")
    issued = await room.commands.issue("alice", order("*", count=2))
    runs = [(issued.issue_id, each.node_id) for each in (node, other)]
    await room.tamper("UPDATE commands SET state = 5")
    assert sorted((await room.database.read(lambda conn: open_store.survey(conn, 0))).ended) == sorted(runs)
    await room.tamper("UPDATE commands SET state = 3 WHERE node_id = ? AND seq = 2", node.node_id)
    for each in (runs, runs[:1]):
        await room.database.write(lambda tx, each=each: open_store.end_runs(tx.conn, each))  # type: ignore[misc]
        assert await _is_open(room) == {node.node_id: 1, other.node_id: 0}


async def test_runs_that_somebody_holds_are_passed_over(room: Room) -> None:
    if room.database.dialect == "sqlite":
        pytest.skip("SQLite has one writer")
    first, second = await room.add_node("n1"), await room.add_node("n2")
    issued = await room.commands.issue("alice", order("*"))
    runs = [(issued.issue_id, node.node_id) for node in (first, second)]
    await room.tamper("UPDATE commands SET state = 5")
    with room.database.writer._engine.connect() as holding:
        held = "SELECT 1 FROM command_runs WHERE node_id = %s FOR UPDATE"
        holding.exec_driver_sql(held, (first.node_id,)).all()
        await room.database.write(lambda tx: open_store.end_runs(tx.conn, runs))
    assert await _is_open(room) == {first.node_id: 1, second.node_id: 0}
