"""Following: what other replicas record of commands that are watched here.

A watcher is told at once of what this replica commits (`feed`). Of the rest it learns by asking: each second, and as
soon as another replica hints at it, one read looks where the open commands of all watched issues stand, and each
watcher compares that with what it told last. The commands of an issue are all there from the start and end one by one,
so it is asked for fewer and fewer. While nobody watches nothing is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from fleet.errors import Refusal
from fleet.logs import get_logger
from fleet_server.commands import history_store
from fleet_server.commands.changes import Announcer
from fleet_server.commands.feed import Marks
from fleet_server.commands.interest import EVERY_ISSUE, REPEAT_S
from fleet_server.commands.ports import Rooms
from fleet_server.commands.store import Connection, Key
from fleet_server.database.wakeup import Bell

log = get_logger(__name__)

INTERVAL_S = 1.0
_HINT_PAUSE_S = 0.05
_SETTLE_S = 0.1
"""So long after others were told of a watch it is looked again: nobody hinted at what was recorded before that."""
_FEW = 1_024


class Following:
    """See the module's text. Belongs to the event loop."""

    def __init__(self, rooms: Rooms, announcer: Announcer) -> None:
        self._rooms = rooms
        self._feed = announcer.feed
        self._interest = announcer.interest
        self._everything = announcer.everything
        self._bell = Bell(rooms.clock)
        self._hinted: set[str] = set()
        self._marks: dict[str, Marks] = {}
        self._due_s = 0.0
        self._again = False
        rooms.wakeup.on_hint("issue", self._issues_hinted, pause_s=_HINT_PAUSE_S)

    async def run(self) -> None:
        """Look until cancelled. Where no other replica can be there is nothing to do."""
        said_s = 0.0
        while self._rooms.shared:
            now_s = self._rooms.clock.monotonic()
            await self._bell.wait(max(0.0, self._due_s - now_s))
            now_s = self._rooms.clock.monotonic()
            everything, again = now_s >= self._due_s, self._again
            if everything:
                self._due_s, self._again = now_s + (_SETTLE_S if again else INTERVAL_S), False
            if again or now_s - said_s >= REPEAT_S:
                said_s = now_s
                self._interest.forget()
                self._interest.say(self._feed.issues)
            try:
                await self.look(None if everything else self._hinted)
            except Refusal as refusal:
                log.debug("watch_put_off", reason=str(refusal.reason))

    async def began(self, issue_id: str) -> None:
        """Somebody watches an issue, or '' for all commands, from now on: called before what is there is read.

        Raises:
            Refusal: the database is away.
        """
        if not self._rooms.shared:
            return
        self._interest.say([issue_id])
        asyncio.get_running_loop().call_later(_SETTLE_S, self._issues_hinted, frozenset([issue_id or EVERY_ISSUE]))
        if not issue_id:
            await self._everything.begin(self._rooms)

    async def look(self, issue_ids: Iterable[str] | None = None) -> None:
        """One round, of some issues or of all that are watched."""
        watched = self._feed.issues
        named = set(watched if issue_ids is None else issue_ids)
        self._hinted = set()
        if "" not in watched:
            self._everything.end()
        elif issue_ids is None or EVERY_ISSUE in named:
            await self._everything.look(self._rooms, self._feed)
        self._marks = {issue_id: marks for issue_id, marks in self._marks.items() if issue_id in watched}
        asked = {issue_id: self._marks.get(issue_id) for issue_id in watched if issue_id and issue_id in named}
        if not asked:
            return
        found = await self._rooms.database.read(lambda conn: _marks(conn, asked))
        for issue_id, marks in found.items():
            if marks != self._marks.get(issue_id):
                self._marks[issue_id] = marks
                self._feed.look_nowait(issue_id, marks)

    def _issues_hinted(self, issue_ids: frozenset[str] | None) -> None:
        if issue_ids is None:  # others may not have heard what is watched here
            self._due_s, self._again = 0.0, True
        else:
            self._hinted |= issue_ids & {issue_id or EVERY_ISSUE for issue_id in self._feed.issues}
        self._bell.ring_nowait()


def _marks(conn: Connection, asked: dict[str, Marks | None]) -> dict[str, dict[Key, int]]:
    """Where the open commands of issues stand; only those that were open the last time, where they are few."""
    found: dict[str, dict[Key, int]] = {}
    issue_of: dict[Key, str] = {}
    for issue_id, before in asked.items():
        if before is None or len(before) > _FEW:
            found[issue_id] = history_store.open_marks(conn, issue_id)
        else:
            found[issue_id] = {}
            issue_of.update(dict.fromkeys(before, issue_id))
    for key, mark in history_store.marks_of(conn, list(issue_of)):
        found[issue_of[key]][key] = mark
    return found
