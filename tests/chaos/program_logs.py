"""What programs logged that they should not have. Pure.

Every exception to the rule stands here with its reason: a line that a fault of the schedule brings about, that says
what is true, and about which nobody has to do anything once the fault is over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Allowed:
    """A line that may be there.

    Args:
        event: its event.
        holding: text that stands somewhere in the line; empty for any.
        because: why it is no defect.
    """

    event: str
    holding: str
    because: str


ALLOWED: tuple[Allowed, ...] = (
    Allowed(
        "database_stalled", "", "the database was deaf for as long as the writer waits; writes were refused clearly"
    ),
)


DATABASE_ALLOWED = (
    Allowed("ERROR", "pk_audit_checkpoints", "two replicas sign the next checkpoint; one is faster, as intended"),
    Allowed("ERROR", "uq_command_issues_idempotency", "an issue is repeated while its first answer is on its way"),
    Allowed("ERROR", "pk_telemetry_series", "two replicas number a node's series; the later one reads them again"),
    Allowed("ERROR", "due to statement timeout", "a line went deaf amid a statement; its replica gives up later"),
    Allowed("ERROR", "due to lock timeout", "a replica leaves a circle of waiting before the database looks for one"),
)


def database_findings(lines: Iterable[str]) -> Iterator[str]:
    """Errors in PostgreSQL's log that no allowance covers: statements that failed as none should."""
    for line in lines:
        if (" ERROR: " in line or " PANIC: " in line) and not any(each.holding in line for each in DATABASE_ALLOWED):
            yield f"postgres: {line.strip()[:500]}"


def findings(name: str, lines: Iterable[str]) -> Iterator[str]:
    """Lines of one program's log that no allowance covers, shortened.

    Args:
        name: of the program, for the text.
        lines: as printed: JSON, or what is printed around it.
    """
    for line in lines:
        entry = _parsed(line)
        if _is_bad(line, entry) and not any(_covers(allowed, line, entry) for allowed in ALLOWED):
            yield f"{name}: {line.strip()[:2000]}"


def _is_bad(line: str, entry: dict[str, Any] | None) -> bool:
    if entry is None:
        return "Traceback (most recent call last)" in line
    return entry.get("level") in ("error", "critical") or "Traceback (most recent call last)" in line


def _covers(allowed: Allowed, line: str, entry: dict[str, Any] | None) -> bool:
    return entry is not None and entry.get("event") == allowed.event and allowed.holding in line


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
