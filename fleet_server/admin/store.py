"""SQL of the admin room: operators. Rows are verified here, so nobody sees one that was written around the server."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, Row, insert, select, update

from fleet_server.admin.rules import Role, parse_role
from fleet_server.database.schema import operators
from fleet_server.trust.secrets import RowMac


@dataclass(frozen=True, slots=True)
class Operator:
    """A person or program that may call. `intact` is False when the row was written around the server."""

    operator_id: str
    name: str
    role: Role
    created_at_ms: int
    revoked_at_ms: int
    intact: bool


class OperatorStore:
    """Rows of `operators`.

    Args:
        row_mac: MAC of that table.
    """

    def __init__(self, row_mac: RowMac) -> None:
        self._row_mac = row_mac

    def insert(self, conn: Connection, operator: Operator, token_sha256: bytes) -> None:
        """A new operator."""
        conn.execute(
            insert(operators).values(
                operator_id=operator.operator_id,
                name=operator.name,
                role=operator.role.word,
                token_sha256=token_sha256,
                created_at_ms=operator.created_at_ms,
                revoked_at_ms=0,
                mac=self._mac(operator.operator_id, operator.name, operator.role.word, token_sha256, 0),
            )
        )

    def by_token(self, conn: Connection, token_sha256: bytes) -> Operator | None:
        """Operator who holds the token with this hash."""
        return self._one(conn, operators.c.token_sha256 == token_sha256)

    def by_name(self, conn: Connection, name: str) -> Operator | None:
        """Operator by name or id."""
        return self._one(conn, (operators.c.name == name) | (operators.c.operator_id == name))

    def all(self, conn: Connection) -> list[Operator]:
        """Every operator by name, revoked ones too."""
        return [self._operator(row) for row in conn.execute(select(operators).order_by(operators.c.name))]

    def revoke(self, conn: Connection, operator_id: str, now_ms: int) -> None:
        """End an operator's token; the row is sealed anew, so that nobody revives it by editing a column."""
        row = conn.execute(select(operators).where(operators.c.operator_id == operator_id)).one()
        conn.execute(
            update(operators)
            .where(operators.c.operator_id == operator_id)
            .values(revoked_at_ms=now_ms, mac=self._mac(row.operator_id, row.name, row.role, row.token_sha256, now_ms))
        )

    def _one(self, conn: Connection, condition: object) -> Operator | None:
        row = conn.execute(select(operators).where(condition)).first()  # type: ignore[arg-type]
        return None if row is None else self._operator(row)

    def _operator(self, row: Row[tuple[object, ...]]) -> Operator:
        sealed = (row.operator_id, row.name, row.role, bytes(row.token_sha256), row.revoked_at_ms)
        intact = self._row_mac.verify(bytes(row.mac), *sealed)
        return Operator(
            operator_id=row.operator_id,
            name=row.name,
            role=parse_role(row.role) if intact else Role.VIEWER,
            created_at_ms=row.created_at_ms,
            revoked_at_ms=row.revoked_at_ms,
            intact=intact,
        )

    def _mac(self, operator_id: str, name: str, role: str, token_sha256: bytes, revoked_at_ms: int) -> bytes:
        return self._row_mac.compute(operator_id, name, role, token_sha256, revoked_at_ms)
