"""Logs of the node's programs. Modules log through `fleet.logs.get_logger`."""

from __future__ import annotations

import sys
from typing import TextIO

from fleet import logs


def configure(level: str, *, node_id: str | None = None, stream: TextIO | None = None) -> None:
    """Log to `stream` (standard error): JSON lines, or aligned columns when it is a terminal.

    Args:
        level: one of `fleet.logs.LEVELS`.
        node_id: added to each event once the node has one.
        stream: where to; standard error by default.

    Raises:
        ValueError: unknown level.
    """
    fields = {"component": "fleet-node"}
    if node_id is not None:
        fields["node_id"] = node_id
    logs.configure(sys.stderr if stream is None else stream, level=level, fields=fields)
