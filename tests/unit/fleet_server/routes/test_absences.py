"""When a relay without a stream counts as gone."""

from dataclasses import replace

from fleet_server.nodes.record import NodeRecord, NodeState
from fleet_server.routes.pool import Absences

LOSS_MS = 15_000
NOW_MS = 1_800_000_000_000
LEFT = NodeRecord(
    "nd",
    "cl",
    "n",
    "",
    b"i" * 32,
    b"s" * 32,
    {},
    NodeState.ACTIVE,
    "",
    0,
    b"",
    intact=True,
    last_seen_ms=NOW_MS - 60_000,
)
"""Its stream was ended in order, a minute ago."""
HELD_BY_A_LOST_REPLICA = replace(LEFT, replica_id="fleet-0")


class Clock:
    """Seconds that a test sets."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_time_in_which_no_server_was_there_counts_for_nobody() -> None:
    """After a stop of a minute nobody has a stream yet: routes keep their relays, which are about to be back."""
    clock = Clock()
    absences = Absences(LOSS_MS, clock)
    assert not absences.is_lost(LEFT, NOW_MS)
    clock.now_s += LOSS_MS / 1000
    assert not absences.is_lost(LEFT, NOW_MS + LOSS_MS)
    clock.now_s += 0.001
    assert absences.is_lost(LEFT, NOW_MS + LOSS_MS + 1)
    assert not absences.is_lost(replace(LEFT, online=True), NOW_MS + LOSS_MS + 1)


def test_one_that_left_while_the_server_is_there_is_gone_after_its_time() -> None:
    clock = Clock()
    absences = Absences(LOSS_MS, clock)
    clock.now_s += 3600
    assert absences.is_lost(LEFT, NOW_MS)
    assert not absences.is_lost(replace(LEFT, last_seen_ms=NOW_MS - LOSS_MS), NOW_MS)
    assert not absences.is_lost(HELD_BY_A_LOST_REPLICA, NOW_MS)
    clock.now_s += LOSS_MS / 1000 + 0.001
    assert absences.is_lost(HELD_BY_A_LOST_REPLICA, NOW_MS)
