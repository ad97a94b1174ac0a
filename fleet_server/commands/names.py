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

    def known(self, node_id: str) -> str | None:
        """A name that was looked up before."""
        return self._names.get(node_id)

    def of(self, conn: Connection, node_ids: Iterable[str]) -> dict[str, str]:
        """Names by id; a node that does not exist is missing."""
        if len(self._names) > _MAX_NAMES:
            self._names = {}
        known, wanted = self._names, set(node_ids)
        missing = sorted(wanted - known.keys())
        if missing:
            known.update(self._nodes.names(conn, missing))
        return {node_id: known[node_id] for node_id in wanted if node_id in known}
