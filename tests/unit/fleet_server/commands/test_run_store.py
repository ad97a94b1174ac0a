"""Which commands an issue holds: shown by primary keys alone, and only what the commands' own rows say too."""

from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from fleet.v1 import admin_pb2
from fleet_server.commands import history_store, open_store, store
from fleet_server.commands.store import Connection
from tests.unit.fleet_server.commands.room import Room, order

READS: dict[str, Callable[[Connection, str, str], Any]] = {
    "keys_of_issue": lambda conn, issue, node: store.keys_of_issue(conn, issue),
    "open_of_issue": lambda conn, issue, node: store.open_of_issue(conn, issue),
    "open_keys": lambda conn, issue, node: history_store.open_keys(conn, issue),
    "page_of_issue": lambda conn, issue, node: history_store.page_of_issue(conn, issue, after=(node, 1), limit=1000),
    "open_page_of_issue": lambda conn, issue, node: history_store.page_of_issue(
        conn, issue, after=(node, 1), limit=1000, open_only=True
    ),
    "page_of_node_and_issue": lambda conn, issue, node: history_store.page_of_node(
        conn, node, issue_id=issue, before_seq=None, limit=100, open_only=False
    ),
    "open_of_node": lambda conn, issue, node: history_store.page_of_node(
        conn, node, issue_id="", before_seq=None, limit=100, open_only=True
    ),
    "open_issues": lambda conn, issue, node: history_store.open_issues(conn),
    "found_open": lambda conn, issue, node: history_store.found_open(conn, 100),
    "survey": lambda conn, issue, node: open_store.survey(conn, 0),
    "unsigned_past": lambda conn, issue, node: store.unsigned_past(conn, 2**62, 100),
}


@pytest.mark.parametrize("read", READS)
async def test_nothing_is_found_by_reading_all_commands(room: Room, read: str) -> None:
    if room.database.dialect != "sqlite":
        pytest.skip("PostgreSQL plans by the sizes of tables: these are small")
    node = await room.add_node("n1")
    issued = await room.commands.issue("alice", order("n1", count=3))

    def plans(conn: Connection) -> list[str]:
        statements: list[str] = []
        driver: Any = conn.connection.driver_connection
        driver.set_trace_callback(statements.append)
        found = READS[read](conn, issued.issue_id, node.node_id)
        driver.set_trace_callback(None)
        assert found
        explained = [conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {each}").all() for each in statements]
        return [step[3] for plan in explained for step in plan]

    steps = await room.database.read(plans)
    assert steps
    scanned = [
        step for step in steps if step.startswith("SCAN") and not step.endswith("USING INDEX ix_command_runs_open")
    ]
    assert not scanned
    # A page of an issue comes in order of the primary keys: it costs what it shows, however large the issue.
    assert not [step for step in steps if "TEMP B-TREE" in step and "page" in read]


async def test_an_issue_shows_its_own_commands_among_others(room: Room) -> None:
    first, second = await room.add_node("n1"), await room.add_node("n2")
    await room.commands.issue("alice", order("n1", count=2))
    issued = await room.commands.issue("alice", order("*", count=3))
    await room.commands.issue("alice", order("*", count=1))
    shown = {(view.node_id, view.monotonic_seq) for view in await room.views(issued.issue_id)}
    assert shown == {(first.node_id, seq) for seq in (3, 4, 5)} | {(second.node_id, seq) for seq in (1, 2, 3)}
    request = admin_pb2.ListCommandsRequest(issue_id=issued.issue_id, node="n1")
    assert [view.monotonic_seq for view in (await room.commands.list_page(request)).commands] == [5, 4, 3]


async def test_a_run_written_by_hand_shows_no_command_of_another_issue(room: Room) -> None:
    node = await room.add_node("n1")
    issued = await room.commands.issue("alice", order("n1", count=2))
    other = await room.commands.issue("alice", order("n1", count=2))
    await room.tamper(
        "UPDATE command_runs SET first_seq = 1, count = 1000 WHERE issue_id = ?",
        issued.issue_id,
    )
    assert [view.monotonic_seq for view in await room.views(issued.issue_id)] == [1, 2]
    cancelled = await room.commands.cancel("alice", issue_id=issued.issue_id)
    assert [(view.node_id, view.monotonic_seq) for view in cancelled] == [(node.node_id, 1), (node.node_id, 2)]
    assert [view.cancel_requested for view in await room.views(other.issue_id)] == [False, False]


@pytest.mark.parametrize(
    ("first_seq", "count"),
    [(2**63 - 1, 1), (2**63 - 1, 2**31 - 1), (-(2**63), -(2**31)), (1, -(2**31)), (0, 1), (2**62 + 1, 2**31 - 1)],
)
async def test_a_run_that_no_server_writes_is_named_and_hides_no_true_one(
    room: Room, first_seq: int, count: int
) -> None:
    true, forged = await room.add_node("n1"), await room.add_node("n2")
    issued = await room.commands.issue("alice", order("*", count=2))
    await room.tamper(
        "UPDATE command_runs SET first_seq = ?, count = ? WHERE node_id = ?", first_seq, count, forged.node_id
    )
    keys = [(true.node_id, 1), (true.node_id, 2)]
    with capture_logs() as logs:
        assert [(view.node_id, view.monotonic_seq) for view in await room.views(issued.issue_id)] == keys
    (told,) = [log for log in logs if log["event"] == "command_run_tampered"]
    assert told["nodes"] == [forged.node_id]
    for read in ("keys_of_issue", "open_keys"):
        found = await room.database.read(lambda conn, read=read: READS[read](conn, issued.issue_id, ""))  # type: ignore[misc]
        assert len(found) == 2
    assert [view.monotonic_seq for view in await room.views_of_node("n2")] == [2, 1]
    cancelled = await room.commands.cancel("alice", issue_id=issued.issue_id)
    assert [(view.node_id, view.monotonic_seq) for view in cancelled] == keys


async def test_a_run_that_is_missing_hides_commands_and_stops_none(room: Room) -> None:
    node = await room.add_node("n1")
    issued = await room.commands.issue("alice", order("n1", count=2))
    await room.tamper("DELETE FROM command_runs")
    assert await room.views(issued.issue_id) == []
    assert [view.monotonic_seq for view in await room.views_of_node("n1")] == [2, 1]
    await room.open_stream(node.node_id)
    assert [each.seq for each in await room.claim(node.node_id)] == [1, 2]
