"""What becomes of a stream once a newer one of its node was welcomed, here or at another replica.

One that the node itself took over from (make before break) is sent nothing more, still delivers results, and ends with
the node's goodbye; after a while it is ended. Any other one is half-open, or a second machine's, and is ended at once
(docs/protocol.md, "Drain").
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from fleet.errors import Reason, Refusal
from fleet.v1 import gateway_pb2

GRACE_S = 15.0
"""For the goodbye of a node that moved; it comes with the welcome of the next stream."""


class Overtaken(Protocol):
    """A stream that is not the newest of its node any more."""

    stream_id: str

    def fall_silent(self) -> None:
        """Send nothing more of what only the newest stream of a node is sent."""
        ...

    def goaway(self, goaway: gateway_pb2.ControlGoaway) -> None:
        """Ask the node to leave."""
        ...

    def end(self, refusal: Refusal | None) -> None:
        """End the stream."""
        ...


def leave_behind(older: Overtaken, *, takeover_of: str) -> None:
    """Send nothing more on `older`, and end it: now, or after its last words.

    Args:
        takeover_of: the stream that the newest one of the node said it takes over from; empty if none.
    """
    older.fall_silent()
    refusal = Refusal(Reason.SUPERSEDED, "a newer stream of this node was welcomed")
    if takeover_of != older.stream_id:
        older.goaway(gateway_pb2.ControlGoaway(reason=gateway_pb2.GOAWAY_REASON_SUPERSEDED, resume=False))
        older.end(refusal)
        return
    asyncio.get_running_loop().call_later(GRACE_S, older.end, refusal)
