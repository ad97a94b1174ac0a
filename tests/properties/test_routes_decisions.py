"""Whatever is found: a decision names nobody who may not carry the route, leaves what is broken as soon as something
works, leaves what works for enough gain alone, changes nothing without a cause, and can be replayed."""

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_server.routes import scoring_rules, way_rules
from fleet_server.routes.model import GOOD
from fleet_server.routes.rules import DIRECT, Decision, DecisionRule, Policy, Scored, decide, fold
from fleet_server.routes.way_rules import Way
from tests.properties.route_world import ENDS, Step, World, steps

STAYS = {
    DecisionRule.KEPT,
    DecisionRule.NOT_ENOUGH_GAIN,
    DecisionRule.SUPPRESSED_KEPT,
    DecisionRule.UNOBSERVED,
    DecisionRule.NO_USABLE_PATH,
}
histories = st.lists(steps, min_size=1, max_size=12)


def weighed(world: World) -> dict[str, Way]:
    pool = {relay.node_id: relay for relay in world.pool}
    return way_rules.weigh(world.route, world.known, pool, world.now_ms, world.policy)


def scored(decision: Decision, relay_id: str) -> Scored:
    return next(each for each in decision.scores if each.relay_id == relay_id)


@given(history=histories)
def test_only_what_may_carry_the_route_is_named(history: Sequence[Step]) -> None:
    world = World()
    for step in history:
        before = world.route.relay_id
        decision = world.take(step)
        fit = {DIRECT, *world.relays} - step.gone
        assert decision.relay_id in fit
        assert decision.relay_id == before or decision.relay_id not in step.full
        assert set(decision.candidates) <= fit - {decision.relay_id}
        assert len(set(decision.candidates)) == len(decision.candidates) <= world.policy.max_candidates
        assert DIRECT in (decision.relay_id, *decision.candidates)
        assert world.route.path(decision.relay_id)[0] == ENDS[0]


@given(history=histories)
def test_what_is_broken_is_left_once_something_works_and_what_works_for_enough_alone(history: Sequence[Step]) -> None:
    world = World()
    for step in history:
        world.observe(step)
        decision = world.decide()
        ways = weighed(world)
        old = ways[world.route.relay_id]
        leased = world.route.lease is not None and world.now_ms < world.route.lease.expires_at_ms
        held = old.works and (world.route.relay_id == DIRECT or leased) and world.route.generation > 0
        is_open = {way.relay_id for way in ways.values() if way.is_open}
        if held and decision.switched:
            assert decision.rule is DecisionRule.FASTER
            assert decision.relay_id in is_open
            assert scoring_rules.gains_enough(
                scored(decision, decision.relay_id).score_us or 0, old.scored.score_us or 0, world.policy
            )
        elif not held and is_open and decision.rule is not DecisionRule.UNOBSERVED:
            assert decision.relay_id in is_open
        elif not held and any(way.works for way in ways.values()) and decision.rule is not DecisionRule.UNOBSERVED:
            # Nothing but what is held out for flapping: it is taken nevertheless.
            assert ways[decision.relay_id].works
        if decision.rule is DecisionRule.UNOBSERVED:
            assert old.state not in GOOD or not leased
        assert (decision.rule in STAYS) <= (not decision.switched)
        world.apply(decision)


@given(history=histories)
def test_a_decision_that_was_carried_out_has_no_second_one_behind_it(history: Sequence[Step]) -> None:
    world = World()
    for step in history:
        world.take(step)
        again = world.decide()
        assert not again.switched
        assert again.candidates == world.route.candidates
        assert again.waiting_rendezvous == world.route.waiting_rendezvous


@given(history=histories, chance=st.randoms(use_true_random=False))
def test_the_order_in_which_things_are_named_changes_nothing(history: Sequence[Step], chance: object) -> None:
    world = World()
    for step in history:
        before, route = dict(world.known), world.route
        world.observe(step)
        findings, pool, rows = world.findings(step.found), list(world.pool), list(world.known.items())
        for each in (findings, pool, rows):
            chance.shuffle(each)  # type: ignore[attr-defined]
        assert fold(before, findings, world.policy, set(route.ways)) == world.known
        assert decide(route, dict(rows), pool, world.now_ms, world.policy) == world.decide()
        world.apply(world.decide())


@given(history=histories)
def test_a_disabled_route_stays_as_it_is(history: Sequence[Step]) -> None:
    world = World()
    for step in history[:-1]:
        world.take(step)
    world.observe(history[-1])
    world.route = replace(world.route, enabled=False)
    decision = world.decide()
    assert (decision.rule, decision.switched) == (DecisionRule.ROUTE_DISABLED, False)
    assert (decision.relay_id, decision.candidates) == (world.route.relay_id, ())


@given(history=histories)
def test_every_decision_says_why(history: Sequence[Step]) -> None:
    world = World()
    for step in history:
        decision = world.take(step)
        assert decision.reasons[0].numbers["rule"] == decision.rule
        assert decision.sentence
        assert all(each.held_out or each.score_us is not None for each in decision.scores)
        assert scored(decision, DIRECT)


@settings(max_examples=300)
@given(old_us=st.integers(0, 500_000), new_us=st.integers(0, 500_000))
def test_the_switch_rule_is_ten_milliseconds_and_two_thirds(old_us: int, new_us: int) -> None:
    enough = old_us - new_us >= 10_000 and 3 * new_us <= 2 * old_us
    assert scoring_rules.gains_enough(new_us, old_us, Policy()) == enough
