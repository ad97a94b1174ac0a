"""What operators may ask of routes and relays, and what they are told when they may not."""

from collections.abc import Callable

import pytest

from fleet.errors import Reason, Refusal
from fleet_server.routes import operator_rules as rules


@pytest.mark.parametrize(
    ("check", "said"),
    [
        pytest.param(lambda: rules.check_ends("n-1", "n-1"), "not to itself", id="to-itself"),
        pytest.param(lambda: rules.checked_interval_ms(199), "199ms is not possible: use 200ms to 10m", id="too-often"),
        pytest.param(lambda: rules.checked_interval_ms(600_001), "200ms to 10m", id="too-seldom"),
        pytest.param(lambda: rules.checked_capacity(501), "1 to 500 routes", id="too-much-capacity"),
        pytest.param(lambda: rules.checked_capacity(-1), "1 to 500 routes", id="negative-capacity"),
        pytest.param(lambda: rules.checked_weight(1_001), "1 to 1000 percent", id="too-heavy"),
        pytest.param(lambda: rules.checked_weight(-1), "1 to 1000 percent", id="negative-weight"),
        pytest.param(lambda: rules.checked_name("Über", "a", "b"), "a-z, 0-9 and -", id="no-name"),
        pytest.param(lambda: rules.checked_name("x" * 64, "a", "b"), "63 characters", id="a-long-name"),
        pytest.param(lambda: rules.checked_site("a site"), "a-z, 0-9 and -", id="no-site"),
        pytest.param(lambda: rules.checked_site("s" * 64), "at most 63", id="a-long-site"),
    ],
)
def test_what_is_refused_says_what_would_do(check: Callable[[], object], said: str) -> None:
    with pytest.raises(Refusal) as refused:
        check()
    assert refused.value.reason is Reason.INVALID_ARGUMENT
    assert said in refused.value.detail


def test_what_is_not_said_has_a_default() -> None:
    rules.check_ends("n-1", "n-2")
    assert rules.checked_interval_ms(0) == 10_000
    assert rules.checked_capacity(0) == 50
    assert rules.checked_weight(0) == 100
    assert rules.checked_site("") == ""
    assert rules.checked_name("", "berlin", "oslo") == "berlin-to-oslo"
    assert len(rules.checked_name("", "b" * 63, "o" * 63)) == rules.MAX_NAME_CHARS


def test_the_bounds_themselves_are_taken() -> None:
    assert [rules.checked_interval_ms(each) for each in (200, 600_000)] == [200, 600_000]
    assert [rules.checked_capacity(each) for each in (1, 500)] == [1, 500]
    assert [rules.checked_weight(each) for each in (1, 1_000)] == [1, 1_000]
    assert rules.checked_site("s" * 63) == "s" * 63
