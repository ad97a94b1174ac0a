"""What `fleet-node status` says."""

from typing import Any

import pytest

from fleet.errors import Reason
from fleet_node.status.view import fields, what_to_do

NOW_MS = 1_900_000_000_000
LINK: dict[str, Any] = {
    "state": "live",
    "endpoint": "gw:7443",
    "stream_id": "s1",
    "stream_epoch": 4,
    "replica_id": "replica-1",
    "rtt_us": 1700,
    "clock_offset_ms": -3,
    "last_refusal": "",
    "last_detail": "",
    "next_attempt_s": 0.0,
    "streams_opened": 1,
    "since_ms": NOW_MS - 5000,
}
DAEMON: dict[str, Any] = {
    "pid": 7,
    "version": "1.2.3",
    "started_at_ms": NOW_MS - 3_700_000,
    "link": LINK,
    "trust": {"generation": 1, "number": 2, "expires_at_ms": NOW_MS, "fresh": True},
    "credentials": {"fingerprint": "AAAA", "rotating": []},
    "commands": {"running": 1, "journal_rows": 20, "reports_unacknowledged": 2, "drained": False},
    "telemetry": {"spool_bytes": 4096, "spool_batches": 3, "dropped_batches": 0},
    "drivers": ["host"],
    "driver_problems": [],
    "protected": {"actions": ["exec.run"], "unmatched": []},
    "metrics_address": "127.0.0.1:9465",
    "routes": None,
}
MEMBER: dict[str, Any] = {
    "state_dir": "/state",
    "fingerprint": "ABCD-EFGH",
    "enrollment": "member",
    "cluster_id": "c-1",
    "node_id": "nd_1",
    "name": "pump-1",
    "site": "hall-4",
    "bundle": {"generation": 1, "number": 2, "expires_at_ms": NOW_MS + 1},
    "daemon": DAEMON,
    "daemon_problem": "",
}


def text(**changes: Any) -> str:
    return "\n".join(f"{label} {value}" for label, value in fields(MEMBER | changes, NOW_MS))


def test_a_live_node_is_shown_whole() -> None:
    said = text()
    for part in (
        "pump-1 (nd_1)",
        "c-1, site hall-4",
        "ABCD-EFGH",
        "1.2, expires",
        "process 7",
        "up 61 min",
        "live for 5 s",
        "protected exec.run",
    ):
        assert part in said
    for part in (
        "s1 (epoch 4) at gw:7443, replica-1",
        "round trip 1.7 ms, clock -3 ms",
        "1 running, 20 journaled, 2 reports",
    ):
        assert part in said
    assert "last refusal" not in said


def test_a_node_that_waits_says_why_and_what_to_do() -> None:
    link = LINK | {
        "state": "waiting",
        "last_refusal": "SUSPENDED",
        "last_detail": "an operator did",
        "next_attempt_s": 21.3,
    }
    said = text(daemon=DAEMON | {"link": link})
    assert "waiting for 5 s, next attempt within 21 s" in said
    assert "SUSPENDED: an operator did" in said
    assert "`fleetctl nodes resume`" in said
    assert "round trip" not in said


def test_what_is_wrong_stands_out() -> None:
    problem = {"driver": "exec", "reason": "BAD_SETTINGS", "detail": "no path"}
    commands = DAEMON["commands"] | {"drained": True}
    telemetry = DAEMON["telemetry"] | {"dropped_batches": 9}
    said = text(
        daemon=DAEMON
        | {
            "driver_problems": [problem],
            "protected": {"actions": [], "unmatched": ["exec"]},
            "commands": commands,
            "telemetry": telemetry,
            "credentials": {"fingerprint": "AAAA", "rotating": ["api_key", "keys"]},
        },
        bundle={"generation": 1, "number": 2, "expires_at_ms": NOW_MS - 1},
    )
    for part in ("exec (BAD_SETTINGS): no path", "DRAINED", "9 dropped", "EXPIRED", "new api_key and keys of its own"):
        assert part in said
    for part in ("protected no action: every operator's command runs", "`exec` matches no action", "`exec.*` stands"):
        assert part in said


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"daemon": None}, "not running: `fleet-node run`"),
        ({"daemon": None, "daemon_problem": "it does not answer"}, "it does not answer"),
        ({"enrollment": "none"}, "not enrolled: `fleet-node enroll"),
        ({"enrollment": "pending", "enrollment_id": "en_1"}, "en_1 waits for an operator"),
        ({"fingerprint": ""}, "no keys yet"),
        ({"bundle": {"problem": "it is damaged"}}, "it is damaged"),
    ],
)
def test_what_is_missing_is_said(changes: dict[str, Any], part: str) -> None:
    assert part in text(**changes)


@pytest.mark.parametrize("reason", list(Reason))
def test_every_refusal_has_a_next_step(reason: Reason) -> None:
    assert len(what_to_do(str(reason))) > 15


def test_a_refusal_of_a_later_version_has_a_next_step_too() -> None:
    assert "nodes adopt" in what_to_do(
        "QUARANTINED"
    )  # a clone or a restore, far more often than a row that was changed
    assert what_to_do("SOMETHING_NEW") == what_to_do("INTERNAL")
    assert what_to_do("") == ""
