"""What operators may ask of routes and relays. Pure."""

from __future__ import annotations

import re

from fleet.errors import Reason, Refusal

MIN_PROBE_INTERVAL_MS = 200
MAX_PROBE_INTERVAL_MS = 10 * 60 * 1000
"""Nodes take intervals up to an hour, and candidates are walked every sixth interval."""
DEFAULT_PROBE_INTERVAL_MS = 10_000
MAX_CAPACITY = 500
"""A frame holds what a relay has to know of so many routes, and of both ends of each."""
DEFAULT_CAPACITY = 50
MAX_WEIGHT = 1_000
"""Percent."""
MAX_NAME_CHARS = 63
_NAME = re.compile(rf"[a-z0-9-]{{1,{MAX_NAME_CHARS}}}")
_SITE = re.compile(r"[a-z0-9-]{0,63}")


def checked_name(name: str, source_name: str, destination_name: str) -> str:
    """A route's name; made of its ends' names when it is given none.

    Raises:
        Refusal: INVALID_ARGUMENT.
    """
    if not name:
        return f"{source_name}-to-{destination_name}"[:MAX_NAME_CHARS]
    if not _NAME.fullmatch(name):
        raise _wrong(f"{name[:80]!r} is no route name: use 1 to {MAX_NAME_CHARS} characters of a-z, 0-9 and -")
    return name


def check_ends(source_id: str, destination_id: str) -> None:
    """Two different nodes.

    Raises:
        Refusal: INVALID_ARGUMENT.
    """
    if source_id == destination_id:
        raise _wrong("a route leads from one node to another one, not to itself: name two nodes")


def checked_interval_ms(interval_ms: int) -> int:
    """Milliseconds between two walks; the default for 0.

    Raises:
        Refusal: INVALID_ARGUMENT.
    """
    if not interval_ms:
        return DEFAULT_PROBE_INTERVAL_MS
    if not MIN_PROBE_INTERVAL_MS <= interval_ms <= MAX_PROBE_INTERVAL_MS:
        raise _wrong(
            f"a probe interval of {_interval_text(interval_ms)} is not possible: use {MIN_PROBE_INTERVAL_MS}ms to"
            f" {MAX_PROBE_INTERVAL_MS // 60_000}m; {DEFAULT_PROBE_INTERVAL_MS // 1000}s is usual"
        )
    return interval_ms


def _interval_text(interval_ms: int) -> str:
    return f"{interval_ms}ms" if interval_ms < 1000 else f"{interval_ms / 1000:g}s"


def checked_capacity(capacity: int) -> int:
    """Routes that a relay carries at most; the default for 0.

    Raises:
        Refusal: INVALID_ARGUMENT.
    """
    if not capacity:
        return DEFAULT_CAPACITY
    if not 1 <= capacity <= MAX_CAPACITY:
        raise _wrong(f"a relay's capacity is 1 to {MAX_CAPACITY} routes, not {capacity}")
    return capacity


def checked_weight(weight: int) -> int:
    """A relay's weight in percent; 100 for 0.

    Raises:
        Refusal: INVALID_ARGUMENT.
    """
    if not weight:
        return 100
    if not 1 <= weight <= MAX_WEIGHT:
        raise _wrong(
            f"a relay's weight is 1 to {MAX_WEIGHT} percent, not {weight}: 100 is usual, 200 makes its score half as"
            " large, which prefers it"
        )
    return weight


def checked_site(site: str) -> str:
    """Where a relay stands; empty for unknown.

    Raises:
        Refusal: INVALID_ARGUMENT.
    """
    if not _SITE.fullmatch(site):
        raise _wrong(f"{site[:80]!r} is no site: use at most 63 characters of a-z, 0-9 and -")
    return site


def _wrong(detail: str) -> Refusal:
    return Refusal(Reason.INVALID_ARGUMENT, detail)
