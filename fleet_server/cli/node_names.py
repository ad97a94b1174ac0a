"""Names for the node ids that stand in texts of the server, such as audit rows: people know nodes by name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fleet_server.cli.failures import Failure

if TYPE_CHECKING:
    from fleet_server.cli.connection import Admin

_NODE_ID = re.compile(r"\bnd_[a-z2-7]{24}\b")
_ASKED_AT_ONCE = 500


class NodeNames:
    """Names by node id, each asked for once. An id whose name the server does not give stays as it is."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self._names: dict[str, str] = {}

    def learn(self, texts: Iterable[str]) -> None:
        """Ask for the names of all ids in `texts` that are not known yet."""
        unknown = sorted({node_id for text in texts for node_id in _NODE_ID.findall(text)} - self._names.keys())
        for start in range(0, len(unknown), _ASKED_AT_ONCE):
            self._ask(unknown[start:][:_ASKED_AT_ONCE])

    def told_by_name(self, text: str) -> str:
        """`text` with names in the place of ids."""
        return _NODE_ID.sub(lambda found: self._names.get(found[0], found[0]), text)

    def _ask(self, node_ids: Iterable[str]) -> None:
        from fleet.v1 import admin_pb2

        selector = admin_pb2.Selector(patterns=node_ids)
        request = admin_pb2.ListNodesRequest(selector=selector, page=admin_pb2.Page(size=_ASKED_AT_ONCE))
        try:
            found = self._admin.call(self._admin.stub.ListNodes, request).nodes
        except Failure:
            return  # the text is there and true without names
        self._names.update((node.node_id, node.name) for node in found)
