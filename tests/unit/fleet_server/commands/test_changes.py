"""What watchers are told of one commit, in its order."""

from typing import Any, cast
from unittest.mock import MagicMock

from fleet_server.commands import rules
from fleet_server.commands.changes import Announcer, Change
from fleet_server.commands.store import NewRow
from fleet_server.database.writer import Transaction


async def test_what_was_issued_and_sent_in_one_commit_is_not_told_as_queued() -> None:
    announcer = Announcer(MagicMock())
    watcher = announcer.feed.subscribe("")
    blank = NewRow(**dict.fromkeys(NewRow._fields, cast(Any, 0)))
    row = blank._replace(node_id="n1", seq=7, state=rules.QUEUED)
    run = MagicMock(node_id="n1", rows=[row])
    tx = Transaction(MagicMock())
    announcer.announce_issued(tx, "is_1", [run], [])
    announcer.announce(tx, [Change(("n1", 7), "is_1", rules.QUEUED, rules.SENT)])
    for effect in (*tx.first_effects, *tx.effects):
        effect()
    told, _ = watcher.take()
    assert told == {("n1", 7): None}, "to be read, for it has moved on"
