"""The rendezvous lease of a route: granted, kept, renewed, left to end, taken back."""

import pytest

from fleet_server.routes.lease_rules import LeaseStep, has_ended, is_due, next_lease
from fleet_server.routes.rules import DIRECT, HeldLease

NOW_MS = 1_800_000_000_000
TTL_MS = 120_000
FRESH = HeldLease("n-a", 4, NOW_MS + 119_000)
DUE = HeldLease("n-a", 4, NOW_MS + 80_000)
ENDED = HeldLease("n-a", 4, NOW_MS)


@pytest.mark.parametrize(
    ("held", "relay_id", "renewable", "step", "after"),
    [
        pytest.param(None, DIRECT, True, LeaseStep.NONE, None, id="direct-needs-none"),
        pytest.param(ENDED, DIRECT, True, LeaseStep.NONE, ENDED, id="direct-and-the-old-one-has-ended"),
        pytest.param(FRESH, DIRECT, True, LeaseStep.WITHDRAW, HeldLease("n-a", 4, NOW_MS), id="direct-again"),
        pytest.param(None, "n-a", True, LeaseStep.GRANT, HeldLease("n-a", 1, NOW_MS + TTL_MS), id="the-first-one"),
        pytest.param(FRESH, "n-a", True, LeaseStep.KEEP, FRESH, id="too-early-to-renew"),
        pytest.param(DUE, "n-a", True, LeaseStep.RENEW, HeldLease("n-a", 4, NOW_MS + TTL_MS), id="a-third-is-over"),
        pytest.param(DUE, "n-a", False, LeaseStep.KEEP, DUE, id="a-drained-relay-keeps-it-until-it-ends"),
        pytest.param(
            ENDED, "n-a", True, LeaseStep.GRANT, HeldLease("n-a", 5, NOW_MS + TTL_MS), id="anew-after-its-end"
        ),
        pytest.param(ENDED, "n-a", False, LeaseStep.NONE, ENDED, id="not-anew-to-a-drained-one"),
        pytest.param(FRESH, "n-b", True, LeaseStep.GRANT, HeldLease("n-b", 5, NOW_MS + TTL_MS), id="another-holder"),
        pytest.param(FRESH, "n-b", False, LeaseStep.NONE, FRESH, id="another-one-that-may-not"),
    ],
)
def test_what_happens_to_it(
    held: HeldLease | None, relay_id: str, renewable: bool, step: LeaseStep, after: HeldLease | None
) -> None:
    change = next_lease(held, relay_id, renewable, NOW_MS, TTL_MS)
    assert (change.step, change.lease) == (step, after)


@pytest.mark.parametrize(("left_ms", "due"), [(80_001, False), (80_000, True), (1, True)])
def test_it_is_renewed_from_a_third_of_its_life_on(left_ms: int, due: bool) -> None:
    assert is_due(HeldLease("n-a", 1, NOW_MS + left_ms), NOW_MS, TTL_MS) == due


def test_only_its_own_relay_holds_it_and_only_until_it_ends() -> None:
    assert not has_ended(FRESH, "n-a", NOW_MS)
    assert not has_ended(None, DIRECT, NOW_MS)
    assert has_ended(FRESH, "n-b", NOW_MS)
    assert has_ended(ENDED, "n-a", NOW_MS)
    assert has_ended(None, "n-a", NOW_MS)
