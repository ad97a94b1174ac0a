"""Reads what the witnesses left: tables, drivers' logs, journals, logs of programs. Blocking."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from fleet.v1 import admin_pb2, command_pb2
from fleet_node.commands.audit_reading import read_audit_copy
from fleet_node.commands.opening import JournalDamagedError, JournalUnavailableError, copy_journal, inspect_journal
from fleet_node.enrollment.folder import StateFolder
from tests.chaos.database import MortalPostgres
from tests.chaos.evidence import CommandRow, Journal, LogLine, NodeRow
from tests.chaos.node_group import run_log


def commands(database: MortalPostgres) -> list[CommandRow]:
    """Every command that the server knows."""
    specs = {
        issue_id: admin_pb2.IssueCommandsRequest.FromString(bytes(text)).commands
        for issue_id, text in database.ask("SELECT issue_id, specs FROM command_issues")
    }
    rows = []
    for node_id, seq, command_id, issue_id, spec_no, state, reason in database.ask(
        "SELECT node_id, seq, command_id, issue_id, spec_no, state, reason FROM commands ORDER BY node_id, seq"
    ):
        spec = specs[issue_id][spec_no]
        device = json.loads(spec.arguments or b"{}").get("device")
        rows.append(
            CommandRow(node_id, seq, bytes(command_id), issue_id, state_name(state), reason, spec.action, device)
        )
    return rows


def issue_counts(database: MortalPostgres) -> dict[str, int]:
    """How many commands each issue says that it holds."""
    return dict(database.ask("SELECT issue_id, issued_count FROM command_issues"))  # type: ignore[arg-type]


def nodes(database: MortalPostgres) -> list[NodeRow]:
    """Every node that the server knows."""
    return [
        NodeRow(*row)
        for row in database.ask(
            "SELECT node_id, name, state, drain_state, last_seq, last_accepted_seq FROM nodes ORDER BY name"
        )
    ]


def runs(folder: Path) -> Iterator[LogLine]:
    """What the drivers of the node in that state folder wrote.

    Raises:
        ValueError: a line is not whole.
    """
    path = run_log(folder)
    for line in path.read_text().splitlines() if path.exists() else ():
        entry = json.loads(line)
        yield LogLine(bytes.fromhex(entry["command_id"]), entry.get("state", ""))


def journal(folder: Path, node_id: str) -> Journal:
    """What a node's journal says. Its process has ended.

    Raises:
        JournalDamagedError, JournalUnavailableError, sqlite3.Error: it cannot be read.
    """
    path = StateFolder(folder).journal
    copy = folder.parent / f"{folder.name}.journal"
    copy.unlink(missing_ok=True)
    facts = inspect_journal(path, node_id)
    copy_journal(path, node_id, copy)
    connection = sqlite3.connect(copy)
    try:
        states = {
            seq: (command_id, state_name(state))
            for seq, command_id, state in connection.execute("SELECT seq, command_id, state FROM entries")
        }
        (accepted,) = connection.execute("SELECT last_accepted_seq FROM counters").fetchone()
    finally:
        connection.close()
    # The counter lags behind the rows: see the journal's store.
    last_accepted = max([accepted, *states])
    return Journal(last_accepted, states, facts.unacknowledged, read_audit_copy(copy, node_id).findings)


def state_name(state: int) -> str:
    """A command's state as people know it."""
    return command_pb2.CommandState.Name(command_pb2.CommandState.ValueType(state)).removeprefix("COMMAND_STATE_")


UNREADABLE = (JournalDamagedError, JournalUnavailableError, sqlite3.Error, OSError, ValueError, AssertionError)
"""What reading evidence may fail with."""
