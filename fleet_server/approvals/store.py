"""SQL over `approvals`; every row is checked against its MAC as it is read."""

from __future__ import annotations

from typing import Any

from fleet_server.approvals.rules import Approval, ApprovalState
from fleet_server.database.engine import Connection, for_update, sql
from fleet_server.trust.secrets import RowMac

_COLUMNS = (
    "approval_id, cluster_id, action, arguments, intent, ttl_s, created_by, created_at_ms, expires_at_ms, state,"
    " issue_id, closed_by, reason"
)
_SELECT = f"SELECT {_COLUMNS}, mac FROM approvals"  # noqa: S608 - constants


class ApprovalStore:
    """Rows of `approvals`, covered by a MAC whole: what waits there is issued in an operator's name.

    Args:
        mac: of that table.
    """

    def __init__(self, mac: RowMac) -> None:
        self._mac = mac

    def insert(self, conn: Connection, approval: Approval) -> None:
        """Add one."""
        fields = _fields(approval)
        marks = ", ".join("?" * (len(fields) + 1))
        text = f"INSERT INTO approvals ({_COLUMNS}, mac) VALUES ({marks})"  # noqa: S608 - constants
        conn.exec_driver_sql(sql(conn, text), (*fields, self._mac.compute(*fields)))

    def update(self, conn: Connection, approval: Approval) -> None:
        """Store what changes in its life."""
        text = (
            "UPDATE approvals SET intent = ?, ttl_s = ?, state = ?, issue_id = ?, closed_by = ?, reason = ?, mac = ?"
            " WHERE approval_id = ?"
        )
        changed = (
            approval.intent,
            approval.ttl_s,
            str(approval.state),
            approval.issue_id,
            approval.closed_by,
            approval.reason,
            self._mac.compute(*_fields(approval)),
            approval.approval_id,
        )
        conn.exec_driver_sql(sql(conn, text), changed)

    def by_id(self, conn: Connection, approval_id: str, *, lock: bool = False) -> Approval | None:
        """One; with `lock` nobody else signs or closes it until the transaction ends."""
        text = f"{_SELECT} WHERE approval_id = ?" + (for_update(conn) if lock else "")
        row = conn.exec_driver_sql(sql(conn, text), (approval_id,)).first()
        return None if row is None else self._approval(tuple(row))

    def newest(self, conn: Connection, limit: int) -> list[Approval]:
        """In any state, newest first."""
        text = f"{_SELECT} ORDER BY created_at_ms DESC, approval_id LIMIT ?"
        return [self._approval(tuple(row)) for row in conn.exec_driver_sql(sql(conn, text), (limit,))]

    def waiting(self, conn: Connection, state: ApprovalState, now_ms: int, limit: int) -> list[Approval]:
        """In a state that waits, not expired, newest first."""
        text = f"{_SELECT} WHERE state = ? AND expires_at_ms > ? ORDER BY created_at_ms DESC, approval_id LIMIT ?"
        found = conn.exec_driver_sql(sql(conn, text), (str(state), now_ms, limit))
        return [self._approval(tuple(row)) for row in found]

    def count_pending(self, conn: Connection, now_ms: int, created_by: str = "") -> int:
        """How many wait, of everybody or of one operator."""
        text = "SELECT COUNT(*) FROM approvals WHERE state = 'PENDING' AND expires_at_ms > ?"
        values: tuple[int | str, ...] = (now_ms,)
        if created_by:
            text, values = f"{text} AND created_by = ?", (now_ms, created_by)
        return int(conn.exec_driver_sql(sql(conn, text), values).scalar_one())

    def forget(self, conn: Connection, ended_before_ms: int, limit: int) -> int:
        """Delete those whose intent ended before a time, whatever became of them: nobody can propose it again."""
        text = (
            "DELETE FROM approvals WHERE approval_id IN"
            " (SELECT approval_id FROM approvals WHERE expires_at_ms < ? ORDER BY created_at_ms LIMIT ?)"
        )
        return conn.exec_driver_sql(sql(conn, text), (ended_before_ms, limit)).rowcount

    def _approval(self, row: tuple[Any, ...]) -> Approval:
        *fields, mac = row
        intact = self._mac.verify(mac, *fields)
        fields[9] = ApprovalState(fields[9]) if intact else ApprovalState.QUARANTINED
        fields.append(intact)
        return Approval(*fields)


def _fields(approval: Approval) -> tuple[bytes | str | int, ...]:
    return (
        approval.approval_id,
        approval.cluster_id,
        approval.action,
        approval.arguments,
        approval.intent,
        approval.ttl_s,
        approval.created_by,
        approval.created_at_ms,
        approval.expires_at_ms,
        str(approval.state),
        approval.issue_id,
        approval.closed_by,
        approval.reason,
    )
