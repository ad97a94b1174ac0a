"""The schedule of faults: repeatable, within its bounds, and one fault at a time on one target."""

from itertools import pairwise

from tests.chaos.schedule import Kind, plan
from tests.chaos.world import Size

SHAPE = Size.of(200).shape()


def test_a_seed_repeats_its_plan_and_another_one_makes_another() -> None:
    plans = [plan(seed, 60, SHAPE, gap_s=1.0) for seed in (7, 7, 8)]
    assert plans[0] == plans[1] != plans[2]


def test_every_fault_is_undone_in_time_and_no_target_has_two() -> None:
    for seed in range(50):
        events = plan(seed, 60, SHAPE, gap_s=0.5)
        assert all(0 < event.at_s < 60 and event.at_s + event.lasts_s <= 60.01 for event in events)
        for target in {event.target for event in events}:
            lasting = [event for event in events if event.target == target and event.lasts_s]
            assert all(first.at_s + first.lasts_s <= then.at_s + 0.02 for first, then in pairwise(lasting))


def test_a_minute_has_seen_nearly_every_kind() -> None:
    for seed in range(20):
        seen = {event.kind for event in plan(seed, 60, SHAPE, gap_s=1.0)}
        assert len(seen) > len(Kind) * 0.8


def test_sizes_come_out_about_as_asked() -> None:
    for nodes in (20, 200):
        assert 0.9 * nodes <= Size.of(nodes).members <= nodes


def test_a_strength_chooses_among_directions_and_never_one_too_many() -> None:
    strengths = {event.strength for seed in range(40) for event in plan(seed, 60, SHAPE, gap_s=0.25)}
    assert min(strengths) >= 0
    assert max(strengths) < 1
