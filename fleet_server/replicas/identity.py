"""A replica's own name, when its settings give none."""

from __future__ import annotations

import secrets
from pathlib import Path

from fleet.identity import write_private

_FILE_NAME = "replica-id"


def own_replica_id(data_dir: Path) -> str:
    """A name of this replica's own that stays the same over restarts: its audit chain carries it."""
    path = data_dir / _FILE_NAME
    if not path.exists():
        write_private(path, f"replica-{secrets.token_hex(4)}".encode())
    return path.read_text().strip()


def known_replica_id(data_dir: Path) -> str:
    """The name that `own_replica_id` made; empty before the first start, or when this user may not look."""
    try:
        return (data_dir / _FILE_NAME).read_text().strip()
    except OSError:
        return ""
