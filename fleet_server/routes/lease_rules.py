"""When a rendezvous lease is granted, renewed, left to end and taken back. docs/protocol.md, "Leases". Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fleet.lease import Lease
from fleet_server.routes.model import DIRECT, HeldLease


class LeaseStep(StrEnum):
    """What happens to the lease of a route."""

    NONE = "NONE"  # there is none, and none is needed or may be given
    KEEP = "KEEP"  # it holds for longer yet, or ends by itself
    RENEW = "RENEW"  # the same holder, the same generation, a later end
    GRANT = "GRANT"  # to another holder, or anew to one whose lease had ended: the next generation
    WITHDRAW = "WITHDRAW"  # the route leads over no relay any more


@dataclass(frozen=True, slots=True)
class LeaseChange:
    """A step, and what the route holds after it.

    Args:
        lease: None only when there never was one.
    """

    step: LeaseStep
    lease: HeldLease | None


def next_lease(held: HeldLease | None, relay_id: str, renewable: bool, now_ms: int, ttl_ms: int) -> LeaseChange:
    """The lease of a route whose path was just decided, or is looked at again.

    Args:
        held: the newest lease, whoever holds it, ended or not.
        relay_id: the way that the route takes.
        renewable: whether that relay may carry routes now. One that may not keeps what it has until it ends.
        now_ms: Unix milliseconds, server time.
        ttl_ms: life of a lease, milliseconds.
    """
    holds = held is not None and _lease(held).holds(now_ms)
    if relay_id == DIRECT:
        if held is None or not holds:
            return LeaseChange(LeaseStep.NONE, held)
        return LeaseChange(LeaseStep.WITHDRAW, HeldLease(held.relay_id, held.generation, now_ms))
    if held is not None and holds and held.relay_id == relay_id:
        if not (renewable and is_due(held, now_ms, ttl_ms)):
            return LeaseChange(LeaseStep.KEEP, held)
        return LeaseChange(LeaseStep.RENEW, _held(relay_id, _lease(held).renew(now_ms, ttl_ms)))
    if not renewable:
        return LeaseChange(LeaseStep.NONE, held)
    before = _lease(held) if held else Lease(epoch=0, expires_at_ms=0)
    return LeaseChange(LeaseStep.GRANT, _held(relay_id, before.succeed(now_ms, ttl_ms)))


def is_due(held: HeldLease, now_ms: int, ttl_ms: int) -> bool:
    """Whether a third of its life is over. A life that an operator made shorter counts from now on."""
    return held.expires_at_ms - now_ms <= ttl_ms - ttl_ms // 3


def has_ended(held: HeldLease | None, relay_id: str, now_ms: int) -> bool:
    """Whether a way needs a lease that it does not hold."""
    return relay_id != DIRECT and not (held and held.relay_id == relay_id and _lease(held).holds(now_ms))


def _lease(held: HeldLease) -> Lease:
    return Lease(held.generation, held.expires_at_ms)


def _held(relay_id: str, lease: Lease) -> HeldLease:
    return HeldLease(relay_id, lease.epoch, lease.expires_at_ms)
