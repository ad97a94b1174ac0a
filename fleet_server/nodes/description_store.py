"""SQL over what people call nodes; MACs are not checked here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fleet_server.database.engine import Connection, sql

_CHUNK = 500


def descriptions(conn: Connection, node_ids: Sequence[str]) -> Iterator[tuple[str, str, str, str]]:
    """(node id, name, site, labels as JSON) of nodes."""
    for start in range(0, len(node_ids), _CHUNK):
        some = tuple(node_ids[start : start + _CHUNK])
        marks = ", ".join("?" * len(some))
        text = f"SELECT node_id, name, site, labels FROM nodes WHERE node_id IN ({marks})"  # noqa: S608 - marks only
        for row in conn.exec_driver_sql(sql(conn, text), some):
            yield row[0], row[1], row[2], row[3]
