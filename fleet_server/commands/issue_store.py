"""SQL over `command_issues`: what was ordered, once for all of its commands."""

# Every part of a statement is a constant of this module; values only ever travel as parameters.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sqlalchemy.exc import IntegrityError

from fleet_server.commands.store import Connection, marks, padded
from fleet_server.database.statements import execute, fetch


class IdempotencyKeyTakenError(Exception):
    """Another replica used the same key at the same moment."""


class IssueRow(NamedTuple):
    """An issue; times in Unix milliseconds."""

    issue_id: str
    cluster_id: str
    actor: str
    idempotency_key: str | None
    request_sha256: bytes
    specs: bytes
    refused: bytes
    issued_count: int
    issued_at_ms: int
    not_after_ms: int


_ISSUE = ", ".join(IssueRow._fields)


def find_issue(conn: Connection, actor: str, idempotency_key: str) -> IssueRow | None:
    """The issue that an operator made under this key."""
    text = f"SELECT {_ISSUE} FROM command_issues WHERE actor = ? AND idempotency_key = ?"
    found = fetch(conn, text, (actor, idempotency_key))
    return IssueRow._make(found[0]) if found else None


def load_issues(conn: Connection, issue_ids: Sequence[str]) -> Iterator[IssueRow]:
    """Issues by id."""
    for chunk in padded(issue_ids):
        text = f"SELECT {_ISSUE} FROM command_issues WHERE issue_id IN ({marks(chunk)})"
        yield from map(IssueRow._make, fetch(conn, text, chunk))


def issue_exists(conn: Connection, issue_id: str) -> bool:
    """Whether there is such an issue."""
    return bool(fetch(conn, "SELECT 1 FROM command_issues WHERE issue_id = ?", (issue_id,)))


def insert_issue(conn: Connection, row: IssueRow) -> None:
    """Add an issue.

    Raises:
        IdempotencyKeyTakenError: the transaction is of no use any more.
    """
    text = f"INSERT INTO command_issues ({_ISSUE}) VALUES ({marks(row)})"
    try:
        execute(conn, text, row)
    except IntegrityError:
        raise IdempotencyKeyTakenError from None
