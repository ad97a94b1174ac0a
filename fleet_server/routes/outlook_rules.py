"""What would have to change for a route to take another path, in sentences for a person. Pure."""

from __future__ import annotations

from collections.abc import Collection

from fleet_server.routes import scoring_rules
from fleet_server.routes.model import DIRECT, GOOD, Decision, DecisionRule, Policy, Scored
from fleet_server.routes.reason_rules import millis, name
from fleet_server.routes.waiting_rules import LOOK_EVERY

_MOST_RIVALS = 4


def would_switch(relay_id: str, ends: Collection[str], live: Decision, policy: Policy) -> tuple[str, ...]:
    """One sentence for each change that would lead to another path, each a clause after "when".

    Args:
        relay_id: the way that the route takes.
        ends: its source and destination, which cannot relay it.
        live: what would be decided at this moment.
        policy: the constants of that.
    """
    current = next((way for way in live.scores if way.relay_id == relay_id), None)
    rivals = [way for way in live.scores if way.relay_id != relay_id and way.relay_id not in ends][:_MOST_RIVALS]
    if live.switched:
        soon = "the next report comes or the next second has passed"
        if live.rule is DecisionRule.FASTER:
            soon = f"its ways are compared again, within {LOOK_EVERY} intervals"
        return (f"{soon}: {name(live.relay_id)} would be taken now",)
    if current is None or current.state not in GOOD or current.score_us is None:
        return tuple(_must_work(way) for way in rivals) or ("a relay is added that both ends reach",)
    heir = next((way for way in rivals if not way.held_out), None)
    stops = f"{name(relay_id)} breaks"
    if relay_id != DIRECT:
        stops += ", or its relay leaves the pool, is drained, stays offline, or is not given its lease again"
    if heir is None:
        heir = next((way for way in rivals if way.state in GOOD and way.suppressed_until_ms), None)
    after = (
        f"{name(heir.relay_id)} would be next" if heir else "no other path works now, so it would stay until one does"
    )
    return (f"{stops}: {after}", *_gains(current.score_us, rivals, policy))


def most_us(current_us: int, policy: Policy) -> int:
    """The score up to which another path is worth leaving one that works; below 0 none is."""
    return min(current_us - policy.min_gain_us, current_us * policy.gain_numerator // policy.gain_denominator)


def _gains(current_us: int, rivals: Collection[Scored], policy: Policy) -> list[str]:
    most = most_us(current_us, policy)
    if most <= 0:
        return []  # none can gain enough over a path that is as short as that
    told = []
    for way in rivals:
        if most <= _least_us(way):
            continue
        wanted = f"a score of {millis(most)} or less"
        if way.held_out:
            told.append(f"{name(way.relay_id)} can be chosen again ({way.held_out}) and has {wanted}")
        elif way.score_us is not None and way.score_us <= most:
            told.append(f"{name(way.relay_id)} is walked again, and still works as well")
        else:
            told.append(f"{name(way.relay_id)} has {wanted}, against {millis(way.score_us or 0)} now")
    return told


def _least_us(way: Scored) -> int:
    """What a way costs however fast it is, for a relay is borrowed; 0 where that is not known."""
    return scoring_rules.total({name: us for name, us in way.parts.items() if name in ("relay", "weight")})


def _must_work(way: Scored) -> str:
    return f"{name(way.relay_id)} works" + (f" again ({way.held_out})" if way.held_out else "")
