"""Globs over action names, as policies and node configurations hold them. Pure."""

from __future__ import annotations

MAX_GLOB_CHARS = 128
_GLOB_CHARS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_.-*")


def glob_matches(glob: str, action: str) -> bool:
    """Whether `action` is what `glob` means: `*` stands for any characters or none, dots among them; every other
    character stands for itself."""
    first, *rest = glob.split("*")
    if not rest:
        return action == glob
    last = rest.pop()
    if len(action) < len(first) + len(last) or not action.startswith(first) or not action.endswith(last):
        return False
    at, end = len(first), len(action) - len(last)
    for part in rest:  # leftmost each time: what is left over for the next parts is as much as can be
        found = action.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def is_glob(text: str) -> bool:
    """Whether `text` is a glob that rules and node configurations may hold."""
    return 0 < len(text) <= MAX_GLOB_CHARS and _GLOB_CHARS.issuperset(text)
