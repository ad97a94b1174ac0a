"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"  # could not be looked at, for a reason that another line names


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Args:
        check: stable name, such as "tcp".
        level: how it came out.
        detail: what was seen.
        next_step: what to do; empty when nothing is to be done.
        endpoint: which gateway it is about; empty when none.
    """

    check: str
    level: Level
    detail: str
    next_step: str = ""
    endpoint: str = ""


def ok(check: str, detail: str, *, endpoint: str = "") -> Finding:
    """All is well."""
    return Finding(check, Level.OK, detail, endpoint=endpoint)


def warn(check: str, detail: str, next_step: str, *, endpoint: str = "") -> Finding:
    """It works, and will not for long, or not well."""
    return Finding(check, Level.WARN, detail, next_step, endpoint)


def fail(check: str, detail: str, next_step: str, *, endpoint: str = "") -> Finding:
    """It does not work."""
    return Finding(check, Level.FAIL, detail, next_step, endpoint)


def skip(check: str, detail: str, *, endpoint: str = "") -> Finding:
    """It was not looked at."""
    return Finding(check, Level.SKIP, detail, endpoint=endpoint)


def has_failed(findings: list[Finding]) -> bool:
    """Whether anything does not work."""
    return any(finding.level is Level.FAIL for finding in findings)
