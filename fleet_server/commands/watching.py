"""Watch commands: all of an issue as they stand, then those that change, until the last has ended.

What this replica commits comes with its rows, and mostly needs no read. What other replicas record comes as a look at
where the issue's open commands stand: whatever is not as it was told last is read and told.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial

from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2
from fleet_server.commands import history_store, issue_store, rules
from fleet_server.commands.changes import Announcer
from fleet_server.commands.feed import Marks, Subscription
from fleet_server.commands.following import Following
from fleet_server.commands.history_store import FullRow
from fleet_server.commands.ports import Rooms
from fleet_server.commands.queries import Queries, name_impossible
from fleet_server.commands.store import Connection, Key

_PAGE = 1000
_ANSWER_BYTES = 1024 * 1024
_NEVER_TOLD = -1

Told = dict[Key, int]
"""Open commands of the issue, and how each was told last (`history_store.mark`)."""


class Watching:
    """Use case `watch`."""

    def __init__(
        self, rooms: Rooms, announcer: Announcer, queries: Queries, following: Following, retention_s: int
    ) -> None:
        self._rooms = rooms
        self._feed = announcer.feed
        self._queries = queries
        self._following = following
        self._retention_s = retention_s

    async def watch(self, request: admin_pb2.WatchCommandsRequest) -> AsyncIterator[admin_pb2.WatchCommandsResponse]:
        """See `CommandService.watch`."""
        subscription = self._feed.subscribe(request.issue_id)  # before the first read: no change falls in between
        try:
            await self._following.began(request.issue_id)
            told: Told = {}
            if request.issue_id:
                async for answer in self._snapshot(request, told):
                    yield answer
            while not (request.issue_id and request.until_final and not told):
                await subscription.wait_changed()
                marks = subscription.take_marks()
                async for answer in self._changed(request, subscription, told):
                    yield answer
                if marks is not None:
                    async for answer in self._elsewhere(request, marks, told):
                        yield answer
        finally:
            self._feed.unsubscribe(subscription)

    async def _changed(
        self, request: admin_pb2.WatchCommandsRequest, subscription: Subscription, told: Told
    ) -> AsyncIterator[admin_pb2.WatchCommandsResponse]:
        changed, overrun = subscription.take()
        if overrun and request.issue_id:
            async for answer in self._snapshot(request, told):
                yield answer
            return
        keys = list(changed)
        for start in range(0, len(keys), _PAGE):
            page = keys[start : start + _PAGE]
            views = self._queries.from_memory([changed[key] for key in page], brief=request.brief)
            if views is None:
                views = await self._queries.by_keys(page, brief=request.brief)
            for answer in _answers(request, views, told):
                yield answer

    async def _elsewhere(
        self, request: admin_pb2.WatchCommandsRequest, marks: Marks, told: Told
    ) -> AsyncIterator[admin_pb2.WatchCommandsResponse]:
        """What other replicas recorded: commands that do not stand as they were told."""
        moved = [key for key, mark in told.items() if marks.get(key) != mark]
        for start in range(0, len(moved), _PAGE):
            page = moved[start : start + _PAGE]
            views = await self._queries.by_keys(page, brief=request.brief)
            news = [view for view in views if told.get(_key(view)) != _mark(view)]
            for answer in _answers(request, news, told):
                yield answer
            for key in set(page) - {_key(view) for view in views}:
                told.pop(key, None)  # taken out of the database: nothing more is to come of it

    async def _snapshot(
        self, request: admin_pb2.WatchCommandsRequest, told: Told
    ) -> AsyncIterator[admin_pb2.WatchCommandsResponse]:
        if not await self._rooms.database.read(lambda conn: issue_store.issue_exists(conn, request.issue_id)):
            raise Refusal(
                Reason.NOT_FOUND,
                f"there is no issue {request.issue_id[:64]!r}: see `fleetctl commands list`; one that ended"
                f" {self._retention_s // 86_400} days ago is forgotten",
            )
        told.clear()
        await self._rooms.database.read(lambda conn: name_impossible(conn, request.issue_id))
        # So that `open` is right in the first answer already, whatever page it is.
        open_keys = await self._rooms.database.read(lambda conn: history_store.open_keys(conn, request.issue_id))
        told.update(dict.fromkeys(open_keys, _NEVER_TOLD))
        after: Key = ("", 0)
        while True:
            rows, views = await self._rooms.database.read(partial(self._page, request, after))
            for answer in _answers(request, views, told):
                yield answer
            if len(rows) < _PAGE:
                break
            after = (rows[-1].node_id, rows[-1].seq)

    def _page(
        self, request: admin_pb2.WatchCommandsRequest, after: Key, conn: Connection
    ) -> tuple[list[FullRow], list[admin_pb2.CommandView]]:
        rows = history_store.page_of_issue(conn, request.issue_id, after=after, limit=_PAGE, brief=request.brief)
        return rows, self._queries.views(conn, rows, brief=request.brief)


def _key(view: admin_pb2.CommandView) -> Key:
    return view.node_id, view.monotonic_seq


def _mark(view: admin_pb2.CommandView) -> int:
    return history_store.mark(view.state, "asked" if view.cancel_requested else "")


def _answers(
    request: admin_pb2.WatchCommandsRequest, views: Sequence[admin_pb2.CommandView], told: Told
) -> list[admin_pb2.WatchCommandsResponse]:
    """Answers of at most a mebibyte each, with the number of open commands as of each."""
    answers: list[admin_pb2.WatchCommandsResponse] = []
    batch: list[admin_pb2.CommandView] = []
    size = 0
    for view in views:
        if request.issue_id:
            if rules.is_final(view.state):
                told.pop(_key(view), None)
            else:
                told[_key(view)] = _mark(view)
        added = len(view.output) + len(view.arguments) + len(view.error) + 256
        if batch and size + added > _ANSWER_BYTES:
            answers.append(admin_pb2.WatchCommandsResponse(commands=batch))
            batch, size = [], 0
        batch.append(view)
        size += added
    if batch:
        answers.append(admin_pb2.WatchCommandsResponse(commands=batch))
    for answer in answers:
        answer.open = len(told)
    return answers
