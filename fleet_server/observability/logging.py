"""Logs of the server's programs. Modules log through `fleet.logs.get_logger`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import TextIO

from fleet import logs

_PRETTY: Mapping[str, bool | None] = {"auto": None, "json": False, "text": True}


def configure(
    level: str, *, log_format: str = "auto", replica_id: str | None = None, stream: TextIO | None = None
) -> None:
    """Log to `stream` (standard error).

    Args:
        level: one of `fleet.logs.LEVELS`.
        log_format: ``json`` lines, aligned ``text``, or ``auto``: text on a terminal, JSON elsewhere.
        replica_id: added to each event, so that replicas' logs can be read together.
        stream: where to; standard error by default.

    Raises:
        ValueError: unknown level.
        KeyError: unknown format.
    """
    fields = {"component": "fleet-server"}
    if replica_id is not None:
        fields["replica_id"] = replica_id
    chatter = logging.getLogger("alembic.runtime.migration")
    chatter.removeFilter(_tells_a_change)
    chatter.addFilter(_tells_a_change)
    logs.configure(sys.stderr if stream is None else stream, level=level, fields=fields, pretty=_PRETTY[log_format])


def _tells_a_change(record: logging.LogRecord) -> bool:
    # Alembic says these two whenever it looks at a database: at each start, with nothing to do.
    return record.msg not in ("Context impl %s.", "Will assume %s DDL.")
