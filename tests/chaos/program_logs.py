"""What programs logged that they should not have. Pure.

Every exception to the rule stands here with its reason: a line that a fault of the schedule brings about, that says
what is true, and about which nobody has to do anything once the fault is over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Allowed:
    """A line that may be there.

    Args:
        event: its event.
        holding: text that stands somewhere in the line; empty for any.
        because: why it is no defect.
    """

    event: str
    holding: str
    because: str


ALLOWED: tuple[Allowed, ...] = ()


def findings(name: str, lines: Iterable[str]) -> Iterator[str]:
    """Lines of one program's log that no allowance covers, shortened.

    Args:
        name: of the program, for the text.
        lines: as printed: JSON, or what is printed around it.
    """
    for line in lines:
        entry = _parsed(line)
        if _is_bad(line, entry) and not any(_covers(allowed, line, entry) for allowed in ALLOWED):
            yield f"{name}: {line.strip()[:2000]}"


def _is_bad(line: str, entry: dict[str, Any] | None) -> bool:
    if entry is None:
        return "Traceback (most recent call last)" in line
    return entry.get("level") in ("error", "critical") or "Traceback (most recent call last)" in line


def _covers(allowed: Allowed, line: str, entry: dict[str, Any] | None) -> bool:
    return entry is not None and entry.get("event") == allowed.event and allowed.holding in line


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
