"""Everywhere: what other replicas record, for who watches every command and not one issue.

While anybody does, each round reads all open commands, and the commands of issues that were made a moment ago, and
compares: what is new, moved, or is open no more, is told. What this replica committed itself was told at once, and is
noted (`note`), so that it is not told again.
"""

from __future__ import annotations

from typing import NamedTuple

from fleet_server.commands import history_store, rules
from fleet_server.commands.feed import ChangeFeed
from fleet_server.commands.history_store import FoundRow
from fleet_server.commands.ports import Rooms
from fleet_server.commands.store import Connection, Key

WINDOW_MS = 30_000
"""So long ago an issue may have been made, by the clock of the replica that made it, and be news."""
_MAX_OPEN = 50_000
"""Open commands that are followed, those whose time passes first; of further ones those are told that this replica
commits."""
_FAR_MS = 2**63 - 1


class _Told(NamedTuple):
    """What was told last of an open command, and its place among all open ones; behind all others where that is not
    known."""

    mark: int
    not_after_ms: int


class _Found(NamedTuple):
    open: list[FoundRow]
    issues: dict[str, int]
    recent: list[FoundRow]


class Everywhere:
    """What was told last of each open command; nothing while nobody watches. Belongs to the event loop."""

    def __init__(self) -> None:
        self._told: dict[Key, _Told] | None = None
        self._issues: dict[str, int] = {}
        self._touched: set[Key] = set()

    @property
    def followed(self) -> bool:
        """Whether anybody watches."""
        return self._told is not None

    def note(self, key: Key, state: int) -> None:
        """Watchers were told of this state by the commit that made it."""
        if self._told is None:
            return
        self._touched.add(key)
        if state >= rules.SUCCEEDED:
            self._told.pop(key, None)
        else:
            known = self._told.get(key)
            self._told[key] = _Told(history_store.mark(state, ""), _FAR_MS if known is None else known.not_after_ms)

    async def begin(self, rooms: Rooms) -> None:
        """Somebody watches: what there is now is no news."""
        if self._told is not None:
            return
        found = await self._read(rooms)
        if self._told is None:  # or somebody began meanwhile, and is owed what came since
            self._told = {(row.node_id, row.seq): _told(row) for row in found.open}
            self._issues = found.issues

    def end(self) -> None:
        """Nobody does any more."""
        self._told = None
        self._issues = {}

    async def look(self, rooms: Rooms, feed: ChangeFeed) -> None:
        """Tell what changed elsewhere since the last round."""
        found = await self._read(rooms)
        told = self._told
        if told is None:
            return
        self._issues = found.issues
        now = {(row.node_id, row.seq): row for row in (*found.recent, *found.open)}
        for key, row in now.items():
            if key in self._touched:
                continue
            known = told.get(key)
            if row.state < rules.SUCCEEDED:
                told[key] = _told(row)
            if known is None or known.mark != row.mark:
                self._tell(feed, told, key, row.state)
        end = _place(found.open[-1]) if len(found.open) >= _MAX_OPEN else None
        for key, known in list(told.items()):
            if key in now or key in self._touched:
                continue
            if end is None or (known.not_after_ms, *key) < end:
                self._tell(feed, told, key, rules.SUCCEEDED)
            else:
                del told[key]  # it may be open still, behind those that were read, and is followed no more

    def _tell(self, feed: ChangeFeed, told: dict[Key, _Told], key: Key, state: int) -> None:
        if state >= rules.SUCCEEDED:
            told.pop(key, None)
        feed.publish_nowait("", {key: None}, passing=state < rules.SUCCEEDED)

    async def _read(self, rooms: Rooms) -> _Found:
        self._touched = set()
        since_ms, known = rooms.clock.now_ms() - WINDOW_MS, self._issues

        def query(conn: Connection) -> _Found:
            issues = history_store.issues_since(conn, since_ms)
            news = [issue_id for issue_id in issues if issue_id not in known]
            return _Found(history_store.found_open(conn, _MAX_OPEN), issues, history_store.found_of(conn, news))

        return await rooms.database.read(query)


def _told(row: FoundRow) -> _Told:
    return _Told(row.mark, row.not_after_ms)


def _place(row: FoundRow) -> tuple[int, str, int]:
    return row.not_after_ms, row.node_id, row.seq
