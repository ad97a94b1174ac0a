"""Logs of programs: errors and tracebacks are findings, everything else is not."""

import json

from tests.chaos.program_logs import ALLOWED, findings


def told(**entry: str) -> str:
    return json.dumps(entry)


def test_errors_and_tracebacks_are_found_and_nothing_else_is() -> None:
    lines = [
        told(level="info", event="ready"),
        told(level="warning", event="stream_lost"),
        "plain text",
        told(level="error", event="unexpected_error"),
        told(level="critical", event="node_failed"),
        told(level="warning", event="odd", exception="Traceback (most recent call last):"),
        "Traceback (most recent call last):",
    ]
    assert [each.split(": ", 1)[1] for each in findings("replica-1", lines)] == lines[3:]


def test_every_allowance_says_why() -> None:
    assert all(allowed.event and len(allowed.because) > 20 for allowed in ALLOWED)
