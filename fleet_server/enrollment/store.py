"""SQL over `join_tokens` and `enrollments`; every row is checked against its MAC as it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fleet.v1 import enrollment_pb2
from fleet_server.audit.spent import Spent, SpentRecord, What
from fleet_server.database.engine import Connection, for_update, octets, sql
from fleet_server.enrollment.rules import EnrollmentRecord, JoinTokenRecord
from fleet_server.trust.secrets import RowMac

_TOKEN = (
    "token_id, cluster_id, secret_sha256, site, max_uses, uses, auto_approve, created_by, created_at_ms, expires_at_ms,"
    " revoked_at_ms"
)
_ENROLLMENT = (
    "enrollment_id, cluster_id, token_id, identity_key, sealing_key, name, site, reported_labels, version,"
    " peer_address, state, created_at_ms, decided_at_ms, decided_by, reason, node_id, bootstrap"
)
_STATES: Mapping[int, enrollment_pb2.EnrollmentState.ValueType] = {
    int(state): state for state in enrollment_pb2.EnrollmentState.values()
}


class TokenStore:
    """Rows of `join_tokens`. The MAC covers the count of uses too: a used token is not made fresh by an UPDATE, nor by
    a row that is put back, for uses and ends are recorded a second time.

    Args:
        mac: of the table.
        spent: that record.
    """

    def __init__(self, mac: RowMac, spent: SpentRecord) -> None:
        self._mac = mac
        self._spent = spent

    def insert(self, conn: Connection, token: JoinTokenRecord) -> None:
        """Add a token."""
        text = f"INSERT INTO join_tokens ({_TOKEN}, mac) VALUES ({_marks(12)})"  # noqa: S608 - constants
        fields = _token_fields(token)
        conn.exec_driver_sql(sql(conn, text), (*fields, self._mac.compute(*fields)))

    def by_id(self, conn: Connection, token_id: str, *, lock: bool = False) -> JoinTokenRecord | None:
        """One token; with `lock` nobody else counts a use until the transaction ends."""
        text = f"SELECT {_TOKEN}, mac FROM join_tokens WHERE token_id = ?" + (for_update(conn) if lock else "")  # noqa: S608
        row = conn.exec_driver_sql(sql(conn, text), (token_id,)).first()
        return None if row is None else self._record(tuple(row), self._spent.known(conn))

    def page(self, conn: Connection, before: tuple[int, str], limit: int) -> list[JoinTokenRecord]:
        """Tokens, newest first."""
        text = (
            f"SELECT {_TOKEN}, mac FROM join_tokens WHERE created_at_ms < ? OR (created_at_ms = ? AND token_id < ?)"  # noqa: S608
            " ORDER BY created_at_ms DESC, token_id DESC LIMIT ?"
        )
        rows = conn.exec_driver_sql(sql(conn, text), (before[0], before[0], before[1], limit)).fetchall()
        spent = self._spent.known(conn)
        return [self._record(tuple(row), spent) for row in rows]

    def count_use(self, conn: Connection, token: JoinTokenRecord) -> None:
        """One more node has enrolled with it."""
        self._spent.add(conn, What.JOIN_TOKEN_USE, token.token_id)
        self._update(conn, replace(token, uses=token.uses + 1))

    def revoke(self, conn: Connection, token: JoinTokenRecord, now_ms: int) -> JoinTokenRecord:
        """End it."""
        self._spent.add(conn, What.JOIN_TOKEN, token.token_id)
        revoked = replace(token, revoked_at_ms=now_ms)
        self._update(conn, revoked)
        return revoked

    def _update(self, conn: Connection, token: JoinTokenRecord) -> None:
        text = "UPDATE join_tokens SET uses = ?, revoked_at_ms = ?, mac = ? WHERE token_id = ?"
        mac = self._mac.compute(*_token_fields(token))
        conn.exec_driver_sql(sql(conn, text), (token.uses, token.revoked_at_ms, mac, token.token_id))

    def _record(self, row: tuple[Any, ...], spent: Spent) -> JoinTokenRecord:
        *fields, mac = row
        fields.append(self._mac.verify(mac, *fields))
        fields[2] = octets(fields[2])
        record = JoinTokenRecord(*fields)
        if record.intact:
            record = _not_put_back(record, spent)
        return replace(record, auto_approve=bool(record.auto_approve) and record.intact)


class EnrollmentStore:
    """Rows of `enrollments`, covered by a MAC whole: whose keys were approved, and what was handed to them."""

    def __init__(self, mac: RowMac) -> None:
        self._mac = mac

    def insert(self, conn: Connection, record: EnrollmentRecord) -> None:
        """Add a request."""
        text = f"INSERT INTO enrollments ({_ENROLLMENT}, mac) VALUES ({_marks(18)})"  # noqa: S608 - constants
        fields = _enrollment_fields(record)
        conn.exec_driver_sql(sql(conn, text), (*fields, self._mac.compute(*fields)))

    def decide(self, conn: Connection, record: EnrollmentRecord) -> None:
        """Store a decision."""
        text = (
            "UPDATE enrollments SET name = ?, state = ?, decided_at_ms = ?, decided_by = ?, reason = ?, node_id = ?,"
            " bootstrap = ?, mac = ? WHERE enrollment_id = ?"
        )
        fields = (
            record.name,
            int(record.state),
            record.decided_at_ms,
            record.decided_by,
            record.reason,
            record.node_id,
            record.bootstrap,
            self._mac.compute(*_enrollment_fields(record)),
            record.enrollment_id,
        )
        conn.exec_driver_sql(sql(conn, text), fields)

    def by_id(self, conn: Connection, enrollment_id: str, *, lock: bool = False) -> EnrollmentRecord | None:
        """One request; with `lock` nobody else decides it until the transaction ends."""
        suffix = for_update(conn) if lock else ""
        text = f"SELECT {_ENROLLMENT}, mac FROM enrollments WHERE enrollment_id = ?{suffix}"  # noqa: S608 - constants
        row = conn.exec_driver_sql(sql(conn, text), (enrollment_id,)).first()
        return None if row is None else self._record(tuple(row))

    def by_keys(
        self, conn: Connection, token_id: str, identity_key: bytes, sealing_key: bytes
    ) -> EnrollmentRecord | None:
        """The request that these keys made with this token."""
        text = (
            f"SELECT {_ENROLLMENT}, mac FROM enrollments"  # noqa: S608 - constants
            " WHERE token_id = ? AND identity_key = ? AND sealing_key = ?"
        )
        row = conn.exec_driver_sql(sql(conn, text), (token_id, identity_key, sealing_key)).first()
        return None if row is None else self._record(tuple(row))

    def token_of_node(self, conn: Connection, node_id: str) -> str | None:
        """Id of the token with which a node's machine joined."""
        text = "SELECT token_id FROM enrollments WHERE node_id = ? ORDER BY decided_at_ms DESC LIMIT 1"
        row = conn.exec_driver_sql(sql(conn, text), (node_id,)).first()
        return None if row is None else str(row[0])

    def page(self, conn: Connection, state: int, before: tuple[int, str], limit: int) -> list[EnrollmentRecord]:
        """Requests in a state (0: in any), newest first."""
        text = (
            f"SELECT {_ENROLLMENT}, mac FROM enrollments WHERE (? = 0 OR state = ?)"  # noqa: S608 - constants
            " AND (created_at_ms < ? OR (created_at_ms = ? AND enrollment_id < ?))"
            " ORDER BY created_at_ms DESC, enrollment_id DESC LIMIT ?"
        )
        fields = (state, state, before[0], before[0], before[1], limit)
        return [self._record(tuple(row)) for row in conn.exec_driver_sql(sql(conn, text), fields)]

    def _record(self, row: tuple[Any, ...]) -> EnrollmentRecord:
        *fields, mac = row
        fields[16] = fields[16] or b""
        intact = self._mac.verify(mac, *fields)
        # What is not intact is shown, and confers nothing: no state but PENDING, no bootstrap.
        fields[3:5] = map(octets, fields[3:5])
        fields[7] = json.loads(fields[7]) if intact else {}
        fields[10] = _STATES[fields[10]] if intact else enrollment_pb2.ENROLLMENT_STATE_PENDING
        fields[16] = fields[16] if intact else b""
        fields.append(intact)
        return EnrollmentRecord(*fields)


def _not_put_back(token: JoinTokenRecord, spent: Spent) -> JoinTokenRecord:
    """The token as it is known, when its row is of an earlier time; not intact, when the row was put back there."""
    ended = bool(token.revoked_at_ms)
    put_back = spent.is_put_back(What.JOIN_TOKEN_USE, token.token_id, token.uses) or (
        not ended and spent.is_put_back(What.JOIN_TOKEN, token.token_id, 0)
    )
    if not ended and spent.times(What.JOIN_TOKEN, token.token_id):
        ended = True
        token = replace(token, revoked_at_ms=token.created_at_ms)
    uses = max(token.uses, spent.times(What.JOIN_TOKEN_USE, token.token_id))
    return replace(token, uses=uses, intact=not put_back)


def _token_fields(token: JoinTokenRecord) -> tuple[Any, ...]:
    return (
        token.token_id,
        token.cluster_id,
        token.secret_sha256,
        token.site,
        token.max_uses,
        token.uses,
        int(token.auto_approve),
        token.created_by,
        token.created_at_ms,
        token.expires_at_ms,
        token.revoked_at_ms,
    )


def _enrollment_fields(record: EnrollmentRecord) -> tuple[Any, ...]:
    return (
        record.enrollment_id,
        record.cluster_id,
        record.token_id,
        record.identity_key,
        record.sealing_key,
        record.name,
        record.site,
        json.dumps(dict(record.reported_labels), sort_keys=True, ensure_ascii=False, separators=(",", ":")),
        record.version,
        record.peer_address,
        int(record.state),
        record.created_at_ms,
        record.decided_at_ms,
        record.decided_by,
        record.reason,
        record.node_id,
        record.bootstrap,
    )


def _marks(count: int) -> str:
    return ", ".join("?" * count)
