"""Asks of a node are bounded whatever happens to its routes, and a change of a route frees it."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fleet_node.routes.feedback_rules import SHORTEST, Feedback, Outcome
from fleet_node.routes.rules import EffectivePath, Policy

POLICY = Policy(
    min_refresh_interval_ms=5_000,
    no_change_cooldown_ms=30_000,
    no_change_cooldown_max_ms=240_000,
    ask_timeout_ms=10_000,
)
ROUTES = {name: EffectivePath(name, 1, ("s", "r", "d")) for name in ("a", "b", "c")}
A = ROUTES["a"]

steps = st.lists(
    st.tuples(
        st.integers(0, 20_000),
        st.sampled_from(["ask", "same", "no-change", "replaced", "refused", "expire", "heal", "cut", "silence"]),
        st.sets(st.sampled_from(sorted(ROUTES))),
    ),
    max_size=60,
)


@given(steps=steps, seed=st.integers(0, 2**16))
def test_never_two_at_once_and_never_sooner_than_the_minimum(steps: list[tuple[int, str, set[str]]], seed: int) -> None:
    feedback, now_ms, version = Feedback(POLICY, random.Random(seed).random), 0, 1
    routes = dict(ROUTES)
    asked_ms: dict[str, int] = {}
    out_since_ms: int | None = None
    wanted = granted = 0
    for passed_ms, what, names in steps:
        now_ms += passed_ms
        if what == "ask":
            asked = feedback.ask([routes[name] for name in sorted(names)], version, now_ms)
            wanted, granted = wanted + len(names), granted + len(asked)
            if asked:
                assert out_since_ms is None
                out_since_ms = now_ms
            for name in asked:
                assert name in names
                assert now_ms - asked_ms.get(name, -POLICY.min_refresh_interval_ms) >= POLICY.min_refresh_interval_ms
                asked_ms[name] = now_ms
        elif what in ("same", "no-change", "replaced"):
            version += what != "same"
            if what == "replaced":
                routes = {name: replace(r, path=("s", f"r{version}", "d")) for name, r in routes.items()}
            feedback.answered(version, routes, now_ms)
            out_since_ms = None
        elif what == "refused":
            feedback.refused(version, now_ms)
            out_since_ms = None
        elif what == "expire":
            came = feedback.expire(now_ms)
            assert bool(came) == (out_since_ms is not None and now_ms - out_since_ms >= POLICY.ask_timeout_ms)
            out_since_ms = None if came else out_since_ms
        elif what == "heal":
            for name in names:
                feedback.clear(name)
        elif what == "cut":
            feedback.disconnected()
            out_since_ms = None
    assert feedback.take_held_back() == wanted - granted
    assert feedback.take_held_back() == 0


@given(chance=st.floats(0, 1, exclude_max=True), answers=st.integers(1, 12))
def test_the_cooldown_doubles_is_capped_and_never_longer_than_said(chance: float, answers: int) -> None:
    feedback, now_ms = Feedback(POLICY, lambda: chance), 0
    for turn in range(answers):
        assert feedback.ask([A], 7, now_ms) == ("a",)
        (refresh,) = feedback.answered(7, ROUTES, now_ms + 50)
        assert (refresh.outcome, refresh.elapsed_ms) == (Outcome.SAME_VERSION, 50)
        longest_ms = min(POLICY.no_change_cooldown_ms * 2**turn, POLICY.no_change_cooldown_max_ms)
        assert feedback.ask([A], 7, now_ms + 50 + int(longest_ms * SHORTEST) - 1) == ()
        now_ms += 50 + longest_ms
    assert feedback.take_held_back() == answers


def test_a_cooldown_is_of_one_route_and_relay() -> None:
    feedback = Feedback(POLICY, lambda: 0.0)
    feedback.ask([A], 7, 0)
    feedback.answered(7, ROUTES, 0)
    assert feedback.ask([A, ROUTES["b"]], 7, 6_000) == ("b",)
    feedback.answered(8, ROUTES, 6_000)
    assert feedback.ask([replace(A, path=("s", "other", "d"))], 7, 7_000) == ("a",)


def test_a_route_that_healed_may_ask_again() -> None:
    feedback = Feedback(POLICY, lambda: 0.0)
    feedback.ask([A], 7, 0)
    feedback.answered(7, ROUTES, 0)
    feedback.clear("a")
    assert feedback.ask([A], 7, 5_000) == ("a",)


def test_a_change_clears_what_was_before() -> None:
    feedback = Feedback(POLICY, lambda: 0.0)
    feedback.ask([A], 7, 0)
    feedback.answered(7, ROUTES, 0)
    feedback.ask([replace(A, path=("s", "other", "d"))], 7, 5_000)
    feedback.answered(8, ROUTES, 5_000)
    assert feedback.ask([A], 8, 10_000) == ("a",)


def test_every_outcome_has_its_word() -> None:
    def come(version: int, routes: dict[str, EffectivePath]) -> Outcome:
        feedback = Feedback(POLICY, lambda: 0.0)
        feedback.ask([A], 7, 0)
        return feedback.answered(version, routes, 10)[0].outcome

    assert come(7, ROUTES) is Outcome.SAME_VERSION
    assert come(8, ROUTES) is Outcome.NO_CHANGE
    assert come(8, {"a": replace(A, path=("s", "d"))}) is Outcome.REPLACED
    assert come(8, {}) is Outcome.WITHDRAWN
    feedback = Feedback(POLICY, lambda: 0.0)
    assert (feedback.answered(8, ROUTES, 0), feedback.refused(8, 0), feedback.expire(0)) == ((), (), ())


def test_no_answer_is_no_reason_for_a_cooldown_and_forgotten_routes_start_afresh() -> None:
    feedback = Feedback(POLICY, lambda: 0.0)
    feedback.ask([A], 7, 0)
    assert feedback.expire(9_999) == ()
    assert feedback.expire(10_000)[0].outcome is Outcome.TIMED_OUT
    assert feedback.ask([A], 7, 10_000) == ("a",)
    feedback.refused(8, 10_000)
    assert feedback.ask([A], 7, 20_000) == ()
    feedback.keep(())
    assert feedback.ask([A], 7, 20_000) == ("a",)
