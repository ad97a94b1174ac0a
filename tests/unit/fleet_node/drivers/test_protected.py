"""Which actions are protected, and which globs protect nothing."""

from collections.abc import Sequence

import pytest

from fleet_node.drivers.api import Action
from fleet_node.drivers.protected import Protected, protected_of, unmatched_remedy


def action(name: str, *, protected: bool = False) -> Action:
    return Action(name, "", {}, idempotent=True, protected=protected)


ACTIONS = [action("exec.run", protected=True), action("host.info"), action("host.processes")]


@pytest.mark.parametrize(
    ("globs", "protected", "unmatched"),
    [
        ([], ["exec.run"], []),
        (["host.*"], ["exec.run", "host.info", "host.processes"], []),
        (["exec"], ["exec.run"], ["exec"]),
        (["hots.*", "host.info"], ["exec.run", "host.info"], ["hots.*"]),
        (["exec.run"], ["exec.run"], []),
        (["*"], ["exec.run", "host.info", "host.processes"], []),
    ],
)
def test_driver_and_configuration_protect(
    globs: Sequence[str], protected: Sequence[str], unmatched: Sequence[str]
) -> None:
    assert protected_of(ACTIONS, globs, lambda name: False) == Protected(tuple(protected), tuple(unmatched))


def test_the_policy_protects_too() -> None:
    assert protected_of(ACTIONS, [], lambda name: name == "host.info").actions == ("exec.run", "host.info")


def test_of_no_drivers_nothing_is_protected() -> None:
    assert protected_of([], ["exec.*"], lambda name: True) == Protected((), ("exec.*",))


def test_the_name_of_a_driver_is_told_apart_from_its_actions() -> None:
    assert "`exec.*`" in unmatched_remedy("exec")
    assert "stands for" not in unmatched_remedy("hots.*")
