"""What a decision says for itself, in words and numbers. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from fleet_server.routes import way_rules
from fleet_server.routes.model import BAD, DIRECT, DecisionRule, Policy, Reason, Relay, Route
from fleet_server.routes.way_rules import Way, seconds


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and what it was weighed against.

    Args:
        rival: the way that the rule compared it with; None when it compared none.
    """

    relay_id: str
    rule: DecisionRule
    rival: str | None = None


def explain(
    route: Route,
    choice: Choice,
    candidates: Collection[str],
    ways: Mapping[str, Way],
    relays: Mapping[str, Relay],
    now_ms: int,
    policy: Policy,
) -> tuple[Reason, ...]:
    """The rule in a sentence first, then what else had to do with it.

    Args:
        candidates: other ways that its source walks from now on.
    """
    numbers: dict[str, float | int | str] = {"from": route.relay_id, "to": choice.relay_id}
    text = _SENTENCES[choice.rule](_Case(route, choice, ways, now_ms, policy, numbers))
    return (
        Reason(text, {"rule": choice.rule.value, **numbers}),
        *_beside(choice, ways, _spare(route, candidates, ways, relays)),
    )


def name(relay_id: str) -> str:
    """A way, in words."""
    return "the direct path" if relay_id == DIRECT else f"the path over {relay_id}"


def millis(duration_us: int) -> str:
    """A duration or a score, for a person."""
    return f"{duration_us / 1000:.1f} ms"


@dataclass(frozen=True, slots=True)
class _Case:
    route: Route
    choice: Choice
    ways: Mapping[str, Way]
    now_ms: int
    policy: Policy
    numbers: dict[str, float | int | str]

    @property
    def old(self) -> str:
        """The path that it had."""
        return name(self.route.relay_id)

    @property
    def new(self) -> str:
        """The path that it gets."""
        return name(self.choice.relay_id)

    def ailing(self) -> str:
        """What the old path has."""
        way = self.ways[self.route.relay_id]
        self.numbers["old_stale_since_ms"] = way.scored.stale_since_ms
        return way.obstacle or way.ailment

    def score(self, relay_id: str, label: str) -> int:
        """Its score, also into the numbers; 0 when it has none."""
        score_us = self.ways[relay_id].scored.score_us if relay_id in self.ways else None
        if score_us is not None:
            self.numbers[f"{label}_us"] = score_us
        return score_us or 0

    def takes_over(self) -> str:
        """Who does, and what speaks for it."""
        way = self.ways.get(self.choice.relay_id)
        if way is None or not way.works:
            return f"{self.new} is tried, for nothing is known to work"
        return f"{self.new} takes over with a score of {millis(self.score(self.choice.relay_id, 'new'))}"

    def gain(self, relay_id: str) -> str:
        """What a way would gain over the path that the route has."""
        old_us, new_us = self.score(self.route.relay_id, "old"), self.score(relay_id, "new")
        self.numbers["gain_us"] = old_us - new_us
        return f"{millis(old_us - new_us)}: {millis(new_us)} instead of {millis(old_us)}"

    def bar(self) -> str:
        """What the switch rule asks for."""
        policy = self.policy
        self.numbers["min_gain_us"] = policy.min_gain_us
        return (
            f"at least {millis(policy.min_gain_us)} and a score of at most"
            f" {policy.gain_numerator}/{policy.gain_denominator} of the old one"
        )


def _first(case: _Case) -> str:
    way = case.ways[case.choice.relay_id]
    if not way.works:
        return f"nothing of the route has been walked yet: it begins with {case.new}"
    return f"the route begins: {case.new} is the best that works, {millis(case.score(case.choice.relay_id, 'new'))}"


def _unhealthy(case: _Case) -> str:
    return f"{case.old} does not work, {case.ailing()}: {case.takes_over()}"


def _stale(case: _Case) -> str:
    return f"the source tells of other ways, but not of {case.old} ({case.ailing()}): {case.takes_over()}"


def _relay_gone(case: _Case) -> str:
    return f"{case.route.relay_id} cannot be its relay any more, for {case.ailing()}: {case.takes_over()}"


def _lease_ended(case: _Case) -> str:
    if case.choice.relay_id == case.route.relay_id:
        return f"the lease for {case.old} has ended; its relay works and gets another one"
    return f"the lease for {case.old} has ended: {case.takes_over()}"


def _last_usable(case: _Case) -> str:
    way = case.ways[case.choice.relay_id]
    case.numbers["penalty"] = round(way.scored.penalty)
    case.numbers["suppressed_until_ms"] = way.scored.suppressed_until_ms
    return (
        f"{case.new} is held out for flapping (penalty {way.scored.penalty:.0f}), but nothing else works: the last way"
        f" that works is taken. {case.old.capitalize()}: {case.ailing() or 'its lease has ended'}"
    )


def _faster(case: _Case) -> str:
    return f"{case.new} gains {case.gain(case.choice.relay_id)}. Asked for are {case.bar()}"


def _kept(case: _Case) -> str:
    return f"{case.old} is the best that works, with a score of {millis(case.score(case.route.relay_id, 'old'))}"


def _not_enough_gain(case: _Case) -> str:
    rival = case.choice.rival or DIRECT
    text = f"{case.old} stays: {name(rival)} would gain {case.gain(rival)}"
    samples, seen_ms = case.ways[rival].samples, case.ways[rival].scored.observed_at_ms
    if seen_ms <= case.route.decided_at_ms:
        return f"{text}, but was not walked since {case.old} was chosen"
    if samples < case.policy.min_samples:
        case.numbers["samples"] = samples
        return f"{text}, but was seen working {samples} of the {case.policy.min_samples} times that are asked for"
    return f"{text}. Asked for are {case.bar()}"


def _suppressed_kept(case: _Case) -> str:
    rival = case.ways[case.choice.rival or DIRECT].scored
    case.numbers["penalty"] = round(rival.penalty)
    case.numbers["suppressed_until_ms"] = rival.suppressed_until_ms
    return f"{case.old} stays: {name(rival.relay_id)} would gain {case.gain(rival.relay_id)}, but {rival.held_out}"


def _unobserved(case: _Case) -> str:
    observed_ms = case.ways[case.route.relay_id].scored.observed_at_ms
    if not observed_ms:
        return f"{case.old} stays: the source has not told of any walk of it yet, and no other way is known to work"
    newest_ms = max(way.scored.observed_at_ms for way in case.ways.values())
    case.numbers["silent_ms"] = case.now_ms - observed_ms
    silent = seconds(case.now_ms - observed_ms)
    if newest_ms > observed_ms:
        return f"{case.old} stays: it was not seen for {silent}, and no other way is known to work"
    return f"{case.old} stays: the source has told nothing for {silent}"


def _no_usable_path(case: _Case) -> str:
    return f"no way works, so {case.old} stays until one does: changing the path would help nobody"


def _route_disabled(case: _Case) -> str:
    return f"the route is disabled: {case.old} stays as it is, and nobody walks it"


_SENTENCES = {
    DecisionRule.FIRST: _first,
    DecisionRule.UNHEALTHY: _unhealthy,
    DecisionRule.STALE: _stale,
    DecisionRule.RELAY_GONE: _relay_gone,
    DecisionRule.LEASE_ENDED: _lease_ended,
    DecisionRule.LAST_USABLE: _last_usable,
    DecisionRule.FASTER: _faster,
    DecisionRule.KEPT: _kept,
    DecisionRule.NOT_ENOUGH_GAIN: _not_enough_gain,
    DecisionRule.SUPPRESSED_KEPT: _suppressed_kept,
    DecisionRule.UNOBSERVED: _unobserved,
    DecisionRule.NO_USABLE_PATH: _no_usable_path,
    DecisionRule.ROUTE_DISABLED: _route_disabled,
}


def _spare(route: Route, candidates: Collection[str], ways: Mapping[str, Way], relays: Mapping[str, Relay]) -> int:
    """How many relays could carry the route, and are walked neither now nor from now on."""
    return sum(
        not way_rules.obstacle(node_id, relay, route)
        for node_id, relay in relays.items()
        if node_id not in ways and node_id not in candidates
    )


def _beside(choice: Choice, ways: Mapping[str, Way], unwalked: int) -> tuple[Reason, ...]:
    """What a person asks next: why not directly, why does it stay where it flaps, and is that all there is?"""
    if choice.rule is DecisionRule.ROUTE_DISABLED:
        return ()
    beside = []
    direct, chosen = ways[DIRECT], ways.get(choice.relay_id)
    if choice.relay_id != DIRECT and direct.state in BAD:
        text = f"the ends cannot reach each other: {name(DIRECT)} is {direct.ailment}"
        beside.append(Reason(text, {"stale_since_ms": direct.scored.stale_since_ms}))
    if chosen is not None and chosen.suppressed and choice.rule is not DecisionRule.LAST_USABLE:
        text = (
            f"{name(choice.relay_id)} itself flaps (penalty {chosen.scored.penalty:.0f}): that keeps others from"
            " choosing it, not a route from staying where it works"
        )
        beside.append(Reason(text, {"penalty": round(chosen.scored.penalty)}))
    if unwalked:
        several = f"{unwalked} more relays of the pool are not walked; they get their turn"
        one = "1 more relay of the pool is not walked; it gets its turn"
        text = f"{several if unwalked > 1 else one} when candidates stop working"
        beside.append(Reason(text, {"relays": unwalked}))
    return tuple(beside)
