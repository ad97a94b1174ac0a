"""Whether the nodes that have to know a key before it signs do. Pure.

Asked for are the ACTIVE nodes of the key's scope that are online or were seen within a day. Nobody waits for the
others: a node that comes back is handed the newest bundle in its handshake, before its first command.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from fleet.errors import Reason, Refusal
from fleet_server.trust.phases import KeyRecord, name

SEEN_LATELY_MS = 24 * 3600 * 1000

Version = tuple[int, int]


class Carried(Protocol):
    """What a bundle tells nodes: a command key, a TLS CA."""

    @property
    def first_bundle(self) -> Version:
        """(generation, number) of the first bundle with it."""
        ...


Record = TypeVar("Record", bound=Carried)


@dataclass(frozen=True, slots=True)
class BundleHolding:
    """Nodes that hold one bundle.

    Args:
        version: (generation, number), as the nodes told; (0, 0) before their first stream.
        nodes: all that are not revoked.
        asked: those among them that a rollout waits for.
        example: name of one of these.
    """

    version: Version
    nodes: int
    asked: int
    example: str


@dataclass(frozen=True, slots=True)
class Rollout(Generic[Record]):
    """How far a key, or a TLS CA, has come.

    Args:
        asked: nodes that it waits for.
        holding: those among them that hold a bundle with it.
        away: others of its scope that do not hold one; they get it when they connect.
        lacking: names of a few that it waits for.
    """

    record: Record
    asked: int
    holding: int
    away: int
    lacking: Sequence[str]

    @property
    def complete(self) -> bool:
        """Whether every node that it waits for holds it."""
        return self.holding == self.asked


def carriers(record: Carried, published: Iterable[Version]) -> frozenset[Version]:
    """Bundles with the key. A version that this server never published carries nothing that it knows."""
    return frozenset(version for version in published if version >= record.first_bundle)


def measure(record: Record, published: Iterable[Version], holdings: Sequence[BundleHolding]) -> Rollout[Record]:
    """The rollout of `record`, from what the nodes of its scope hold."""
    carry: Collection[Version] = carriers(record, published)
    without = [held for held in holdings if held.version not in carry]
    return Rollout(
        record=record,
        asked=sum(held.asked for held in holdings),
        holding=sum(held.asked for held in holdings if held.version in carry),
        away=sum(held.nodes - held.asked for held in without),
        lacking=[held.example for held in without if held.asked],
    )


def check_complete(rollout: Rollout[KeyRecord]) -> None:
    """Refuse to activate a key that nodes do not know yet.

    Raises:
        Refusal: CONFLICT, with the numbers.
    """
    if rollout.complete:
        return
    missing = rollout.asked - rollout.holding
    raise Refusal(
        Reason.CONFLICT,
        f"{name(rollout.record)} is not everywhere yet: {rollout.holding} of {rollout.asked} nodes that are online or"
        f" were seen within a day hold it, {missing} do not, such as {', '.join(rollout.lacking[:3])}. Wait until"
        " `fleetctl keys rollout` shows none, suspend what cannot follow, or activate it all the same with --override",
        metadata={"asked": str(rollout.asked), "holding": str(rollout.holding), "lacking": str(missing)},
    )
