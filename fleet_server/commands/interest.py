"""Which issues are watched on other replicas, so that a replica which records results tells nobody in vain.

A replica whose operators watch an issue says `watch:<issue>`, and again every few seconds; who hears it says
`issue:<issue>` behind each commit that changes a command of it. Neither is believed: the one has hints sent for a
while, the other has the watched issue read. While nobody elsewhere watches, a commit costs one look at an empty dict.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from fleet.clock import Clock
from fleet_server.database.wakeup import Wakeup

EVERY_ISSUE = "all"
"""Stands for the issue id '' of who watches every command."""
REPEAT_S = 5.0
_BELIEVED_S = 3 * REPEAT_S
_MAX_ISSUES = 4_096
_MAX_SAID = 512
_PAUSE_S = 0.01


class Interest:
    """Belongs to the event loop."""

    def __init__(self, wakeup: Wakeup, clock: Clock) -> None:
        self._wakeup = wakeup
        self._clock = clock
        self._until_s: dict[str, float] = {}
        wakeup.on_hint("watch", self._heard, pause_s=_PAUSE_S)

    @property
    def any(self) -> bool:
        """Whether anybody elsewhere watches anything."""
        return bool(self._until_s)

    def changed(self, issue_ids: Collection[str]) -> None:
        """Commands of these issues were changed here, and committed."""
        if not self._until_s:
            return
        now_s = self._clock.monotonic()
        told = [issue_id for issue_id in (*issue_ids, EVERY_ISSUE) if self._until_s.get(issue_id, 0.0) > now_s]
        self._wakeup.tell_others_nowait([f"issue:{issue_id}" for issue_id in told])

    def say(self, issue_ids: Iterable[str]) -> None:
        """These are watched here; '' stands for all commands."""
        said = [f"watch:{issue_id or EVERY_ISSUE}" for issue_id in issue_ids]
        self._wakeup.tell_others_nowait(said[:_MAX_SAID])

    def forget(self) -> None:
        """Drop what nobody said again."""
        now_s = self._clock.monotonic()
        for issue_id in [issue_id for issue_id, until_s in self._until_s.items() if until_s <= now_s]:
            del self._until_s[issue_id]

    def _heard(self, issue_ids: frozenset[str] | None) -> None:
        until_s = self._clock.monotonic() + _BELIEVED_S
        for issue_id in issue_ids or ():  # who watches what was lost says it again
            if issue_id in self._until_s or len(self._until_s) < _MAX_ISSUES:
                self._until_s[issue_id] = until_s
