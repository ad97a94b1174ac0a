"""What is ordered to be rotated on a node, and what may be: pure decisions (docs/protocol.md, "Rotation of node
credentials").

A node has one api_key that stands, and at most one more: one that it was offered and has not used yet, or a former one
that stays good for a while. Keys of the node's own go first: a new api_key is sealed to the keys in force.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntFlag

from fleet.errors import Reason, Refusal
from fleet.v1 import gateway_pb2
from fleet_server.nodes.record import NodeRecord, NodeState
from fleet_server.nodes.rules import refuse_inactive

MAX_OVERLAP_S = 30 * 86_400
ASKED_WINDOW_MS = 24 * 3_600_000
OVER_BUDGET = "OVER_BUDGET"


class Wanted(IntFlag):
    """What an order asks for. Values stand in the database."""

    API_KEY = 1
    IDENTITY = 2
    SEALING = 4


NOTHING = Wanted(0)
KEYS = Wanted.IDENTITY | Wanted.SEALING
_WORDS = {Wanted.API_KEY: "api", Wanted.IDENTITY: "identity", Wanted.SEALING: "sealing"}


def words(wanted: Wanted) -> tuple[str, ...]:
    """As operators read it: api, identity, sealing."""
    return tuple(word for flag, word in _WORDS.items() if flag in wanted)


@dataclass(frozen=True, slots=True)
class ApiKeyRow:
    """One api_key. `revoked_at_ms` is when it ends, which may lie ahead; 0 while it stands. `intact` is False when the
    row was changed outside the server: it opens nothing then."""

    key_sha256: bytes
    node_id: str
    created_at_ms: int
    revoked_at_ms: int
    intact: bool

    def ended(self, now_ms: int) -> bool:
        """Whether it opens nothing any more."""
        return 0 < self.revoked_at_ms <= now_ms


@dataclass(frozen=True, slots=True, repr=False)
class Rotation:
    """What is still to be done for one node.

    Args:
        wanted: not done yet.
        old_until_ms: Unix milliseconds until which the former api_key stays good, once the new one was used.
        new_key_sha256: digest of the api_key that is offered and was not used yet; empty when none is.
        sealed_api_key: that api_key, sealed to the node.
        keys_issued_at_ms: of the newest statement with which the node replaced its keys.
        asked_from_ms: when the 24 hours began in which the node asked `asked` times for what nobody ordered.
        intact: False when the row was changed outside the server.
    """

    node_id: str
    wanted: Wanted = NOTHING
    old_until_ms: int = 0
    ordered_by: str = ""
    ordered_at_ms: int = 0
    new_key_sha256: bytes = b""
    sealed_api_key: bytes = b""
    keys_issued_at_ms: int = 0
    asked_from_ms: int = 0
    asked: int = 0
    intact: bool = True

    @property
    def needs_api_key(self) -> bool:
        """Whether an api_key has to be made now: it is wanted, and no keys are about to change under it."""
        return Wanted.API_KEY in self.wanted and not self.wanted & KEYS and not self.new_key_sha256

    def ask(self, limit: int, now_ms: int) -> Rotation:
        """After the node asked for something that nobody ordered, or that is refused.

        Args:
            limit: how often it may in 24 hours; once more is counted, and no further.
        """
        if not self.asked_from_ms <= now_ms < self.asked_from_ms + ASKED_WINDOW_MS:
            return replace(self, asked_from_ms=now_ms, asked=1)
        return replace(self, asked=min(self.asked, limit) + 1)

    def without_offer(self) -> Rotation:
        """The offered api_key is off."""
        return replace(self, new_key_sha256=b"", sealed_api_key=b"")

    def orders(self, *, shown_sha256: bytes = b"") -> tuple[gateway_pb2.ServerControl, ...]:
        """What to say to the node on a stream.

        Args:
            shown_sha256: digest of the api_key that the stream is being opened with: it is on offer no longer.
        """
        if not self.intact:
            return ()
        if self.wanted & KEYS:
            order = gateway_pb2.RotateNodeKeys(
                identity=Wanted.IDENTITY in self.wanted, sealing=Wanted.SEALING in self.wanted
            )
            return (gateway_pb2.ServerControl(rotate_keys=order),)
        if self.new_key_sha256 and self.new_key_sha256 != shown_sha256:
            offer = gateway_pb2.ApiKeyRotation(sealed_api_key=self.sealed_api_key, old_until_ms=self.old_until_ms)
            return (gateway_pb2.ServerControl(api_key=offer),)
        return ()


def checked_order(wanted: Wanted, overlap_s: int) -> int:
    """The overlap in milliseconds.

    Raises:
        Refusal: INVALID_ARGUMENT.
    """
    if not wanted:
        raise Refusal(Reason.INVALID_ARGUMENT, "say what to rotate: the api_key, the identity key or the sealing key")
    if overlap_s > MAX_OVERLAP_S:
        raise Refusal(
            Reason.INVALID_ARGUMENT, f"a former api_key stays good for at most {MAX_OVERLAP_S // 86_400} days"
        )
    return overlap_s * 1000


def order(
    held: Rotation,
    node: NodeRecord,
    live: Sequence[ApiKeyRow],
    *,
    wanted: Wanted,
    overlap_ms: int,
    actor: str,
    now_ms: int,
) -> Rotation | Refusal:
    """The rotation after an order, on top of what was ordered before; a refusal when it cannot be.

    An api_key that was offered and not used is offered further: there is never a third one.

    Args:
        live: the node's api_keys that have not ended.
    """
    if node.state is not NodeState.SUSPENDED and (refusal := refuse_inactive(node)) is not None:
        return refusal
    if not held.intact:
        return tampered()
    if Wanted.API_KEY in wanted and not held.new_key_sha256 and overlap_ms and len(live) > 1:
        return Refusal(
            Reason.CONFLICT,
            "the former api_key of this node is still good, and a third one there is never: wait until it has ended,"
            " or order an overlap of 0, which ends it now",
        )
    return replace(
        held,
        wanted=held.wanted | wanted,
        old_until_ms=now_ms + overlap_ms if Wanted.API_KEY in wanted else held.old_until_ms,
        ordered_by=actor,
        ordered_at_ms=now_ms,
    )


def tampered() -> Refusal:
    """The row of the rotation is not what the server wrote."""
    return Refusal(
        Reason.QUARANTINED,
        "the record of this node's rotation was changed outside the server: an operator has to revoke the node and"
        " enroll it anew",
    )
