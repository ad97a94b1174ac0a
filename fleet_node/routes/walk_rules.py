"""What a walk showed. Pure.

A walk is one probe along a path: each node calls the next one and testifies, signed, to what came of it
(docs/protocol.md, "Probes").
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class WalkState(StrEnum):
    """What came of one walk."""

    ANSWERED = "ANSWERED"  # by the destination, over the expected nodes, all proven
    DRIFT = "DRIFT"  # another node answered than expected, or somebody lied
    UNREACHABLE = "UNREACHABLE"  # no answer, or a refusal
    INCONCLUSIVE = "INCONCLUSIVE"  # the nodes hold different configs for a moment, or were busy: it says nothing


@dataclass(frozen=True, slots=True)
class WalkResult:
    """What one walk showed.

    Args:
        path: node ids expected, source and destination included.
        observed: node ids that proved themselves, the source first; equals `path` when it answered. The last one may be
            a node that answered in place of the expected one.
        rtt_us: microseconds of the whole walk over open connections; 0 unless it answered.
        first_hop_us: microseconds to the first hop and back alone; 0 when that did not answer.
        state: what it came to.
        failure: stable word for how it failed; empty when it answered.
        failed_hop: index in `path` of the node that did not answer as it should; 0 when none failed.
        blamed: node that evidence names as the cause; empty when there is none.
    """

    path: tuple[str, ...]
    observed: tuple[str, ...]
    rtt_us: int
    first_hop_us: int
    state: WalkState
    failure: str = ""
    failed_hop: int = 0
    blamed: str = ""
