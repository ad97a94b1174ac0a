"""Which of a node's actions are protected, and which globs of its configuration protect nothing. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fleet.globs import glob_matches
from fleet_node.drivers.api import Action


@dataclass(frozen=True, slots=True)
class Protected:
    """What is protected on a node.

    Args:
        actions: names of actions that need people's signed intent, sorted.
        unmatched: globs of the setting `protected` that match no action of this node.
    """

    actions: tuple[str, ...]
    unmatched: tuple[str, ...]


def protected_by(action: Action, globs: Iterable[str]) -> bool:
    """Whether the driver or the configuration protects it."""
    return action.protected or any(glob_matches(glob, action.name) for glob in globs)


def protected_of(actions: Sequence[Action], globs: Sequence[str], by_policy: Callable[[str], bool]) -> Protected:
    """What is protected among `actions`.

    Args:
        globs: the setting `protected`.
        by_policy: whether a policy of the owner names an action.
    """
    names = [action.name for action in actions if protected_by(action, globs) or by_policy(action.name)]
    unmatched = [glob for glob in globs if not any(glob_matches(glob, action.name) for action in actions)]
    return Protected(tuple(sorted(names)), tuple(unmatched))


def unmatched_remedy(glob: str) -> str:
    """What to do about a glob that matches no action; actions have names such as `exec.run`."""
    meant = "" if "*" in glob else f"; `{glob}.*` stands for all actions of a driver `{glob}`"
    return f"correct the setting `protected`, or enable the driver that has it{meant}"
