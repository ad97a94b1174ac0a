"""Names of nodes for people's eyes. A node keeps its name for life, so each is looked up once."""

from __future__ import annotations

from collections.abc import Iterable

from fleet_server.commands.ports import NodesPort
from fleet_server.commands.store import Connection

_MAX_NAMES = 50_000


class NodeNames:
    """Names by node id. Any thread may call."""

    def __init__(self, nodes: NodesPort) -> None:
        self._nodes = nodes
        self._names: dict[str, str] = {}

    def of(self, conn: Connection, node_ids: Iterable[str]) -> dict[str, str]:
        """Names by id; a node that does not exist is missing."""
        if len(self._names) > _MAX_NAMES:
            self._names = {}
        known = self._names
        found: dict[str, str] = {}
        for node_id in node_ids:
            name = known.get(node_id)
            if name is None:
                node = self._nodes.load(conn, node_id)
                if node is None:
                    continue
                name = known[node_id] = node.name
            found[node_id] = name
        return found
