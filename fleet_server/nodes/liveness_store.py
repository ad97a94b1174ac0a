"""SQL of the signs of life in `nodes`: the rows of a whole fleet, every few heartbeats."""

from __future__ import annotations

from collections.abc import Sequence

from fleet_server.database.bulk import EachUpdate, fetch_of
from fleet_server.database.engine import Connection, for_change_of_free

_ALIVE = EachUpdate(
    "nodes",
    {
        "last_seen_ms": "bigint",
        "rtt_us": "bigint",
        "clock_offset_ms": "bigint",
        "accepted_seq": "bigint",
        "node_id": "text",
        "stream_epoch": "bigint",
        "replica_id": "text",
    },
    "last_seen_ms = v.last_seen_ms, rtt_us = v.rtt_us, clock_offset_ms = v.clock_offset_ms, online = 1,"
    " last_accepted_seq = CASE WHEN t.last_accepted_seq < v.accepted_seq THEN v.accepted_seq"
    " ELSE t.last_accepted_seq END",
    "t.node_id = v.node_id",
    "t.stream_epoch = v.stream_epoch AND t.replica_id = v.replica_id",
)


def free_of(conn: Connection, node_ids: Sequence[str]) -> set[str]:
    """Those of these nodes whose rows can be written without waiting, for as long as the transaction lasts. Who gives
    an order to a whole fleet holds the rows of all of it. SQLite's writer has them all, and is not asked."""
    suffix = for_change_of_free(conn)
    if not suffix:
        return set(node_ids)
    return {node_id for (node_id,) in fetch_of(conn, "SELECT node_id FROM nodes", "node_id", node_ids, lock=suffix)}


def flush_alive(conn: Connection, rows: Sequence[tuple[int, int, int, int, str, int, str]]) -> int:
    """Write signs of life, each of its node's newest stream only; how many were.

    A node that was marked offline because its replica seemed lost, and that still lives on it, is online again; one
    whose stream has ended is not, for its row names no replica any more.

    Args:
        rows: (last seen in Unix ms, round trip in us, clock offset in ms, accepted seq, node id, epoch, replica id).
    """
    return _ALIVE.run(conn, rows)
