"""Mark commands anew under another secret encryption key: their MAC reaches into the issue, so this room does it."""

from __future__ import annotations

from typing import Any

from fleet_server.commands.authority import Authorities
from fleet_server.commands.mark_store import mark_anew, rows_after
from fleet_server.commands.store import Connection
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
        rows = rows_after(conn, after, limit)
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
        done = mark_anew(conn, marked)
        last = (rows[-1].node_id, rows[-1].seq) if rows else None
        return Batch(last, len(rows), done, len(marked) - done, tuple(refused))
