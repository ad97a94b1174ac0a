"""What the rest of the server sees of a node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from fleet.identity import fingerprint
from fleet.v1 import gateway_pb2


class NodeState(StrEnum):
    """Whether a node may connect and be commanded. Covered by the row's MAC."""

    ACTIVE = "ACTIVE"
    SUSPENDED = "SUSPENDED"
    REVOKED = "REVOKED"
    QUARANTINED = "QUARANTINED"


class DrainState(StrEnum):
    """Whether a node takes new work (docs/protocol.md, "Drain")."""

    NONE = "NONE"
    DRAINING = "DRAINING"
    DRAINED = "DRAINED"


class NewStream(NamedTuple):
    """A stream that opens.

    Args:
        takeover_of: stream id that it takes over, as the node says; empty if none.
        replica_id: that holds it.
        accepted: seq that the node has accepted last.
    """

    node_id: str
    stream_id: str
    takeover_of: str
    replica_id: str
    accepted: int


class Taken(NamedTuple):
    """What an issue takes from a node's row, which is its own until it commits.

    Args:
        first: seq of its first command there.
        epoch: of the node's newest stream.
    """

    first: int
    epoch: int


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One node: what an operator decided, what its streams left behind, and what it reported.

    `takeover_of` is the stream that the newest one said it takes over from; empty when it came from nowhere.
    A row whose MAC does not fit is shown QUARANTINED and without labels, whatever its columns say, and `intact` is
    False: nothing in
    it may be believed. Times are Unix milliseconds, `rtt_us` microseconds, `clock_offset_ms` node clock minus server
    clock.
    """

    node_id: str
    cluster_id: str
    name: str
    site: str
    identity_key: bytes
    sealing_key: bytes
    labels: Mapping[str, str]
    state: NodeState
    state_reason: str
    enrolled_at_ms: int
    mac: bytes
    intact: bool
    last_seq: int = 0
    last_accepted_seq: int = 0
    stream_epoch: int = 0
    stream_id: str = ""
    replica_id: str = ""
    online: bool = False
    last_seen_ms: int = 0
    rtt_us: int = 0
    clock_offset_ms: int = 0
    drain_state: DrainState = DrainState.NONE
    drain_deadline_ms: int = 0
    version: str = ""
    reported_labels: Mapping[str, str] = field(default_factory=dict)
    drivers_sha256: bytes = b""
    max_in_flight: int = 0
    bundle_generation: int = 0
    bundle_number: int = 0
    config_version: int = 0
    takeover_of: str = ""
    open_commands: int = 0
    rotating: tuple[str, ...] = ()
    checklist_open: int = 0

    @property
    def fingerprint(self) -> bytes:
        """20 bytes over both public keys."""
        return fingerprint(self.identity_key, self.sealing_key)


@dataclass(frozen=True, slots=True)
class DriverSet:
    """What nodes of one version offer. Immutable and shared by all of them: `sha256` is a good cache key."""

    sha256: bytes
    drivers: tuple[gateway_pb2.DriverDescriptor, ...]
    actions: Mapping[str, gateway_pb2.ActionDescriptor]

    @classmethod
    def parse(cls, sha256: bytes, raw: bytes) -> DriverSet:
        """From the bytes that `encode_drivers` made."""
        drivers = tuple(gateway_pb2.HelloBody.FromString(raw).drivers)
        return cls(sha256, drivers, {action.action: action for driver in drivers for action in driver.actions})


def encode_drivers(body: gateway_pb2.HelloBody) -> bytes:
    """Drivers of a hello alone, as they are stored and hashed."""
    return gateway_pb2.HelloBody(drivers=body.drivers).SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True)
class NodeActions:
    """Which of the asked nodes offer what.

    Args:
        sets: driver set by its SHA-256; few, for nodes of one version share theirs.
        of_node: node id -> SHA-256 of its driver set; a node that never connected is missing.
    """

    sets: Mapping[bytes, DriverSet]
    of_node: Mapping[str, bytes]

    def lookup(self, node_id: str, action: str) -> gateway_pb2.ActionDescriptor | None:
        """The action as this node advertised it; None when it does not offer it."""
        found = self.sets.get(self.of_node.get(node_id, b""))
        return None if found is None else found.actions.get(action)
