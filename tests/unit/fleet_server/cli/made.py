"""Nodes and commands as the server would show them, made for tests."""

from __future__ import annotations

from typing import Any

from fleet.v1 import admin_pb2, command_pb2
from tests.unit.fleet_server.cli.conftest import NOW_MS

SUCCEEDED, FAILED, RUNNING = (
    command_pb2.COMMAND_STATE_SUCCEEDED,
    command_pb2.COMMAND_STATE_FAILED,
    command_pb2.COMMAND_STATE_RUNNING,
)


def node(number: int, **changes: Any) -> admin_pb2.NodeView:
    values: dict[str, Any] = {
        "node_id": f"n_{number}",
        "name": f"press-{number}",
        "state": "ACTIVE",
        "online": True,
        "replica_id": "replica-a",
        "labels": {"line": "2", "a": "1"},
        "rtt_us": 1500,
    }
    return admin_pb2.NodeView(**{**values, **changes})


def command(number: int, state: int = SUCCEEDED, **changes: Any) -> admin_pb2.CommandView:
    values: dict[str, Any] = {
        "command_id": bytes([number]) * 16,
        "issue_id": "is_1",
        "node_id": f"n_{number}",
        "node_name": f"press-{number}",
        "monotonic_seq": 40 + number,
        "action": "host.info",
        "state": state,
        "started_at_ms": NOW_MS,
        "finished_at_ms": NOW_MS + 1200 if state not in (RUNNING,) else 0,
        "output": b'{"os":"linux","empty":""}' if state == SUCCEEDED else b"",
        "key_id": b"\xab" * 16,
    }
    return admin_pb2.CommandView(**{**values, **changes})


def changed(*commands: admin_pb2.CommandView) -> admin_pb2.WatchCommandsResponse:
    return admin_pb2.WatchCommandsResponse(commands=commands)


def issued(count: int, **changes: Any) -> admin_pb2.IssueCommandsResponse:
    return admin_pb2.IssueCommandsResponse(issue_id="is_1", issued_count=count, **changes)
