"""SQL over `commands`, the hottest table; both dialects read the same text."""

# Every part of a statement is a constant of this module; values only ever travel as parameters.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from fleet_server.commands.rules import DECLARED_REASONS, QUARANTINED, QUEUED, SUCCEEDED, Standing
from fleet_server.commands.run_store import of_issue, of_open_runs
from fleet_server.database.bulk import EachUpdate, insert_many
from fleet_server.database.engine import for_update, for_update_of_free
from fleet_server.database.statements import execute, execute_many, fetch

__all__ = ["Connection"]

Key = tuple[str, int]
"""(node_id, seq): primary key of a command."""

MAX_KEYS = 256
_LOOKED_AT = 32
# While older servers go on, there is an index of all open commands, and PostgreSQL would look for one node's in it: by
# statistics of a quiet hour it is empty. Of a sum it cannot tell that it has to do with that index.
_STATE = "(state + 0)"
_DECLARED = ", ".join(f"'{reason}'" for reason in DECLARED_REASONS)
_KEY = "t.node_id = v.node_id AND t.seq = v.seq"


class SeqTakenError(Exception):
    """A row stands where a new command belongs."""


class AuthorityColumns(Protocol):
    """Columns that the MAC covers, and the MAC."""

    @property
    def command_id(self) -> bytes: ...
    @property
    def node_id(self) -> str: ...
    @property
    def seq(self) -> int: ...
    @property
    def issue_id(self) -> str: ...
    @property
    def spec_no(self) -> int: ...
    @property
    def not_after_ms(self) -> int: ...
    @property
    def mac(self) -> bytes: ...
    @property
    def cancel_requested_by(self) -> str: ...


class NewRow(NamedTuple):
    """A command as it is inserted: QUEUED, or SENT when its node's stream waits for it."""

    node_id: str
    seq: int
    command_id: bytes
    issue_id: str
    spec_no: int
    not_after_ms: int
    mac: bytes
    state: int
    key_id: bytes | None
    sent_at_ms: int


class OpenRow(NamedTuple):
    """A command's authority and state, for signing, cancelling and sweeping."""

    node_id: str
    seq: int
    command_id: bytes
    issue_id: str
    spec_no: int
    not_after_ms: int
    mac: bytes
    state: int
    cancel_requested_by: str


class StandingRow(NamedTuple):
    """Where a command stands, for a report, and what else is shown of it."""

    node_id: str
    seq: int
    command_id: bytes
    issue_id: str
    standing: Standing
    spec_no: int
    not_after_ms: int
    cancel_requested_by: str
    key_id: bytes | None
    sent_at_ms: int
    mac: bytes


_NEW_KINDS = ("text", "bigint", "bytea", "text", "integer", "bigint", "bytea", "integer", "bytea", "bigint")
_NEW = dict(zip(NewRow._fields, _NEW_KINDS, strict=True))
_OPEN = ", ".join(OpenRow._fields)
_OPEN_C = ", ".join(f"c.{column}" for column in OpenRow._fields)
_STANDING_VALUES = {
    "state": "integer",
    "accepted_at_ms": "bigint",
    "started_at_ms": "bigint",
    "finished_at_ms": "bigint",
    "output": "bytea",
    "output_truncated": "integer",
    "reason": "text",
    "error": "text",
    "node_id": "text",
    "seq": "bigint",
}
_SET_STANDING = ", ".join(f"{column} = v.{column}" for column in Standing._fields)
_PROGRESS = EachUpdate(
    "commands",
    {"state": "integer", "accepted_at_ms": "bigint", "started_at_ms": "bigint", "node_id": "text", "seq": "bigint"},
    "state = v.state, accepted_at_ms = v.accepted_at_ms, started_at_ms = v.started_at_ms",
    _KEY,
    "t.state < 5",
)
_ANSWERS = EachUpdate("commands", _STANDING_VALUES, _SET_STANDING, _KEY, "t.state = 2 AND t.cancel_requested_by = ''")
_CANCELS = EachUpdate(
    "commands",
    {"cancel_requested_by": "text", "mac": "bytea", "node_id": "text", "seq": "bigint"},
    "cancel_requested_by = v.cancel_requested_by, mac = v.mac",
    _KEY,
)
_RESULTS = EachUpdate(
    "commands",
    _STANDING_VALUES,
    _SET_STANDING,
    _KEY,
    f"t.state < 5 OR (t.state = 10 AND t.reason IN ({_DECLARED}))",
)
_STANDING = (
    "node_id, seq, command_id, issue_id, state, accepted_at_ms, started_at_ms, finished_at_ms, reason,"  # no output
    " spec_no, not_after_ms, cancel_requested_by, key_id, sent_at_ms, mac"
)


# -- issue -----------------------------------------------------------------------------------------
def insert_commands(conn: Connection, rows: Sequence[NewRow]) -> None:
    """Add commands.

    Raises:
        SeqTakenError: a seq is taken; the transaction is of no use any more.
    """
    try:
        insert_many(conn, "commands", _NEW, list(map(_bindable, rows)))
    except IntegrityError:
        raise SeqTakenError from None


def keys_of_issue(conn: Connection, issue_id: str) -> list[tuple[str, int, bytes]]:
    """(node_id, seq, command_id) of an issue's commands, by node and seq."""
    text = f"SELECT c.node_id, c.seq, c.command_id FROM {of_issue(conn)} ORDER BY r.node_id, c.seq"
    return [(node_id, seq, command_id) for node_id, seq, command_id in fetch(conn, text, (issue_id,))]


def rows_from(conn: Connection, node_id: str, seq: int) -> list[OpenRow]:
    """Commands of a node from a seq on."""
    text = f"SELECT {_OPEN} FROM commands WHERE node_id = ? AND seq >= ? ORDER BY seq"
    return list(map(OpenRow._make, fetch(conn, text, (node_id, seq))))


def delete_command(conn: Connection, key: Key) -> None:
    """Remove one row."""
    execute(conn, "DELETE FROM commands WHERE node_id = ? AND seq = ?", key)


# -- send ------------------------------------------------------------------------------------------
def pending(conn: Connection, node_id: str, after_seq: int, asked_again_through: int, limit: int) -> list[OpenRow]:
    """Commands to send, in seq order, locked: unanswered ones, and any open one up to `asked_again_through`."""
    text = (
        f"SELECT {_OPEN} FROM commands WHERE node_id = ? AND seq > ?"
        f" AND ({_STATE} <= 2 OR ({_STATE} < 5 AND seq <= ?)) ORDER BY seq LIMIT ?{for_update(conn)}"
    )
    return list(map(OpenRow._make, fetch(conn, text, (node_id, after_seq, asked_again_through, limit))))


def with_queued(conn: Connection, node_ids: Iterable[str]) -> list[str]:
    """Those of a few nodes that have commands which were never sent. What waits is at the end of a node's history, so
    each is read from there."""
    text = "SELECT state FROM commands WHERE node_id = ? ORDER BY seq DESC LIMIT ?"
    return [
        node_id for node_id in node_ids if any(state == QUEUED for (state,) in fetch(conn, text, (node_id, _LOOKED_AT)))
    ]


def mark_sent(conn: Connection, node_id: str, first: int, last: int, key_id: bytes | None, now_ms: int) -> None:
    """Everything unanswered in this range of seqs is being signed."""
    text = (
        "UPDATE commands SET state = 2, key_id = ?, sent_at_ms = CASE WHEN sent_at_ms = 0 THEN ? ELSE sent_at_ms END"
        f" WHERE node_id = ? AND seq >= ? AND seq <= ? AND {_STATE} <= 2"
    )
    execute(conn, text, (key_id, now_ms, node_id, first, last))


def mark_queued_sent(conn: Connection, node_id: str, first: int, last: int, key_id: bytes | None, now_ms: int) -> int:
    """The same for what was never signed before; how many of this range of seqs that were."""
    text = (
        "UPDATE commands SET state = 2, key_id = ?, sent_at_ms = ?"
        f" WHERE node_id = ? AND seq >= ? AND seq <= ? AND {_STATE} = 1"
    )
    return execute(conn, text, (key_id, now_ms, node_id, first, last))


def lowest_open(conn: Connection, node_id: str, since: int, through: int) -> int | None:
    """Lowest open seq of a node from `since` on, up to `through`. All before the first that is open is read."""
    text = f"SELECT MIN(seq) FROM commands WHERE node_id = ? AND seq >= ? AND seq <= ? AND {_STATE} < 5"
    [(lowest,)] = fetch(conn, text, (node_id, since, through))
    return None if lowest is None else int(lowest)


def answered_above(conn: Connection, node_id: str, seq: int) -> list[StandingRow]:
    """Open commands above `seq` that the node once said it had."""
    text = f"SELECT {_STANDING} FROM commands WHERE node_id = ? AND seq > ? AND {_STATE} IN (3, 4)"
    return list(map(_standing, fetch(conn, text, (node_id, seq))))


def signed_open(conn: Connection, node_id: str) -> list[StandingRow]:
    """Commands of a node that were signed and have no result, locked."""
    text = f"SELECT c.seq FROM {of_open_runs(conn, of_node=True)} AND c.state > 1"
    seqs = [seq for (seq,) in fetch(conn, text, (node_id,))]
    found = standings_of_node(conn, node_id, seqs)
    return [row for row in found if QUEUED < row.standing.state < SUCCEEDED]


def highest_signed(conn: Connection, node_id: str) -> int:
    """Highest seq of a node that was ever signed; 0 when none was."""
    [(highest,)] = fetch(conn, "SELECT MAX(seq) FROM commands WHERE node_id = ? AND sent_at_ms > 0", (node_id,))
    return int(highest or 0)


def quarantine(conn: Connection, keys: Sequence[Key], error: str, now_ms: int) -> None:
    """Mark rows whose authority does not verify."""
    text = "UPDATE commands SET state = ?, finished_at_ms = ?, error = ? WHERE node_id = ? AND seq = ?"
    execute_many(conn, text, [(QUARANTINED, now_ms, error, *key) for key in keys])


# -- report ----------------------------------------------------------------------------------------
def standings(conn: Connection, command_ids: Iterable[bytes]) -> list[StandingRow]:
    """Where commands stand, locked. Outputs are left out."""
    found: list[StandingRow] = []
    for chunk in padded(list(command_ids)):
        text = f"SELECT {_STANDING} FROM commands WHERE command_id IN ({marks(chunk)}){for_update(conn)}"
        found.extend(map(_standing, fetch(conn, text, chunk)))
    return found


def standings_of_node(conn: Connection, node_id: str, seqs: Sequence[int]) -> list[StandingRow]:
    """The same by seq: cheaper where one node has many."""
    found: list[StandingRow] = []
    for chunk in padded(seqs):
        text = f"SELECT {_STANDING} FROM commands WHERE node_id = ? AND seq IN ({marks(chunk)}){for_update(conn)}"
        found.extend(map(_standing, fetch(conn, text, (node_id, *chunk))))
    return found


def save_progress(conn: Connection, changes: Sequence[tuple[Key, Standing]]) -> None:
    """Write states that are not final."""
    _PROGRESS.run(conn, [standing[:3] + key for key, standing in changes])


def save_answers(conn: Connection, changes: Sequence[tuple[Key, Standing]]) -> int:
    """Write where commands stand that were SENT and not asked to be cancelled; how many of them still were."""
    return _ANSWERS.run(conn, [standing + key for key, standing in changes])


def save_results(conn: Connection, changes: Sequence[tuple[Key, Standing]]) -> None:
    """Write final states, where none stands that may not be replaced."""
    _RESULTS.run(conn, [standing + key for key, standing in changes])


# -- cancel ----------------------------------------------------------------------------------------
def open_by_ids(conn: Connection, command_ids: Sequence[bytes]) -> list[OpenRow]:
    """Commands by id, locked."""
    found: list[OpenRow] = []
    for chunk in padded(command_ids):
        text = f"SELECT {_OPEN} FROM commands WHERE command_id IN ({marks(chunk)}){for_update(conn)}"
        found.extend(map(OpenRow._make, fetch(conn, text, chunk)))
    return found


def open_of_issue(conn: Connection, issue_id: str) -> list[OpenRow]:
    """Commands of an issue that have not ended, locked."""
    text = f"SELECT {_OPEN_C} FROM {of_issue(conn, open_only=True)}{for_update(conn)}"
    return list(map(OpenRow._make, fetch(conn, text, (issue_id,))))


def save_cancel_request(conn: Connection, changes: Sequence[tuple[Key, str, bytes]]) -> None:
    """Write who asked for a cancel, empty once it is answered, with the row's new MAC."""
    _CANCELS.run(conn, [(actor, mac, *key) for key, actor, mac in changes])


def open_by_keys(conn: Connection, node_id: str, seqs: Sequence[int]) -> list[OpenRow]:
    """Open commands of a node among these seqs."""
    found: list[OpenRow] = []
    for chunk in padded(seqs):
        where = f"node_id = ? AND seq IN ({marks(chunk)}) AND {_STATE} < 5"
        text = f"SELECT {_OPEN} FROM commands WHERE {where} ORDER BY seq"
        found.extend(map(OpenRow._make, fetch(conn, text, (node_id, *chunk))))
    return found


# -- sweep -----------------------------------------------------------------------------------------
def unsigned_past(conn: Connection, now_ms: int, limit: int) -> list[OpenRow]:
    """Commands that were never signed and whose time has passed, locked; without those that somebody is at."""
    found = _free_past(conn, _OPEN, "= 1", now_ms, limit)
    return list(map(OpenRow._make, found))


def signed_past(conn: Connection, before_ms: int, limit: int) -> list[StandingRow]:
    """Signed commands without a result whose time passed before `before_ms`, locked; without those that somebody is
    at."""
    found = _free_past(conn, _STANDING, "IN (2, 3, 4)", before_ms, limit)
    return list(map(_standing, found))


def _free_past(conn: Connection, columns: str, states: str, before_ms: int, limit: int) -> Iterator[tuple[Any, ...]]:
    # Found first, then locked: a lock upon a join takes all that the join reads.
    text = (
        f"SELECT c.command_id FROM {of_open_runs(conn, due=True)} AND c.state {states} AND c.not_after_ms < ? LIMIT ?"
    )
    command_ids = [command_id for (command_id,) in fetch(conn, text, (before_ms, before_ms, limit))]
    for chunk in padded(command_ids):
        where = f"command_id IN ({marks(chunk)}) AND {_STATE} {states}"
        yield from fetch(conn, f"SELECT {columns} FROM commands WHERE {where}{for_update_of_free(conn)}", chunk)


def count_open_of(conn: Connection, node_id: str, since: int) -> int:
    """Open commands of one node from `since` on."""
    text = f"SELECT COUNT(*) FROM commands WHERE node_id = ? AND seq >= ? AND {_STATE} < 5"
    [(count,)] = fetch(conn, text, (node_id, since))
    return int(count)


def _bindable(row: NewRow) -> Sequence[Any]:
    """sqlite3 looks for an adapter of every bytes object that it binds, in vain; a bytearray it takes as it is."""
    node_id, seq, command_id, issue_id, spec_no, not_after_ms, mac, state, key_id, sent_at_ms = row
    return (
        node_id,
        seq,
        bytearray(command_id),
        issue_id,
        spec_no,
        not_after_ms,
        bytearray(mac),
        state,
        key_id,
        sent_at_ms,
    )


def _standing(row: Any) -> StandingRow:
    standing = Standing._make((*row[4:8], None, 0, row[8], ""))
    return StandingRow._make((*row[:4], standing, *row[9:]))


T = TypeVar("T")


def padded(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Chunks whose lengths are powers of two, the last item repeated: few distinct statements, each prepared once."""
    for start in range(0, len(items), MAX_KEYS):
        chunk = list(items[start : start + MAX_KEYS])
        size = 1 << (len(chunk) - 1).bit_length()
        yield chunk + chunk[-1:] * (size - len(chunk))


def marks(items: Sequence[object]) -> str:
    """Placeholders for as many values."""
    return ", ".join("?" * len(items))
