"""Where chains ended by what was signed, for a process that remembers nothing yet.

Mental model
    Which checkpoint is the newest stands under a MAC, and each names the SHA-256 of the one before: so nothing of them
    can be changed unseen, and no signature has to be looked at. One in 1024 names every chain, so no more are read.
    Who puts back the end of a chain has to put back the newest checkpoint with it, and so all of the audit: whoever
    remembers a later one sees that.
    A person who takes the audit as it stands ends what the checkpoints before vouch for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from google.protobuf.message import DecodeError

from fleet.v1 import trust_pb2
from fleet_server.audit import rules, store
from fleet_server.audit.heads import TamperedHeadError
from fleet_server.audit.rules import Head
from fleet_server.audit.store import NewestRow
from fleet_server.database.engine import Connection

_PAGE = 64


def signed_heads(conn: Connection, newest: NewestRow) -> Iterator[Head]:
    """Heads that were signed, those of the newest checkpoint first, until every chain was named.

    Args:
        newest: its MAC was checked.

    Raises:
        TamperedHeadError: a checkpoint was changed or removed, so it cannot be told.
    """
    number, sha256 = newest.number, newest.sha256
    for found, raw in checkpoints_back(conn, newest.number, max(newest.since, 1)):
        statement = _statement(raw, sha256) if found == number else None
        if statement is None:
            break
        for head in statement.heads:
            yield Head(head.writer, head.number, head.hash)
        number, sha256 = number - 1, statement.previous_sha256
        if rules.is_whole(found):
            return
    if number >= max(newest.since, 1):
        raise TamperedHeadError(f"checkpoint {number}, which may vouch for it, was changed or removed")


def checkpoints_back(conn: Connection, last: int, first: int) -> Iterator[tuple[int, bytes]]:
    """Number and serialised `Signed` of checkpoints from `last` back to `first`."""
    while page := store.checkpoints_down(conn, last, first, _PAGE):
        yield from page
        last = page[-1][0] - 1


def _statement(raw: bytes, sha256: bytes) -> trust_pb2.AuditCheckpointStatement | None:
    try:
        said = trust_pb2.Signed.FromString(raw).statement
        return trust_pb2.AuditCheckpointStatement.FromString(said) if hashlib.sha256(said).digest() == sha256 else None
    except DecodeError:
        return None
