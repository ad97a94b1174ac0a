"""Rendezvous leases as rows: granted with a decision, renewed in bulk, taken back when a route leaves its relay.

A new holder gets a lease of its own with a higher generation, which is the fencing token: a relay that was left, and
did not hear of it, relays no longer than its lease lasts. When each happens: `lease_rules`.
A lease is signed, so it ends, and is renewed, by this machine's clock; that it has ended is believed when it has by the
database's clock, too (docs/adr/0033).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from fleet_server.routes.lease_rules import LeaseStep, next_lease
from fleet_server.routes.model import HeldLease
from fleet_server.routes.record import LeaseRecord, RouteRecord


@dataclass(frozen=True, slots=True)
class Times:
    """One moment by each clock, Unix milliseconds.

    Args:
        now_ms: by the one that replicas have in common.
        own_ms: by this machine's.
        past_ms: what lies before is past by both.
    """

    now_ms: int
    own_ms: int
    past_ms: int


def shown(lease: LeaseRecord | None, times: Times) -> HeldLease | None:
    """A lease as rules see it, whose only clock is `now_ms`, or `own_ms`: it holds for them while it does by any. One
    that was changed around the server is none."""
    if lease is None or not lease.intact:
        return None
    if not lease.holds(times.past_ms):
        return HeldLease(lease.relay_id, lease.generation, 0)
    return HeldLease(lease.relay_id, lease.generation, max(lease.expires_at_ms, times.now_ms + 1, times.own_ms + 1))


def step(
    route: RouteRecord, relay_id: str, lease: LeaseRecord | None, *, renewable: bool, times: Times, ttl_ms: int
) -> tuple[LeaseStep, LeaseRecord | None]:
    """What happens to the lease of a route whose way is decided, and its row if that changes.

    Args:
        route: as it was before; with a lease that is granted it gets its next generation.
        relay_id: the way that it takes from now on.
        lease: its newest one, whoever holds it.
        renewable: whether the relay of that way may carry routes now.
        ttl_ms: life of a lease.
    """
    relay_id = relay_id if route.enabled else ""
    change = next_lease(shown(lease, times), relay_id, renewable, times.own_ms, ttl_ms)
    issued_ms = max(times.now_ms, lease.issued_at_ms + 1) if lease is not None else times.now_ms
    if change.step is LeaseStep.GRANT and change.lease is not None:
        # What was changed around the server says nothing, and no lease ever had a higher generation than its route.
        tampered = lease is not None and not lease.intact
        return change.step, LeaseRecord(
            route_id=route.route_id,
            lease_id=f"ls_{secrets.token_hex(15)}",
            relay_id=relay_id,
            generation=route.generation + 1 if tampered else change.lease.generation,
            issued_at_ms=times.now_ms if tampered else issued_ms,
            expires_at_ms=change.lease.expires_at_ms,
            withdrawn=False,
        )
    if lease is not None and change.lease is not None and change.step is LeaseStep.RENEW:
        return change.step, replace(lease, issued_at_ms=issued_ms, expires_at_ms=change.lease.expires_at_ms)
    if lease is not None and change.step is LeaseStep.WITHDRAW:
        return change.step, replace(lease, issued_at_ms=issued_ms, withdrawn=True)
    return change.step, None
