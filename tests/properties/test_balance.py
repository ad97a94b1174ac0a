"""Replicas that hand on streams: they converge, never swing, move each stream about once, and give up where it is of no
use."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.v1 import gateway_pb2
from fleet_server.replicas import balance
from fleet_server.replicas.balance import Balance
from fleet_server.replicas.rules import DrainRequest, ReplicaRecord, ReplicaState

Place = Callable[["Fleet", str, str], str]
"""Where a node ends up that leaves one replica and is meant for another."""


def as_meant(_: "Fleet", __: str, target: str) -> str:
    """Each replica has endpoints of its own."""
    return target


def anywhere(fleet: "Fleet", _: str, __: str) -> str:
    """A balancer that draws lots."""
    return fleet.chance.choice(sorted(fleet.held))


def to_the_least(fleet: "Fleet", _: str, __: str) -> str:
    """A balancer that counts connections."""
    return min(fleet.held, key=lambda name: (fleet.held[name], name))


def back(_: "Fleet", giver: str, __: str) -> str:
    """A balancer that goes by addresses."""
    return giver


class Fleet:
    """Replicas, how many streams each holds, and what they do about it."""

    def __init__(self, held: Sequence[int], place: Place, seed: int = 0, admission_per_s: float = 200.0) -> None:
        self.held = {f"r{number}": streams for number, streams in enumerate(held)}
        self.place = place
        self.chance = random.Random(seed)
        self.rules = {name: Balance() for name in self.held}
        self.admission_per_s = admission_per_s
        self.now_s = 0.0
        self.moves = 0
        self.gave: set[str] = set()
        self.most_in_a_round = 0

    def rows(self) -> list[ReplicaRecord]:
        """Heartbeats, all a moment old."""
        return [
            ReplicaRecord(name, "1", ReplicaState.READY, streams, self.admission_per_s, 0, 0, None, max_streams=100_000)
            for name, streams in self.held.items()
        ]

    def round(self) -> None:
        """Each decides on the same rows; then nodes move, and what came of it shows in the next rows."""
        self.now_s += 2 * balance.ROUND_S
        rows = self.rows()
        steps = {name: self.rules[name].step(name, rows, self.now_s).parts for name in self.held}
        into = dict.fromkeys(self.held, 0)
        for giver, parts in steps.items():
            landed = [self.place(self, giver, target) for target, count in parts.items() for _ in range(count)]
            for at in landed:
                self.held[giver] -= 1
                self.held[at] += 1
                into[at] += at != giver
            if parts:
                self.gave.add(giver)
                self.moves += len(landed)
                self.rules[giver].settled(len(landed), landed.count(giver), self.now_s)
        self.most_in_a_round = max(self.most_in_a_round, *into.values())

    def excess(self) -> dict[str, float]:
        """Streams above the share of each."""
        share = sum(self.held.values()) / len(self.held)
        return {name: streams - share for name, streams in self.held.items()}

    @property
    def is_even(self) -> bool:
        share = sum(self.held.values()) / len(self.held)
        return max(self.excess().values()) <= max(balance.BEGIN_STREAMS, balance.BEGIN_ABOVE * share)


FLEETS = st.lists(st.integers(0, 3_000), min_size=2, max_size=6)


@given(FLEETS)
@settings(max_examples=30)
def test_where_nodes_go_where_they_are_meant_to_the_fleet_becomes_even_and_stays_so(held: list[int]) -> None:
    fleet = Fleet(held, as_meant)
    before = fleet.excess()
    total = sum(held)
    for _ in range(120):
        fleet.round()
    assert fleet.is_even
    assert sum(fleet.held.values()) == total
    assert fleet.moves <= sum(excess for excess in before.values() if excess > 0) + 1e-6, "none was moved in vain"
    assert all(before[name] > 0 for name in fleet.gave), "and who was short gave nothing"
    assert fleet.most_in_a_round <= balance.ADMISSION_SHARE * balance.ROUND_S * fleet.admission_per_s * len(held)
    moves = fleet.moves
    for _ in range(50):
        fleet.round()
    assert fleet.moves == moves, "it is left alone then"


@given(FLEETS, st.integers(0, 2**32), st.sampled_from([anywhere, to_the_least]))
@settings(max_examples=20)
def test_it_becomes_even_behind_a_balancer_that_draws_lots_or_counts(held: list[int], seed: int, place: Place) -> None:
    fleet = Fleet(held, place, seed)
    in_excess = sum(excess for excess in fleet.excess().values() if excess > 0)
    for _ in range(300):
        fleet.round()
    gave = [fleet.rules[name] for name in fleet.gave]
    assert fleet.is_even or all(rule.quiet_s(fleet.now_s) for rule in gave)
    # Of lots, one in as many as there are replicas ends where it is missing.
    assert fleet.moves <= 3 * len(held) * in_excess + 50


def test_who_joins_gets_a_share_in_small_steps() -> None:
    fleet = Fleet([900, 900, 0], as_meant)
    fleet.round()
    assert fleet.held == {"r0": 810, "r1": 810, "r2": 180}
    for _ in range(20):
        fleet.round()
    assert max(fleet.held.values()) <= 630
    assert fleet.most_in_a_round <= 180


def test_two_who_hold_too_much_do_not_overshoot_together() -> None:
    fleet = Fleet([60, 60, 30], as_meant)
    for _ in range(20):
        fleet.round()
    assert max(fleet.held.values()) <= 60
    assert fleet.held["r2"] <= 51


def test_nodes_that_a_balancer_sends_back_are_left_alone_for_longer_each_time() -> None:
    fleet = Fleet([1_000, 0], back)
    for _ in range(24 * 360):  # a day
        fleet.round()
    assert fleet.held == {"r0": 1_000, "r1": 0}
    assert fleet.moves <= 12 * 100


@pytest.mark.parametrize(
    "change",
    [
        {"state": ReplicaState.DRAINING},
        {"drain": DrainRequest(1, 0, gateway_pb2.GOAWAY_REASON_DRAIN)},
        {"admitted_per_s": 150.0},
    ],
    ids=["one drains", "one was asked to", "a storm"],
)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_nobody_moves_nodes_while_they_have_other_reasons_to_move(change: dict[str, object], which: int) -> None:
    rows = Fleet([900, 900, 0], as_meant).rows()
    assert Balance().step("r0", rows, 0.0).parts
    rows[which] = replace(rows[which], **change)  # type: ignore[arg-type]
    assert not Balance().step("r0", rows, 0.0).parts


def test_a_few_streams_more_are_no_reason_to_move_any() -> None:
    assert not Balance().step("r0", Fleet([14, 0], as_meant).rows(), 0.0).parts
    assert not Balance().step("r0", Fleet([1_100, 900], as_meant).rows(), 0.0).parts


def test_one_that_is_alone_or_drains_gives_nothing() -> None:
    rows = Fleet([900, 0], as_meant).rows()
    assert not Balance().step("r0", rows[:1], 0.0).parts
    assert not Balance().step("r9", rows, 0.0).parts
    assert not Balance().step("r0", [replace(rows[0], state=ReplicaState.STARTING), rows[1]], 0.0).parts
