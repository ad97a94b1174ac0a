"""What goes to a terminal: colour or not, clean text, prose that fits, ages. No imports beyond click, so that help
stays fast."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Any

import click

from fleet.prose import wrapped

_GAP = "  "
# C0, DEL and C1 controls, and the marks that turn the direction of text around: a node's name, label or output must
# not be able to move the cursor, clear the screen or disguise another line.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Styled:
    """Text with a colour; `bold` and `dim` as in `click.style`."""

    text: str
    colour: str | None = None
    bold: bool = False
    dim: bool = False


_STATE_COLOURS: Mapping[str, str] = {
    "ACTIVE": "green",
    "APPROVED": "green",
    "DEGRADED": "yellow",
    "DRAINED": "yellow",
    "DRAINING": "yellow",
    "CANCELLED": "yellow",
    "DRIFT": "magenta",
    "EXPIRED": "yellow",
    "FAILED": "red",
    "HEALTHY": "green",
    "INTERRUPTED": "magenta",
    "ISSUED": "green",
    "LOST": "red",
    "PENDING": "yellow",
    "PREPARED": "cyan",
    "QUARANTINED": "red",
    "QUEUED": "cyan",
    "READY": "green",
    "REFUSED": "red",
    "REJECTED": "red",
    "RETIRED": "yellow",
    "REVOKED": "red",
    "RUNNING": "blue",
    "ACCEPTED": "blue",
    "SENT": "cyan",
    "STARTING": "cyan",
    "STOPPED": "yellow",
    "SUCCEEDED": "green",
    "SUSPENDED": "yellow",
    "UNREACHABLE": "red",
    "USED": "yellow",
    "WITHDRAWN": "yellow",
}


def state_cell(state: str) -> Styled:
    """A state word in its colour: green is well, yellow waits for someone, red went wrong."""
    return Styled(state, _STATE_COLOURS.get(state))


def wants_colour(stream: IO[Any]) -> bool:
    """Whether to colour: only on a terminal, and not when NO_COLOR is set (no-color.org)."""
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    """Text from elsewhere made harmless to a terminal: control characters become visible, line breaks become spaces."""
    if text.isascii() and text.isprintable():
        return text
    return _UNPRINTABLE.sub(lambda found: " " if found.group() in "\t\n\r" else f"\\x{ord(found.group()):02x}", text)


def excerpt(text: str, width: int) -> str:
    """At most `width` columns of `text`, on one line."""
    clean = " ".join(printable(text).split())
    return clean if len(clean) <= width else clean[: max(width - 1, 0)] + "…"


def fields(pairs: Iterable[tuple[str, str | Styled]], *, colour: bool, width: int | None = None) -> str:
    """Lay out one thing as `label  value` lines; a value that is too long for the terminal goes on under itself."""
    shown = list(pairs)
    widest = max((len(label) for label, _ in shown), default=0)
    lines = []
    for label, value in shown:
        cell = value if isinstance(value, Styled) else Styled(value)
        text = wrapped(printable(cell.text), width, indent=widest + len(_GAP))
        label = painted(Styled(label, dim=True), label.ljust(widest), colour=colour)
        lines.append(f"{label}{_GAP}{painted(cell, text, colour=colour)}".rstrip())
    return "\n".join(lines)


def styled(cell: Styled, *, colour: bool) -> str:
    """One piece of text, made printable, in its colour."""
    return painted(cell, printable(cell.text), colour=colour)


def terminal_width(stream: IO[Any]) -> int | None:
    """Columns to fit, or None when the output is not a terminal."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def age(then_ms: int, now_ms: int) -> str:
    """Time since, as `duration` writes it; "-" when it never happened."""
    if not then_ms:
        return "-"
    return duration(max(now_ms - then_ms, 0) / 1000)


def clock_text(at_ms: int) -> str:
    """The time of day here."""
    return time.strftime("%H:%M:%S", time.localtime(at_ms / 1000))


def duration(seconds: float) -> str:
    """A span for people: "1.2ms", "120ms", "3.4s", "3m12s", "5h04m", "9d02h"."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms" if seconds >= 0.01 else f"{seconds * 1000:.1f}ms"
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    for large, small, unit, minor in ((86_400, 3600, "d", "h"), (3600, 60, "h", "m"), (60, 1, "m", "s")):
        if whole >= large:
            return f"{whole // large}{unit}{whole % large // small:02d}{minor}"
    return f"{whole}s"


def counted(number: int, noun: str) -> str:
    """A number of things: "1 node", "3 nodes"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def painted(style: Styled, text: str, *, colour: bool) -> str:
    """`text` in the colour of `style`."""
    if not colour or not (style.colour or style.bold or style.dim):
        return text
    return click.style(text, fg=style.colour, bold=style.bold or None, dim=style.dim or None)
