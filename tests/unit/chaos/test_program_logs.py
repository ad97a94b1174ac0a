"""Logs of programs: errors and tracebacks are findings, everything else is not."""

import json

from tests.chaos.program_logs import ALLOWED, DATABASE_ALLOWED, database_findings, findings


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
    assert all(allowed.event and len(allowed.because) > 20 for allowed in (*ALLOWED, *DATABASE_ALLOWED))


def test_statements_that_fail_as_none_should_are_found_in_the_databases_log() -> None:
    lines = [
        'ERROR:  duplicate key value violates unique constraint "pk_commands"',
        'ERROR:  duplicate key value violates unique constraint "pk_audit_checkpoints"',
        "FATAL:  terminating connection due to administrator command",
        "PANIC:  could not write to file",
    ]
    found = list(database_findings(f"2026-01-01 00:00:00 UTC [1] {line}" for line in lines))
    assert [each.rsplit("[1] ", 1)[1] for each in found] == [lines[0], lines[3]]
