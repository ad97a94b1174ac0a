"""Where a link stands, for whoever looks."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class LinkState(StrEnum):
    """What `fleet-node status` shows."""

    CONNECTING = "connecting"
    LIVE = "live"
    MOVING = "moving"
    WAITING = "waiting"
    STOPPED = "stopped"


@dataclass(slots=True)
class LinkStatus:
    """The link as a person wants to see it."""

    state: LinkState = LinkState.CONNECTING
    endpoint: str = ""
    stream_id: str = ""
    stream_epoch: int = 0
    replica_id: str = ""
    rtt_us: int = 0
    clock_offset_ms: int = 0
    last_refusal: str = ""
    last_detail: str = ""
    next_attempt_s: float = 0.0
    streams_opened: int = 0
    since_ms: int = field(default=0)
