"""SQL of the admin room: operators. Rows are verified here, so nobody sees one that was written around the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fleet_server.admin.rules import ROLES, Role
from fleet_server.database.engine import Connection, for_update, sql
from fleet_server.trust.secrets import RowMac

_COLUMNS = "operator_id, name, role, token_sha256, created_at_ms, revoked_at_ms"
_SELECT = f"SELECT {_COLUMNS}, mac FROM operators"  # noqa: S608 - constants


@dataclass(frozen=True, slots=True)
class Operator:
    """A person or program that may call. `intact` is False when the row was written around the server."""

    operator_id: str
    name: str
    role: Role
    created_at_ms: int
    revoked_at_ms: int
    intact: bool

    @property
    def is_owner(self) -> bool:
        """Whether this token still opens everything."""
        return self.intact and self.role is Role.OWNER and not self.revoked_at_ms


class OperatorStore:
    """Rows of `operators`.

    Args:
        row_mac: MAC of that table.
    """

    def __init__(self, row_mac: RowMac) -> None:
        self._row_mac = row_mac

    def insert(self, conn: Connection, operator: Operator, token_sha256: bytes) -> bool:
        """Add an operator; False when the name is taken."""
        fields = (operator.operator_id, operator.name, operator.role.word, token_sha256, operator.created_at_ms, 0)
        text = f"INSERT INTO operators ({_COLUMNS}, mac) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"  # noqa: S608
        return conn.exec_driver_sql(sql(conn, text), (*fields, self._row_mac.compute(*fields))).rowcount == 1

    def by_token(self, conn: Connection, token_sha256: bytes) -> Operator | None:
        """Operator who holds the token with this hash."""
        row = conn.exec_driver_sql(sql(conn, f"{_SELECT} WHERE token_sha256 = ?"), (token_sha256,)).first()
        return None if row is None else self._operator(tuple(row))

    def by_name(self, conn: Connection, name: str) -> Operator | None:
        """Operator by name or id."""
        row = conn.exec_driver_sql(sql(conn, f"{_SELECT} WHERE name = ? OR operator_id = ?"), (name, name)).first()
        return None if row is None else self._operator(tuple(row))

    def all(self, conn: Connection, *, lock: bool = False) -> list[Operator]:
        """Every operator by name, revoked ones too; with `lock` nobody else revokes one until the transaction ends."""
        text = f"{_SELECT} ORDER BY name" + (for_update(conn) if lock else "")
        return [self._operator(tuple(row)) for row in conn.exec_driver_sql(text)]

    def give_token(self, conn: Connection, operator: Operator, token_sha256: bytes) -> None:
        """Replace the token of an operator, revoked or not."""
        fields = (operator.operator_id, operator.name, operator.role.word, token_sha256, operator.created_at_ms, 0)
        text = "UPDATE operators SET token_sha256 = ?, revoked_at_ms = 0, mac = ? WHERE operator_id = ?"
        values = (token_sha256, self._row_mac.compute(*fields), operator.operator_id)
        conn.exec_driver_sql(sql(conn, text), values)

    def revoke(self, conn: Connection, operator_id: str, now_ms: int) -> None:
        """End an operator's token; the row is sealed anew, so that nobody revives it by editing a column."""
        row = conn.exec_driver_sql(sql(conn, f"{_SELECT} WHERE operator_id = ?"), (operator_id,)).one()
        mac = self._row_mac.compute(*row[:5], now_ms)
        text = "UPDATE operators SET revoked_at_ms = ?, mac = ? WHERE operator_id = ?"
        conn.exec_driver_sql(sql(conn, text), (now_ms, mac, operator_id))

    def _operator(self, row: Sequence[Any]) -> Operator:
        *fields, mac = row
        operator_id, name, role, _, created_at_ms, revoked_at_ms = fields
        intact = self._row_mac.verify(mac, *fields) and role in ROLES
        return Operator(
            operator_id=operator_id,
            name=name,
            role=ROLES[role] if intact else Role.VIEWER,
            created_at_ms=created_at_ms,
            revoked_at_ms=revoked_at_ms,
            intact=intact,
        )
