"""How a wave is cut into batches, whom it leaves out, and when it stops. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from fleet.v1 import admin_pb2

T = TypeVar("T")
SIZE = re.compile(r"([0-9]{1,6})(%?)")


def batch_size(text: str, total: int) -> int:
    """Members of one batch, at least one: of "10" or "10%".

    Raises:
        ValueError: it is neither.
    """
    found = SIZE.fullmatch(text)
    if not found or not int(found[1]) or (found[2] and int(found[1]) > 100):
        raise ValueError(text)
    return max(1, math.ceil(total * int(found[1]) / 100) if found[2] else int(found[1]))


def batches(members: Sequence[T], size: int) -> list[Sequence[T]]:
    """Cut into batches of `size`, in order; the last one may be smaller."""
    return [members[start : start + size] for start in range(0, len(members), size)]


def why_left_out(node: admin_pb2.NodeView, after: str) -> str:
    """Why a wave leaves a node alone; empty when it does not.

    Args:
        after: name of the last node that an earlier wave was done with; empty for none.
    """
    if node.state != "ACTIVE":
        return node.state.lower()
    if after and node.name <= after:
        return "before --after"
    if node.drain_state == "DRAINED":
        return "drained already"
    if not node.online:
        return "offline"
    return ""


def why_failed(node: admin_pb2.NodeView, cut_short: int) -> str:
    """Why a node counts as a failure of its batch; empty when it is drained as it should be.

    Args:
        cut_short: commands of it that the drain interrupted.
    """
    if cut_short:
        return f"the drain cut {cut_short} running command{'s' if cut_short > 1 else ''} short"
    if node.drain_state == "DRAINED":
        return ""
    if node.state != "ACTIVE":
        return f"became {node.state}"
    return "not drained by the deadline" if node.online else "was lost meanwhile"


@dataclass(slots=True)
class Tally:
    """What a wave has done so far.

    Args:
        budget: failures that it may have; one more stops it.
    """

    budget: int
    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def stops(self) -> bool:
        """Whether there were more failures than there may be."""
        return len(self.failed) > self.budget
