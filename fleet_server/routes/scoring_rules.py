"""What a way is worth: microseconds, lower is better. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from fleet_server.routes.model import DIRECT, Candidate, Policy, Relay, Route

NEUTRAL_WEIGHT = 100


def parts_of(known: Candidate, relay: Relay | None, route: Route, now_ms: int, policy: Policy) -> dict[str, int]:
    """What a score is made of, in microseconds; `weight` in percent.

    Args:
        known: a way that answered at least once.
        relay: of that way; None for the direct one.
    """
    age_ms = max(0, now_ms - known.observed_at_ms)
    fresh_ms = policy.stale_after_ms(route, known.relay_id)
    parts = {
        "rtt": round(known.rtt_us),
        "loss": round(_loss_us(known, policy)),
        "age": round(policy.age_us * min(1.0, age_ms / fresh_ms)),
    }
    if relay is not None:
        # Judged as if it carried this route already, or whichever it has now would look worse than it is.
        load = relay.load + (relay.node_id != route.relay_id)
        parts["relay"] = policy.relay_us
        parts["load"] = round(policy.load_us * min(1.0, load / max(1, relay.capacity)))
        parts["site"] = policy.other_site_us if _is_elsewhere(relay.site, route) else 0
        parts["weight"] = relay.weight
    return parts


def walked_us(known: Candidate, policy: Policy) -> float:
    """What a walk of a way costs: the part of its score that findings change. Microseconds."""
    return known.rtt_us + _loss_us(known, policy)


def _loss_us(known: Candidate, policy: Policy) -> float:
    return policy.loss_factor * known.loss * max(known.rtt_us, policy.loss_floor_us)


def moved(before_us: float, after_us: float, policy: Policy) -> bool:
    """Whether what a way costs moved by so much that another decision may follow: by an eighth, and a quarter of what a
    switch has to gain."""
    by_us = abs(after_us - before_us)
    return by_us > before_us / 8 and by_us > policy.min_gain_us / 4


def total(parts: Mapping[str, int]) -> int:
    """The score: the sum of its parts, divided by the weight."""
    weight = parts.get("weight", NEUTRAL_WEIGHT)
    return sum(value for name, value in parts.items() if name != "weight") * NEUTRAL_WEIGHT // max(1, weight)


def gains_enough(new_us: int, old_us: int, policy: Policy) -> bool:
    """The switch rule between two ways that work: at least so much better, and at most such a share of the old."""
    return old_us - new_us >= policy.min_gain_us and new_us * policy.gain_denominator <= old_us * policy.gain_numerator


def order(relay_id: str, score_us: int) -> tuple[int, bool, str]:
    """Sorts best first; of equals the direct one, then by name, so that every replica chooses alike."""
    return score_us, relay_id != DIRECT, relay_id


def prior(relay: Relay, route: Route, policy: Policy) -> tuple[int, bytes]:
    """Sorts relays that nobody has walked yet: by what is known of them without; of equals each route has an order of
    its own, or all routes would try the same few of a large pool."""
    cost_us = policy.relay_us + round(policy.load_us * relay.load / max(1, relay.capacity))
    cost_us += policy.other_site_us if _is_elsewhere(relay.site, route) else 0
    lot = hashlib.blake2s(f"{route.route_id}/{relay.node_id}".encode(), digest_size=16).digest()
    return cost_us * NEUTRAL_WEIGHT // max(1, relay.weight), lot


def _is_elsewhere(site: str, route: Route) -> bool:
    """Whether it stands at the site of neither end, where sites are known at all."""
    ends = {route.source_site, route.destination_site} - {""}
    return bool(site and ends) and site not in ends
