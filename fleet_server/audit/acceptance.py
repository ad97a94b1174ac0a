"""Take the audit as it stands for what was written: a person restored the database, and says so.

What stands is not made good by that: a reader goes on to find rows that differ from what was signed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from fleet.audit_chain import CheckpointMark
from fleet_server.audit import store
from fleet_server.audit.checkpoints import Checkpoints, checkpoint_number, checkpoint_sha256
from fleet_server.audit.heads import Heads, TamperedHeadError
from fleet_server.audit.rules import Head
from fleet_server.audit.store import NewestRow
from fleet_server.audit.vouched import checkpoints_back, signed_heads
from fleet_server.database.engine import Connection


@dataclass(frozen=True, slots=True)
class Accepted:
    """What did not stand, and counts from now on.

    Args:
        chains: newest number of each chain by writer.
        checkpoint: the newest one; None when what was stored of that stands.
        removed: checkpoints behind it that no authority signed.
        unvouched: first and last row, by writer, that neither the end of a chain under a good MAC nor a checkpoint
            vouched for: whoever wrote them.
    """

    chains: dict[str, int] = field(default_factory=dict)
    checkpoint: int | None = None
    removed: int = 0
    unvouched: dict[str, tuple[int, int]] = field(default_factory=dict)


def accept(
    conn: Connection, heads: Heads, checkpoints: Checkpoints, cluster_id: str, is_signed: Callable[[bytes], bool]
) -> Accepted:
    """Mark heads that do not stand, and the newest checkpoint, as they are.

    Args:
        is_signed: whether an authority of the cluster signed a serialised checkpoint.
    """
    chains, unvouched = {}, {}
    store.hold_newest(conn)  # or one that a running server signs meanwhile would be deleted behind its back
    found = _newest_signed(conn, is_signed)
    signed = _signed_numbers(conn, found)
    for writer in store.head_writers(conn):
        newest = store.newest_row(conn, writer)
        if newest is None:
            store.delete_head(conn, writer)
            chains[writer] = 0
            continue
        end = _end(conn, heads, writer)
        if end == newest:
            continue
        vouched = max(signed.get(writer, 0), 0 if end is None else end[0])
        if newest[0] > vouched:
            unvouched[writer] = (vouched + 1, newest[0])
        heads.put_head(conn, Head(writer, *newest))
        chains[writer] = newest[0]
    store.forget_signed(conn)  # no MAC covers it: the next checkpoint names every chain
    removed = store.delete_checkpoints_after(conn, found.number)
    stands = found == checkpoints.stored(conn, cluster_id)
    checkpoints.accept(conn, cluster_id, found)
    return Accepted(chains, None if stands else found.number, removed, unvouched)


def _newest_signed(conn: Connection, is_signed: Callable[[bytes], bool]) -> CheckpointMark:
    for number, raw in checkpoints_back(conn, store.LAST_POSITION, 1):
        if is_signed(raw) and checkpoint_number(raw) == number:
            return CheckpointMark(number, checkpoint_sha256(raw))
    return CheckpointMark(0, b"")


def _signed_numbers(conn: Connection, newest: CheckpointMark) -> dict[str, int]:
    """Newest signed row of each chain, as far as checkpoints hang together."""
    numbers: dict[str, int] = {}
    with suppress(TamperedHeadError):
        for head in signed_heads(conn, NewestRow("", newest.number, newest.sha256, 1, b"")):
            numbers.setdefault(head.writer, head.number)
    return numbers


def _end(conn: Connection, heads: Heads, writer: str) -> tuple[int, bytes] | None:
    """Number and hash of a chain's head; None when it does not stand."""
    try:
        head = heads.read(conn, writer)
    except TamperedHeadError:
        return None
    return head.number, head.hash
