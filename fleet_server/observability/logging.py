"""Logs of the server's programs. Modules log through `fleet.logs.get_logger`."""

from __future__ import annotations

import sys
from typing import TextIO

from fleet import logs


def configure(level: str, *, replica_id: str | None = None, stream: TextIO | None = None) -> None:
    """Log to `stream` (standard error): JSON lines, or aligned columns when it is a terminal.

    Args:
        level: one of `fleet.logs.LEVELS`.
        replica_id: added to each event, so that replicas' logs can be read together.
        stream: where to; standard error by default.

    Raises:
        ValueError: unknown level.
    """
    fields = {"component": "fleet-server"}
    if replica_id is not None:
        fields["replica_id"] = replica_id
    logs.configure(sys.stderr if stream is None else stream, level=level, fields=fields)
