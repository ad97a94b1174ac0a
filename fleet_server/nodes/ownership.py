"""Which stream speaks for a node: the one with the newest epoch in the database, at whichever replica.

Whatever a stream writes but results is written by a transaction that has looked at the epoch. A replica that was cut
off, or stood still, while its nodes went elsewhere learns of it from the first thing that it wants to write for one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from fleet.errors import Reason, Refusal
from fleet_server.database.engine import Connection, Database
from fleet_server.database.writer import Transaction

T = TypeVar("T")


class Epochs(Protocol):
    """The nodes room, as far as ownership needs it."""

    def current_epoch(self, conn: Connection, node_id: str, *, hold: bool = False) -> int:
        """Epoch of the node's newest stream; 0 when it never had one. With `hold` no other machine becomes the node
        before the transaction ends."""
        ...


def refuse_stale(nodes: Epochs, conn: Connection, node_id: str, epoch: int, *, hold: bool = False) -> Refusal | None:
    """Why a stream may not act for its node any more; None for the newest one (docs/protocol.md, "Frames"). With `hold`
    no other machine becomes the node before the transaction ends. Any thread."""
    return stale(epoch, nodes.current_epoch(conn, node_id, hold=hold))


def stale(epoch: int, newest: int) -> Refusal | None:
    """Why a stream of `epoch` may not act for its node whose newest stream has `newest`; None when it may."""
    if newest == epoch:
        return None
    return Refusal(
        Reason.SUPERSEDED,
        f"the stream has epoch {epoch}, the newest of its node is {newest}: only that one is sent commands, and only"
        " results count that come on another",
    )


async def write_as_newest(
    database: Database,
    nodes: Epochs,
    node_id: str,
    epoch: int,
    work: Callable[[Transaction], T | Refusal],
    *,
    hold: bool = False,
) -> T:
    """Commit what a stream writes, if it is the newest of its node in that very transaction.

    Args:
        hold: until that is committed no other machine becomes the node, at any replica.

    Raises:
        Refusal: SUPERSEDED when it is not, whatever `work` answered instead of a result, or the database is away.
            Nothing was written then.
    """

    def checked(tx: Transaction) -> T | Refusal:
        # Answered, not raised: that would undo the jobs of others in the same group.
        return refuse_stale(nodes, tx.conn, node_id, epoch, hold=hold) or work(tx)

    answer = await database.write(checked)
    if isinstance(answer, Refusal):
        raise answer
    return answer
