"""SQL over `api_keys`, `credential_rotations` and `sessions`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from fleet_server.database.bulk import EachUpdate, fetch_of, insert_many
from fleet_server.database.engine import Connection, for_update, octets, sql
from fleet_server.database.statements import fetch
from fleet_server.sessions.rotations import ApiKeyRow, Rotation, Wanted
from fleet_server.trust.secrets import RowMac

_ROTATION = (
    "node_id, wanted, old_until_ms, ordered_by, ordered_at_ms, new_key_sha256, sealed_api_key, keys_issued_at_ms"
)
_ASKED = "asked_from_ms, asked"
_ROTATIONS = f"SELECT {_ROTATION}, {_ASKED}, mac FROM credential_rotations"  # noqa: S608 - constants
_SESSION_COLUMNS = {
    "token_sha256": "bytea",
    "node_id": "text",
    "sealed_frame_keys": "bytea",
    "expires_at_ms": "bigint",
    "claimed_epoch": "bigint",
    "client_certificate_sha256": "bytea",
}
_SESSIONS = f"SELECT {', '.join(_SESSION_COLUMNS)} FROM sessions"  # noqa: S608 - constants
_CLAIM = EachUpdate(
    "sessions",
    {"token_sha256": "bytea", "epoch": "bigint"},
    "claimed_epoch = v.epoch",
    "t.token_sha256 = v.token_sha256",
)


@dataclass(frozen=True, slots=True, repr=False)
class SessionRow:
    """One session. `claimed_epoch` 0 means that no stream took it yet; `client_certificate_sha256` is empty on the
    listener that asks for none."""

    token_sha256: bytes
    node_id: str
    sealed_frame_keys: bytes
    expires_at_ms: int
    claimed_epoch: int
    client_certificate_sha256: bytes = b""


class ApiKeyStore:
    """Rows of `api_keys`, covered by a MAC whole: whose key it is and whether it still stands."""

    def __init__(self, mac: RowMac) -> None:
        self._mac = mac

    def insert(self, conn: Connection, key_sha256: bytes, node_id: str, now_ms: int) -> None:
        """Add a key."""
        text = "INSERT INTO api_keys (key_sha256, node_id, created_at_ms, revoked_at_ms, mac) VALUES (?, ?, ?, 0, ?)"
        mac = self._mac.compute(key_sha256, node_id, now_ms, 0)
        conn.exec_driver_sql(sql(conn, text), (key_sha256, node_id, now_ms, mac))

    def by_digests(self, conn: Connection, digests: Sequence[bytes]) -> dict[bytes, ApiKeyRow]:
        """The keys with these digests, by digest."""
        text = "SELECT key_sha256, node_id, created_at_ms, revoked_at_ms, mac FROM api_keys"
        return {
            bytes(digest): ApiKeyRow(bytes(digest), row[0], row[1], row[2], self._verifies(digest, tuple(row)))
            for digest, *row in fetch_of(conn, text, "key_sha256", digests)
        }

    def live_of_node(self, conn: Connection, node_id: str, now_ms: int) -> list[ApiKeyRow]:
        """Keys of a node that have not ended, oldest first. A tampered row is left out: it opens nothing as it is."""
        text = (
            "SELECT key_sha256, created_at_ms, revoked_at_ms, mac FROM api_keys"
            " WHERE node_id = ? AND (revoked_at_ms = 0 OR revoked_at_ms > ?) ORDER BY created_at_ms"
        )
        rows = [
            ApiKeyRow(bytes(row[0]), node_id, row[1], row[2], self._verifies(row[0], (node_id, *row[1:])))
            for row in conn.exec_driver_sql(sql(conn, text), (node_id, now_ms))
        ]
        return [row for row in rows if row.intact]

    def end(self, conn: Connection, keys: Sequence[ApiKeyRow], at_ms: int) -> int:
        """Let keys end at a time, now or later; one that ends earlier anyway keeps its end. How many were changed."""
        ending = [
            (at_ms, self._mac.compute(key.key_sha256, key.node_id, key.created_at_ms, at_ms), key.key_sha256)
            for key in keys
            if not key.revoked_at_ms or key.revoked_at_ms > at_ms
        ]
        if ending:
            text = "UPDATE api_keys SET revoked_at_ms = ?, mac = ? WHERE key_sha256 = ?"
            conn.exec_driver_sql(sql(conn, text), ending)
        return len(ending)

    def delete_ended(self, conn: Connection, before_ms: int) -> int:
        """Delete keys that ended before a time; each node's newest stays: it tells a revoked node that it is one."""
        text = (
            "DELETE FROM api_keys WHERE revoked_at_ms > 0 AND revoked_at_ms < ? AND created_at_ms <"
            " (SELECT MAX(newest.created_at_ms) FROM api_keys AS newest WHERE newest.node_id = api_keys.node_id)"
        )
        return conn.exec_driver_sql(sql(conn, text), (before_ms,)).rowcount

    def _verifies(self, key_sha256: bytes, row: tuple[str, int, int, bytes]) -> bool:
        node_id, created_at_ms, revoked_at_ms, mac = row
        return self._mac.verify(mac, key_sha256, node_id, created_at_ms, revoked_at_ms)


class RotationStore:
    """Rows of `credential_rotations`, one a node at most, covered by a MAC but for how often the node asked."""

    def __init__(self, mac: RowMac) -> None:
        self._mac = mac

    def of_node(self, conn: Connection, node_id: str, *, lock: bool = False) -> Rotation:
        """What is ordered for a node; nothing when there is no row."""
        text = f"{_ROTATIONS} WHERE node_id = ?"
        found = fetch(conn, text + (for_update(conn) if lock else ""), (node_id,))
        return self._rotation(found[0]) if found else Rotation(node_id)

    def of_nodes(self, conn: Connection, node_ids: Sequence[str]) -> dict[str, Rotation]:
        """What is ordered for nodes, by id; one for which nothing is is missing."""
        return {row[0]: self._rotation(row) for row in fetch_of(conn, _ROTATIONS, "node_id", node_ids)}

    def _rotation(self, row: Sequence[Any]) -> Rotation:
        *fields, asked_from_ms, asked, mac = row
        node_id = fields[0]
        if not self._mac.verify(octets(mac), *fields[:5], octets(fields[5]), octets(fields[6]), fields[7]):
            return Rotation(node_id, intact=False)
        return Rotation(
            node_id=node_id,
            wanted=Wanted(fields[1]),
            old_until_ms=fields[2],
            ordered_by=fields[3],
            ordered_at_ms=fields[4],
            new_key_sha256=octets(fields[5]),
            sealed_api_key=octets(fields[6]),
            keys_issued_at_ms=fields[7],
            asked_from_ms=asked_from_ms,
            asked=asked,
        )

    def save(self, conn: Connection, rotation: Rotation) -> None:
        """Write a node's row."""
        fields = (
            rotation.node_id,
            int(rotation.wanted),
            rotation.old_until_ms,
            rotation.ordered_by,
            rotation.ordered_at_ms,
            rotation.new_key_sha256,
            rotation.sealed_api_key,
            rotation.keys_issued_at_ms,
        )
        text = (
            f"INSERT INTO credential_rotations ({_ROTATION}, {_ASKED}, mac)"  # noqa: S608 - constants
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (node_id) DO UPDATE SET wanted = excluded.wanted, old_until_ms = excluded.old_until_ms,"
            " ordered_by = excluded.ordered_by, ordered_at_ms = excluded.ordered_at_ms,"
            " new_key_sha256 = excluded.new_key_sha256, sealed_api_key = excluded.sealed_api_key,"
            " keys_issued_at_ms = excluded.keys_issued_at_ms, asked_from_ms = excluded.asked_from_ms,"
            " asked = excluded.asked, mac = excluded.mac"
        )
        asked = rotation.asked_from_ms, rotation.asked
        conn.exec_driver_sql(sql(conn, text), (*fields, *asked, self._mac.compute(*fields)))

    def delete(self, conn: Connection, node_id: str) -> None:
        """Nothing is ordered for this node any more."""
        conn.exec_driver_sql(sql(conn, "DELETE FROM credential_rotations WHERE node_id = ?"), (node_id,))

    def open(self, conn: Connection, node_ids: Sequence[str]) -> dict[str, Wanted]:
        """Node id -> what is not done yet, of those nodes for which something is not. Shown, not acted upon: no MAC."""
        found = fetch_of(conn, "SELECT node_id, wanted FROM credential_rotations", "node_id", node_ids)
        return {node_id: Wanted(wanted) for node_id, wanted in found if 0 < wanted < 8}


def insert_sessions(conn: Connection, rows: Sequence[SessionRow]) -> list[bool]:
    """Add sessions that no stream took yet; of each, False when its token is there already, or is put there by another
    replica at this moment."""
    insert_many(conn, "sessions", _SESSION_COLUMNS, [astuple(row) for row in rows], " ON CONFLICT DO NOTHING")
    there = sessions(conn, [row.token_sha256 for row in rows])
    return [there.get(row.token_sha256) == row for row in rows]  # no two of them have the same sealed keys


def sessions(conn: Connection, tokens_sha256: Sequence[bytes], *, lock: bool = False) -> dict[bytes, SessionRow]:
    """The sessions of tokens, by SHA-256 of the token.

    Args:
        lock: nobody else claims them until this transaction ends.
    """
    rows = fetch_of(conn, _SESSIONS, "token_sha256", tokens_sha256, lock=for_update(conn) if lock else "")
    found = (SessionRow(bytes(row[0]), row[1], bytes(row[2]), row[3], row[4], bytes(row[5])) for row in rows)
    return {row.token_sha256: row for row in found}


def has_opened_later(conn: Connection, node_id: str, expires_at_ms: int) -> bool:
    """Whether a session of the node that ends later than that has opened a stream. Reads all of them: ask seldom."""
    text = "SELECT 1 FROM sessions WHERE node_id = ? AND claimed_epoch > 0 AND expires_at_ms > ? LIMIT 1"
    return bool(fetch(conn, text, (node_id, expires_at_ms)))


def claim(conn: Connection, taken: Sequence[tuple[bytes, int]]) -> None:
    """Note which streams took sessions.

    Args:
        taken: (SHA-256 of the token, epoch of the stream) pairs.
    """
    _CLAIM.run(conn, taken)


def extend(conn: Connection, token_sha256: bytes, epoch: int, expires_at_ms: int) -> bool:
    """Let the session of a stream live longer; False when it is gone."""
    text = "UPDATE sessions SET expires_at_ms = ? WHERE token_sha256 = ? AND claimed_epoch = ?"
    return conn.exec_driver_sql(sql(conn, text), (expires_at_ms, token_sha256, epoch)).rowcount == 1


def delete_of_node(conn: Connection, node_id: str) -> int:
    """Delete the sessions of a node; how many there were."""
    return conn.exec_driver_sql(sql(conn, "DELETE FROM sessions WHERE node_id = ?"), (node_id,)).rowcount


def delete_expired(conn: Connection, before_ms: int) -> int:
    """Delete sessions that ended before a time."""
    text = "DELETE FROM sessions WHERE expires_at_ms < ?"
    return conn.exec_driver_sql(sql(conn, text), (before_ms,)).rowcount


def count_certificate(conn: Connection, node_id: str, *, now_ms: int, window_ms: int, limit: int) -> tuple[int, int]:
    """Count a certificate that a node asks for: (how many in this window, when the window ends in Unix ms).

    Args:
        limit: how many it may have; two more are counted, and no further.
    """
    text = (
        "INSERT INTO node_certificate_budgets AS b (node_id, from_ms, asked) VALUES (?, ?, 1)"
        " ON CONFLICT (node_id) DO UPDATE SET"
        " asked = CASE WHEN b.from_ms > ? OR b.from_ms <= ? THEN 1 WHEN b.asked > ? THEN b.asked ELSE b.asked + 1 END,"
        " from_ms = CASE WHEN b.from_ms > ? OR b.from_ms <= ? THEN excluded.from_ms ELSE b.from_ms END"
        " RETURNING asked, from_ms"
    )
    over_ms = now_ms - window_ms
    [(asked, from_ms)] = fetch(conn, text, (node_id, now_ms, now_ms, over_ms, limit + 1, now_ms, over_ms))
    return int(asked), int(from_ms) + window_ms
