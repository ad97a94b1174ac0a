"""SQL over `api_keys` and `sessions`."""

from __future__ import annotations

from dataclasses import dataclass

from fleet_server.database.engine import Connection, for_update, sql
from fleet_server.trust.secrets import RowMac


@dataclass(frozen=True, slots=True)
class ApiKeyRow:
    """One api_key. `intact` is False when the row was changed outside the server: it opens nothing then."""

    key_sha256: bytes
    node_id: str
    created_at_ms: int
    revoked_at_ms: int
    intact: bool


@dataclass(frozen=True, slots=True, repr=False)
class SessionRow:
    """One session. `claimed_epoch` 0 means that no stream took it yet."""

    token_sha256: bytes
    node_id: str
    sealed_frame_keys: bytes
    expires_at_ms: int
    claimed_epoch: int


class ApiKeyStore:
    """Rows of `api_keys`, covered by a MAC whole: whose key it is and whether it still stands."""

    def __init__(self, mac: RowMac) -> None:
        self._mac = mac

    def insert(self, conn: Connection, key_sha256: bytes, node_id: str, now_ms: int) -> None:
        """Add a key."""
        text = "INSERT INTO api_keys (key_sha256, node_id, created_at_ms, revoked_at_ms, mac) VALUES (?, ?, ?, 0, ?)"
        mac = self._mac.compute(key_sha256, node_id, now_ms, 0)
        conn.exec_driver_sql(sql(conn, text), (key_sha256, node_id, now_ms, mac))

    def by_digest(self, conn: Connection, key_sha256: bytes) -> ApiKeyRow | None:
        """The key with this digest."""
        text = "SELECT node_id, created_at_ms, revoked_at_ms, mac FROM api_keys WHERE key_sha256 = ?"
        row = conn.exec_driver_sql(sql(conn, text), (key_sha256,)).first()
        if row is None:
            return None
        return ApiKeyRow(key_sha256, row[0], row[1], row[2], self._verifies(key_sha256, tuple(row)))

    def revoke_of_node(self, conn: Connection, node_id: str, now_ms: int) -> int:
        """End every key of a node; how many there were. A tampered row gets no new MAC and opens nothing as it is."""
        text = (
            "SELECT key_sha256, created_at_ms, revoked_at_ms, mac FROM api_keys WHERE node_id = ? AND revoked_at_ms = 0"
        )
        rows = conn.exec_driver_sql(sql(conn, text), (node_id,)).all()
        revoked = [
            (now_ms, self._mac.compute(row[0], node_id, row[1], now_ms), row[0])
            for row in rows
            if self._verifies(row[0], (node_id, *row[1:]))
        ]
        if revoked:
            text = "UPDATE api_keys SET revoked_at_ms = ?, mac = ? WHERE key_sha256 = ?"
            conn.exec_driver_sql(sql(conn, text), revoked)
        return len(revoked)

    def _verifies(self, key_sha256: bytes, row: tuple[str, int, int, bytes]) -> bool:
        node_id, created_at_ms, revoked_at_ms, mac = row
        return self._mac.verify(mac, key_sha256, node_id, created_at_ms, revoked_at_ms)


def insert_session(conn: Connection, row: SessionRow) -> bool:
    """Add a session; False when its token is there already."""
    text = (
        "INSERT INTO sessions (token_sha256, node_id, sealed_frame_keys, expires_at_ms, claimed_epoch)"
        " VALUES (?, ?, ?, ?, 0) ON CONFLICT DO NOTHING"
    )
    fields = (row.token_sha256, row.node_id, row.sealed_frame_keys, row.expires_at_ms)
    return conn.exec_driver_sql(sql(conn, text), fields).rowcount == 1


def session(conn: Connection, token_sha256: bytes, *, lock: bool = False) -> SessionRow | None:
    """The session of a token; with `lock` nobody else claims it until this transaction ends."""
    text = "SELECT node_id, sealed_frame_keys, expires_at_ms, claimed_epoch FROM sessions WHERE token_sha256 = ?"
    suffix = for_update(conn) if lock else ""
    row = conn.exec_driver_sql(sql(conn, text + suffix), (token_sha256,)).first()
    return None if row is None else SessionRow(token_sha256, row[0], bytes(row[1]), row[2], row[3])


def claim(conn: Connection, token_sha256: bytes, epoch: int) -> None:
    """Note which stream took a session."""
    text = "UPDATE sessions SET claimed_epoch = ? WHERE token_sha256 = ?"
    conn.exec_driver_sql(sql(conn, text), (epoch, token_sha256))


def extend(conn: Connection, token_sha256: bytes, epoch: int, expires_at_ms: int) -> bool:
    """Let the session of a stream live longer; False when it is gone."""
    text = "UPDATE sessions SET expires_at_ms = ? WHERE token_sha256 = ? AND claimed_epoch = ?"
    return conn.exec_driver_sql(sql(conn, text), (expires_at_ms, token_sha256, epoch)).rowcount == 1


def delete_expired(conn: Connection, before_ms: int) -> int:
    """Delete sessions that ended before a time."""
    text = "DELETE FROM sessions WHERE expires_at_ms < ?"
    return conn.exec_driver_sql(sql(conn, text), (before_ms,)).rowcount
