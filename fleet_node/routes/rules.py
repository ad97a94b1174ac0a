"""Decisions of the node about routes: pure. Which path of a route is in force, and which lease.

Paths and leases come from the control plane and grow: a higher generation replaces a lower one, never the other way
round, so that a snapshot or a lease that was held up somewhere cannot bring back what has been replaced
(docs/protocol.md, "Routes" and "Leases"). What walks show is in health_rules, when to walk in schedule_rules, when to
ask for another path in feedback_rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fleet.lease import Lease as Term
from fleet.lease import fenced

DIRECT = ""
"""In place of a relay's id: the path goes straight from source to destination."""

Chance = Callable[[], float]
"""A number of [0, 1), drawn anew by each call."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How to judge walks and when to ask, as the snapshot says (RoutePolicy); the defaults stand in for zeros.

    Args:
        min_refresh_interval_ms: between two asks on behalf of one route, at least.
        no_change_cooldown_ms: how long an ask that changed nothing holds back the next one for that route and relay.
        no_change_cooldown_max_ms: what that doubles up to.
        degraded_rtt_us: round trip, in microseconds, over which a path is DEGRADED.
        degraded_loss_permille: lost walks per thousand over which a path is DEGRADED.
        ask_timeout_ms: an ask that has no answer by then has failed, and another may follow.
    """

    min_refresh_interval_ms: int = 5_000
    no_change_cooldown_ms: int = 30_000
    no_change_cooldown_max_ms: int = 900_000
    degraded_rtt_us: int = 400_000
    degraded_loss_permille: int = 100
    ask_timeout_ms: int = 10_000


@dataclass(frozen=True, slots=True)
class EffectivePath:
    """A route as this node holds it.

    Args:
        path: node ids from source to destination; the way that is in force.
        candidates: other ways, best first; only the source walks them.
        probe_interval_ms: between two walks of `path`.
        candidate_interval_ms: between two walks of one candidate.
        waiting_rendezvous: the ends cannot reach each other, so that the route needs a lease.
    """

    route_id: str
    generation: int
    path: tuple[str, ...]
    candidates: tuple[tuple[str, ...], ...] = ()
    probe_interval_ms: int = 10_000
    candidate_interval_ms: int = 60_000
    waiting_rendezvous: bool = False

    @property
    def relay_id(self) -> str:
        """The node between the ends; DIRECT if none."""
        return self.path[1] if len(self.path) > 2 else DIRECT


@dataclass(frozen=True, slots=True)
class Applied:
    """What a snapshot made of the routes.

    Args:
        routes: what is in force now, by route id.
        replaced: ids that have another path, or that are new.
        withdrawn: ids that left.
        refused: ids that kept what they had, each with the reason.
    """

    routes: Mapping[str, EffectivePath]
    replaced: tuple[str, ...]
    withdrawn: tuple[str, ...]
    refused: Mapping[str, str]


OLDER_GENERATION = "OLDER_GENERATION"
"""The snapshot brings a generation that this node has already left behind."""
CONTRADICTION = "CONTRADICTION"
"""One generation, two paths: the one that was there first stays."""


def apply(held: Mapping[str, EffectivePath], offered: Sequence[EffectivePath]) -> Applied:
    """Takes over the routes of a snapshot that has been verified.

    What is not offered any more is withdrawn. A route that is refused keeps the path that it has.
    """
    routes: dict[str, EffectivePath] = {}
    replaced: list[str] = []
    refused: dict[str, str] = {}
    for route in offered:
        before = held.get(route.route_id)
        routes[route.route_id] = route
        if before is None:
            replaced.append(route.route_id)
        elif route.generation < before.generation:
            refused[route.route_id] = OLDER_GENERATION
            routes[route.route_id] = before
        elif route.path != before.path:
            if route.generation == before.generation:
                refused[route.route_id] = CONTRADICTION
                routes[route.route_id] = before
            else:
                replaced.append(route.route_id)
    return Applied(routes, tuple(replaced), tuple(sorted(held.keys() - routes.keys())), refused)


@dataclass(frozen=True, slots=True)
class HeldLease:
    """A relay lent to a route.

    Args:
        generation: fencing token; grows with each holder.
        expires_at_ms: Unix milliseconds, server time.
        withdrawn: it has been taken back.
    """

    lease_id: str
    route_id: str
    relay_id: str
    generation: int
    expires_at_ms: int
    withdrawn: bool = False

    def covers(self, route: EffectivePath, server_now_ms: int) -> bool:
        """Whether the relay of this route's path may be used now. A direct path needs none."""
        if route.relay_id == DIRECT:
            return True
        own = self.route_id == route.route_id and self.relay_id == route.relay_id
        return own and not self.withdrawn and Term(self.generation, self.expires_at_ms).holds(server_now_ms)


def may_use(route: EffectivePath, lease: HeldLease | None, server_now_ms: int) -> bool:
    """Whether the path in force may be walked or relayed: it is direct, or a lease covers it.

    Args:
        lease: what is held for this route.
        server_now_ms: Unix milliseconds, server time.
    """
    return route.relay_id == DIRECT or (lease is not None and lease.covers(route, server_now_ms))


OLDER_LEASE = "OLDER_LEASE"
"""A later holder's lease is here already."""


def accept_lease(held: HeldLease | None, offered: HeldLease) -> tuple[HeldLease, str]:
    """The lease to hold for a route from now on, and why the offered one was refused (empty: it was taken).

    Of one generation the longer term counts, and a withdrawal ends it for good: frames may cross a snapshot.
    """
    if held is None or held.generation < offered.generation:
        return offered, ""
    if fenced(offered.generation, held.generation) or offered.relay_id != held.relay_id:
        return held, OLDER_LEASE
    if held.withdrawn or (held.expires_at_ms >= offered.expires_at_ms and not offered.withdrawn):
        return held, ""
    return offered, ""
