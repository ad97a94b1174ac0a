"""From which moment on a node that was restored takes people's intents. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from fleet.people import CLOCK_SLACK_MS

_LAST_MS = 253_402_300_799_000  # the year 9999


class ClockBehindError(ValueError):
    """The machine's clock is behind what has happened: nothing can be told by it. Says what to do."""


def intents_after_ms(*, now_ms: int, made_at_ms: int, signed_ms: int) -> int:
    """Intents that were issued up to here may have been used since the backup was made. Unix milliseconds.

    A person's clock may be ahead, and what it signed may have been used at once: so the moment lies as far ahead.

    Args:
        now_ms: the machine's clock.
        made_at_ms: when the backup was made, by the clock of the node.
        signed_ms: the latest time of issue of anything that people had signed until then.

    Raises:
        ClockBehindError: the clock is behind one of these. Further than a person's clock may be, for what was signed.
    """
    if now_ms < max(made_at_ms, signed_ms - CLOCK_SLACK_MS):
        raise ClockBehindError(
            f"this machine's clock says {shown(now_ms)}, but the backup was made at {shown(made_at_ms)}, and the last"
            f" thing in it that people signed at {shown(signed_ms)}: set the clock, then restore again. By a clock that"
            " is behind, the node would take intents that it has used"
        )
    return max(now_ms, signed_ms) + CLOCK_SLACK_MS


def shown(at_ms: int) -> str:
    """A moment as people read it."""
    return datetime.fromtimestamp(min(at_ms, _LAST_MS) / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
