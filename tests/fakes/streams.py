"""Streams as the database shows them, without a node behind: for tests of other rooms than sessions."""

from fleet_server.database.writer import Transaction
from fleet_server.nodes.presence import NodePresence
from fleet_server.nodes.record import NewStream


def take_stream(
    nodes: NodePresence,
    tx: Transaction,
    node_id: str,
    *,
    stream_id: str,
    replica_id: str,
    takeover_of: str = "",
    last_accepted_seq: int,
) -> int:
    """A node opens a stream; its epoch."""
    node = nodes.load(tx.conn, node_id)
    assert node is not None
    stream = NewStream(node_id, stream_id, takeover_of, replica_id, last_accepted_seq)
    held = nodes.hold_as_read(tx, [node], wait=True)[node_id]
    assert held is not None
    return nodes.open_streams(tx, [stream], {node_id: held})[node_id]
