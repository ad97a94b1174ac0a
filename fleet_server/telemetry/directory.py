"""What is known of each node's series: in memory for nodes that stream, in the database for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

from fleet_server.database.engine import Database
from fleet_server.nodes.record import NodeRecord
from fleet_server.telemetry import store
from fleet_server.telemetry.rules import Series
from fleet_server.telemetry.series import NodeSeries, decode_series
from fleet_server.telemetry.store import Connection


class NodesPort(Protocol):
    """What this room needs of the nodes room."""

    def resolve(self, conn: Connection, patterns: Sequence[str]) -> Sequence[NodeRecord]:
        """Nodes that the patterns mean; Refusal INVALID_ARGUMENT or NO_TARGETS."""
        ...

    def load(self, conn: Connection, node_id: str) -> NodeRecord | None:
        """One node."""
        ...

    async def get(self, ref: str) -> NodeRecord:
        """One node by id or name; Refusal NOT_FOUND."""
        ...

    def epochs(self, conn: Connection, node_ids: Sequence[str]) -> dict[str, int]:
        """Epoch of each node's newest stream; a node that is not known is missing."""
        ...


class SeriesDirectory:
    """Series by node. Belongs to the event loop; what it hands out is read by others.

    What is in memory is right for as long as nobody else writes the node's telemetry: from one stream here to the next
    one of the node, if that is here as well. Behind a stream at another replica it is read again.
    """

    def __init__(self, database: Database, nodes: NodesPort) -> None:
        self._database = database
        self._nodes = nodes
        self._live: Counter[str] = Counter()
        self._epochs: dict[str, int] = {}
        self._known: dict[str, NodeSeries] = {}

    def stream_opened(self, node_id: str, epoch: int) -> None:
        """Keep the node's series in memory from its next frame on."""
        self._live[node_id] += 1
        newest = self._epochs.get(node_id, 0)
        if epoch > newest + 1:
            self.forget(node_id)
        self._epochs[node_id] = max(newest, epoch)

    def stream_closed(self, node_id: str) -> None:
        """One stream less."""
        self._live[node_id] -= 1
        if self._live[node_id] <= 0:
            del self._live[node_id]

    def is_overtaken(self, node_id: str, epoch: int) -> bool:
        """Whether the node has opened a newer stream here."""
        return self._epochs.get(node_id, 0) > epoch

    def forget(self, node_id: str) -> None:
        """What is in memory is of no use: read it again."""
        self._known.pop(node_id, None)

    def trim(self) -> None:
        """Forget nodes that have no stream. Only while nothing is prepared for them."""
        for by_node in (self._known, self._epochs):
            for node_id in [node_id for node_id in by_node if node_id not in self._live]:
                del by_node[node_id]

    def live(self) -> list[tuple[str, NodeSeries]]:
        """Nodes that stream, with what they sent."""
        return sorted(self._known.items(), key=lambda item: item[1].name)

    async def load(self, node_ids: Iterable[str]) -> dict[str, NodeSeries]:
        """Series of nodes, kept in memory from here on; a node that is gone is missing."""
        wanted = list(node_ids)
        missing = [node_id for node_id in wanted if node_id not in self._known]
        if missing:
            self._known.update(await self._database.read(lambda conn: self._read(conn, missing)))
        return {node_id: self._known[node_id] for node_id in wanted if node_id in self._known}

    async def select(self, patterns: Sequence[str]) -> list[tuple[str, NodeSeries]]:
        """Series of the nodes that a selector means (all without one), from memory where they are; by name."""
        known = dict(self._known)

        def query(conn: Connection) -> list[tuple[str, NodeSeries]]:
            records = self._nodes.resolve(conn, patterns or ["*"])
            stored = self._read(conn, [each.node_id for each in records if each.node_id not in known])
            found = {**known, **stored}
            return [(each.node_id, found[each.node_id]) for each in records if each.node_id in found]

        return await self._database.read(query)

    def _read(self, conn: Connection, node_ids: Sequence[str]) -> dict[str, NodeSeries]:
        series: dict[str, dict[int, Series]] = {}
        for row in store.load_series(conn, node_ids):
            named = decode_series(row.name, row.labels, row.kind, row.unit)
            series.setdefault(row.node_id, {})[row.series_no] = named
        latest = {row.node_id: row for row in store.load_latest(conn, node_ids)}
        found: dict[str, NodeSeries] = {}
        for node_id in node_ids:
            record = self._nodes.load(conn, node_id)
            if record is not None:
                stored = latest.get(node_id)
                seq, payload = (0, b"") if stored is None else (stored.last_batch_seq, bytes(stored.payload))
                found[node_id] = NodeSeries(record.name, series.get(node_id, {}), seq, payload)
        return found
