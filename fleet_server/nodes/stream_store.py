"""SQL over which stream each node has."""

from __future__ import annotations

from collections.abc import Sequence

from fleet_server.database.bulk import EachUpdate
from fleet_server.database.engine import Connection, sql
from fleet_server.nodes.record import NewStream

_OPENED = EachUpdate(
    "nodes",
    {
        "node_id": "text",
        "epoch": "bigint",
        "stream_id": "text",
        "takeover_of": "text",
        "replica_id": "text",
        "now_ms": "bigint",
        "accepted": "bigint",
    },
    "stream_epoch = v.epoch, stream_id = v.stream_id, takeover_of = v.takeover_of, replica_id = v.replica_id,"
    " online = 1, last_seen_ms = v.now_ms, last_accepted_seq = v.accepted,"
    " last_seq = CASE WHEN t.last_seq < v.accepted THEN v.accepted ELSE t.last_seq END",
    "t.node_id = v.node_id",
)


def open_streams(conn: Connection, streams: Sequence[tuple[NewStream, int]], now_ms: int) -> None:
    """Show nodes online with streams of these epochs, and raise the seq counters to what the nodes accepted. Their
    rows are held.

    Args:
        streams: of no two the same node.
        now_ms: Unix milliseconds.
    """
    rows = [
        (stream.node_id, epoch, stream.stream_id, stream.takeover_of, stream.replica_id, now_ms, stream.accepted)
        for stream, epoch in streams
    ]
    _OPENED.run(conn, rows)


def close_stream(conn: Connection, node_id: str, epoch: int, now_ms: int) -> bool:
    """Mark the node offline unless a newer stream lives."""
    text = (
        "UPDATE nodes SET online = 0, stream_id = '', replica_id = '', last_seen_ms = ?"
        " WHERE node_id = ? AND stream_epoch = ?"
    )
    return conn.exec_driver_sql(sql(conn, text), (now_ms, node_id, epoch)).rowcount == 1


def end_streams(conn: Connection, node_id: str) -> None:
    """Leave every stream of a node behind: nothing more is sent on it, and it ends."""
    text = (
        "UPDATE nodes SET stream_epoch = stream_epoch + 1, stream_id = '', takeover_of = '', replica_id = '',"
        " online = 0"
        " WHERE node_id = ?"
    )
    conn.exec_driver_sql(sql(conn, text), (node_id,))


def forget_streams(conn: Connection, replica_id: str) -> int:
    """Mark every node of a replica offline."""
    text = "UPDATE nodes SET online = 0 WHERE replica_id = ? AND online = 1"
    return conn.exec_driver_sql(sql(conn, text), (replica_id,)).rowcount
