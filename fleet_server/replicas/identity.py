"""A replica's own name, when its settings give none."""

from __future__ import annotations

import secrets
from pathlib import Path

from fleet.identity import write_private


def own_replica_id(data_dir: Path) -> str:
    """A name of this replica's own that stays the same over restarts: its audit chain carries it."""
    path = data_dir / "replica-id"
    if not path.exists():
        write_private(path, f"replica-{secrets.token_hex(4)}".encode())
    return path.read_text().strip()
