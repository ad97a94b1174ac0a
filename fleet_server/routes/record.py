"""Rows of this room as the rest of the server sees them. Times are Unix milliseconds, 0 stands for never.

A row whose MAC does not fit is shown with `intact` False: nothing in it may be believed. It takes part in nothing, and
is left for an operator to remove.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

SYNTHETIC = "synthetic"
"""The one service class there is."""


@dataclass(frozen=True, slots=True)
class RouteRecord:
    """One route: what was decided about it, and its health.

    Args:
        probe_interval_ms: milliseconds between two walks of its path.
        generation: grows with each decision that changes what nodes do.
        relay_id: over whom it goes; `model.DIRECT` for over nobody.
        candidates: relays of the other ways that its source walks, best first; `DIRECT` may be among them.
        waiting_rendezvous: its ends cannot reach each other.
        state: a `PathState`; UNKNOWN before the first finding.
        rtt_us: microseconds.
        loss_permille: lost probes per thousand.
    """

    route_id: str
    cluster_id: str
    name: str
    source_id: str
    destination_id: str
    service_class: str
    probe_interval_ms: int
    enabled: bool
    created_at_ms: int
    created_by: str
    generation: int
    relay_id: str
    candidates: tuple[str, ...]
    waiting_rendezvous: bool
    decided_at_ms: int
    intact: bool = True
    state: str = "UNKNOWN"
    state_since_ms: int = 0
    observed_at_ms: int = 0
    rtt_us: int = 0
    loss_permille: int = 0

    @property
    def health(self) -> RouteHealth:
        """What is known of its path."""
        return RouteHealth(
            self.state, self.state_since_ms, self.observed_at_ms, self.rtt_us, self.loss_permille, self.route_id
        )

    @property
    def page_token(self) -> str:
        """Token of the page after this record."""
        return self.name

    @property
    def path(self) -> tuple[str, ...]:
        """Node ids from source to destination."""
        return self.way(self.relay_id)

    def way(self, relay_id: str) -> tuple[str, ...]:
        """Node ids of the way over a relay."""
        return (self.source_id, *filter(None, (relay_id,)), self.destination_id)

    @property
    def members(self) -> frozenset[str]:
        """Whose snapshots show it: both ends, and whoever relays or might; nobody's while it is disabled."""
        if not (self.enabled and self.intact):
            return frozenset()
        return frozenset(filter(None, (self.source_id, self.destination_id, self.relay_id, *self.candidates)))


class RouteHealth(NamedTuple):
    """What is known of the path of a route; see `RouteRecord`."""

    state: str
    state_since_ms: int
    observed_at_ms: int
    rtt_us: int
    loss_permille: int
    route_id: str


@dataclass(frozen=True, slots=True)
class RelayRecord:
    """A node of the relay pool.

    Args:
        capacity: routes that it may carry.
        weight: percent; 200 makes its score half as large.
    """

    node_id: str
    cluster_id: str
    site: str
    capacity: int
    weight: int
    added_at_ms: int
    added_by: str
    intact: bool = True


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """The newest rendezvous lease of a route.

    Args:
        generation: fencing token; grows with each holder.
        acked_generation: that the relay told to hold.
    """

    route_id: str
    lease_id: str
    relay_id: str
    generation: int
    issued_at_ms: int
    expires_at_ms: int
    withdrawn: bool
    intact: bool = True
    acked_generation: int = 0
    acked_at_ms: int = 0

    def holds(self, now_ms: int) -> bool:
        """Whether its holder may still relay."""
        return self.intact and not self.withdrawn and now_ms < self.expires_at_ms


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """Where a node's probe listener is, as the node says.

    Args:
        endpoints: ``host:port``, preferred first.
        certificate: DER that it shows.
    """

    node_id: str
    endpoints: tuple[str, ...]
    certificate: bytes
    reported_at_ms: int
    intact: bool = True


class ConfigRecord(NamedTuple):
    """Which version of its part a node is to have, and which it last told of.

    Args:
        applied: False when it refused `applied_version`; `reason` says why.
    """

    node_id: str
    version: int
    changed_at_ms: int
    applied_version: int
    applied: bool
    reason: str
    applied_at_ms: int


class ObservationRecord(NamedTuple):
    """One finding as it was reported.

    Args:
        observation_type: of `ObservationType`.
        subject: relay of the way that was walked, or the node that it is about.
        state: of `RouteState`.
        observed_at_ms: as the node says.
        received_at_ms: server time.
        failed_hop: index in `expected_hops`; 0 when none failed.
    """

    route_id: str
    observation_type: int
    subject: str
    reporter_id: str
    generation: int
    state: int
    expected_hops: tuple[str, ...]
    observed_hops: tuple[str, ...]
    rtt_us: int
    loss_permille: int
    observed_at_ms: int
    received_at_ms: int
    blamed_id: str = ""
    failure: str = ""
    failed_hop: int = 0

    @property
    def key(self) -> Key:
        """What it is about: of these the newest counts."""
        return self.route_id, self.observation_type, self.subject


Key = tuple[str, int, str]
"""Route, type and subject of an observation."""


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """Why a route has the path of a generation.

    Args:
        path: node ids from source to destination.
        rule: a `DecisionRule`.
        reasons: sentences, the rule's first: `text` and `numbers`.
        scores: every way that was considered, as `Scored` has it.
        decided_by: operator's name, or ``server``.
    """

    route_id: str
    generation: int
    path: tuple[str, ...]
    rule: str
    reasons: Sequence[Mapping[str, Any]]
    scores: Sequence[Mapping[str, Any]]
    decided_at_ms: int
    decided_by: str
