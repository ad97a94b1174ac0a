"""SQL of the admin room: operators. Rows are verified here, so nobody sees one that was written around the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fleet_server.admin.rules import ROLES, Role
from fleet_server.audit.spent import Spent, SpentRecord, What
from fleet_server.database.engine import Connection, for_update, octets, sql
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
        spent: which tokens ended; a row that was put back holds one of them.
    """

    def __init__(self, row_mac: RowMac, spent: SpentRecord) -> None:
        self._row_mac = row_mac
        self._spent = spent

    def insert(self, conn: Connection, operator: Operator, token_sha256: bytes) -> bool:
        """Add an operator; False when the name is taken."""
        fields = (operator.operator_id, operator.name, operator.role.word, token_sha256, operator.created_at_ms, 0)
        text = f"INSERT INTO operators ({_COLUMNS}, mac) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"  # noqa: S608
        return conn.exec_driver_sql(sql(conn, text), (*fields, self._row_mac.compute(*fields))).rowcount == 1

    def by_token(self, conn: Connection, token_sha256: bytes) -> Operator | None:
        """Operator who holds the token with this hash."""
        row = conn.exec_driver_sql(sql(conn, f"{_SELECT} WHERE token_sha256 = ?"), (token_sha256,)).first()
        return None if row is None else self._operator(tuple(row), self._spent.known(conn, keep=True))

    def by_name(self, conn: Connection, name: str) -> Operator | None:
        """Operator by name or id."""
        row = conn.exec_driver_sql(sql(conn, f"{_SELECT} WHERE name = ? OR operator_id = ?"), (name, name)).first()
        return None if row is None else self._operator(tuple(row), self._spent.known(conn))

    def all(self, conn: Connection, *, lock: bool = False) -> list[Operator]:
        """Every operator by name, revoked ones too; with `lock` nobody else revokes one until the transaction ends."""
        text = f"{_SELECT} ORDER BY name" + (for_update(conn) if lock else "")
        rows = conn.exec_driver_sql(text).fetchall()
        spent = self._spent.known(conn)
        return [self._operator(tuple(row), spent) for row in rows]

    def give_token(self, conn: Connection, operator: Operator, token_sha256: bytes) -> None:
        """Replace the token of an operator, revoked or not; the one before ends for good."""
        self._end_token(conn, operator.operator_id)
        fields = (operator.operator_id, operator.name, operator.role.word, token_sha256, operator.created_at_ms, 0)
        text = "UPDATE operators SET token_sha256 = ?, revoked_at_ms = 0, mac = ? WHERE operator_id = ?"
        values = (token_sha256, self._row_mac.compute(*fields), operator.operator_id)
        conn.exec_driver_sql(sql(conn, text), values)

    def revoke(self, conn: Connection, operator_id: str, now_ms: int) -> None:
        """End an operator's token for good; the row is sealed anew, so that nobody revives it by editing a column."""
        self._end_token(conn, operator_id)
        row = conn.exec_driver_sql(sql(conn, f"{_SELECT} WHERE operator_id = ?"), (operator_id,)).one()
        mac = self._row_mac.compute(*row[:5], now_ms)
        text = "UPDATE operators SET revoked_at_ms = ?, mac = ? WHERE operator_id = ?"
        conn.exec_driver_sql(sql(conn, text), (now_ms, mac, operator_id))

    def _end_token(self, conn: Connection, operator_id: str) -> None:
        text = "SELECT token_sha256 FROM operators WHERE operator_id = ?"
        (token_sha256,) = conn.exec_driver_sql(sql(conn, text), (operator_id,)).one()
        name = octets(token_sha256).hex()
        if not self._spent.known(conn).times(What.OPERATOR_TOKEN, name):
            self._spent.add(conn, What.OPERATOR_TOKEN, name)

    def _operator(self, row: Sequence[Any], spent: Spent) -> Operator:
        *fields, mac = row
        operator_id, name, role, token_sha256, created_at_ms, revoked_at_ms = fields
        intact = self._row_mac.verify(mac, *fields) and role in ROLES
        if intact and not revoked_at_ms:
            token = octets(token_sha256).hex()
            if spent.is_put_back(What.OPERATOR_TOKEN, token, 0):
                intact = False
            elif spent.times(What.OPERATOR_TOKEN, token):
                revoked_at_ms = created_at_ms  # ended a moment ago; the row of this snapshot says when
        return Operator(
            operator_id=operator_id,
            name=name,
            role=ROLES[role] if intact else Role.VIEWER,
            created_at_ms=created_at_ms,
            revoked_at_ms=revoked_at_ms,
            intact=intact,
        )
