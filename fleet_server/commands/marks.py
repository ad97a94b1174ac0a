"""Mark commands anew under another secret encryption key: their MAC reaches into the issue, so this room does it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fleet_server.commands.authority import Authorities
from fleet_server.commands.store import Connection, OpenRow
from fleet_server.database.engine import sql
from fleet_server.database.statements import fetch
from fleet_server.trust.reseal import Batch
from fleet_server.trust.secrets import Secrets


class CommandWalk:
    """The table `commands` under a change of keys; as `fleet_server.trust.reseal.TableWalk`.

    Args:
        old: the key that ends.
        new: the key that begins.
    """

    name = "commands"

    def __init__(self, old: Secrets, new: Secrets) -> None:
        self._old = Authorities(old.row_mac("commands"))
        self._new = Authorities(new.row_mac("commands"))

    def batch(self, conn: Connection, after: tuple[Any, ...] | None, limit: int) -> Batch:
        """Do the next rows after a node id and seq."""
        rows = _after(conn, after, limit)
        issues = self._old.load(conn, (row.issue_id for row in rows))
        marked, refused = [], []
        for row in rows:
            authority = issues.get(row.issue_id)
            if self._new.intact(authority, row):
                continue
            if authority is None or not self._old.intact(authority, row):
                refused.append(f"commands/{row.node_id}/{row.seq}")
                continue
            mac = self._new.seal(
                authority,
                row.command_id,
                row.node_id,
                row.seq,
                row.spec_no,
                row.not_after_ms,
                row.cancel_requested_by,
            )
            marked.append((mac, row.node_id, row.seq, row.mac))
        done = _mark_anew(conn, marked)
        last = (rows[-1].node_id, rows[-1].seq) if rows else None
        return Batch(last, len(rows), done, len(marked) - done, tuple(refused))


def _after(conn: Connection, after: Sequence[Any] | None, limit: int) -> list[OpenRow]:
    """Commands in any state, by node id and seq, as their MACs cover them."""
    where = "WHERE (node_id, seq) > (?, ?) " if after is not None else ""
    text = f"SELECT {', '.join(OpenRow._fields)} FROM commands {where}ORDER BY node_id, seq LIMIT ?"  # noqa: S608
    return [OpenRow._make(row) for row in fetch(conn, text, (*(after or ()), limit))]


def _mark_anew(conn: Connection, rows: Iterable[tuple[bytes, str, int, bytes]]) -> int:
    """Replace MACs, (new, node id, seq, old) each, of rows that still carry the old one; how many did."""
    text = sql(conn, "UPDATE commands SET mac = ? WHERE node_id = ? AND seq = ? AND mac = ?")
    return sum(conn.exec_driver_sql(text, row).rowcount for row in rows)
