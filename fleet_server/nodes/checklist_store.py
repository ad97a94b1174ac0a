"""SQL over `revocation_items`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from fleet_server.database.bulk import fetch_of, insert_many
from fleet_server.database.engine import Connection, sql
from fleet_server.database.statements import fetch
from fleet_server.nodes.checklist import ChecklistItem, carried_over

_COLUMNS = {
    "node_id": "text",
    "position": "integer",
    "item": "text",
    "detail": "text",
    "done_at_ms": "bigint",
    "done_by": "text",
    "note": "text",
}


class ChecklistStore:
    """Checklists of revoked nodes. They confer nothing, so no MAC covers them; the audit has every tick."""

    def add(self, conn: Connection, node_id: str, items: Sequence[ChecklistItem]) -> None:
        """A node's list, as it begins, with what is left of that of a machine before."""
        items = carried_over(self.of_node(conn, node_id), items)
        conn.exec_driver_sql(sql(conn, "DELETE FROM revocation_items WHERE node_id = ?"), (node_id,))
        rows = [
            (node_id, position, item.item, item.detail, item.done_at_ms, item.done_by, item.note)
            for position, item in enumerate(items)
        ]
        insert_many(conn, "revocation_items", _COLUMNS, rows)

    def of_node(self, conn: Connection, node_id: str) -> list[ChecklistItem]:
        """A node's list in its order; empty for one that was not revoked."""
        text = (
            "SELECT item, detail, done_at_ms, done_by, note FROM revocation_items WHERE node_id = ? ORDER BY position"
        )
        return [ChecklistItem(*row) for row in fetch(conn, text, (node_id,))]

    def tick(self, conn: Connection, node_id: str, item: str, *, done_by: str, note: str, now_ms: int) -> bool:
        """It is done; False when it was already."""
        text = (
            "UPDATE revocation_items SET done_at_ms = ?, done_by = ?, note = ?"
            " WHERE node_id = ? AND item = ? AND done_at_ms = 0"
        )
        return conn.exec_driver_sql(sql(conn, text), (now_ms, done_by, note, node_id, item)).rowcount == 1

    def open_counts(self, conn: Connection, node_ids: Sequence[str]) -> Mapping[str, int]:
        """Node id -> items that are open, of those nodes that have any."""
        found = fetch_of(conn, "SELECT node_id, done_at_ms FROM revocation_items", "node_id", node_ids)
        return Counter(node_id for node_id, done_at_ms in found if not done_at_ms)
