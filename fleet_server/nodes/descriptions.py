"""Nodes as people know them, for a process that holds no key: names and labels, whose MACs nobody checked.

For display, and nothing else: what these say may have been changed around the server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fleet_server.database.engine import Connection
from fleet_server.nodes import description_store


class Description(NamedTuple):
    """A node's name, site and operators' labels."""

    name: str
    site: str
    labels: Mapping[str, str]


def describe(conn: Connection, node_ids: Sequence[str]) -> dict[str, Description]:
    """Descriptions by node id; a node that is gone is missing."""
    return {
        node_id: Description(name, site, _labels(labels))
        for node_id, name, site, labels in description_store.descriptions(conn, node_ids)
    }


def _labels(text: str) -> Mapping[str, str]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}
