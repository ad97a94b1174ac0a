"""The ratchet: each welcome hands a fresh value to the node, and the node's next hello shows it. Two machines with one
state folder cannot both keep up with it.

Mental model
    The server knows two values of each node: the one that its last hello showed (confirmed), and the one that was
    handed on since (offered). A node may show either: what it was handed can get lost on the way, or before it was
    durable, and the same value is offered until it is confirmed. Anything else was shown by a machine that is not
    where this node is: a copied disk, a restored image, or a server whose database went back in time. Nobody can tell
    here which of two is the right one, so the node is set aside until a person has decided.
    Two machines that are on at once push each other off, so that neither falls behind by two values. But a process that
    comes back once another one has come is not the only one: each process has an id.
    What is stored is decided in the transaction that opens the stream, under the row's MAC.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum
from typing import NamedTuple

from fleet.people import CLOCK_SLACK_MS
from fleet_server.database.engine import Connection
from fleet_server.sessions.hello import BOOT_ID_BYTES
from fleet_server.sessions.ratchet_store import RatchetRow, RatchetStore, TamperedRatchetError
from fleet_server.trust.secrets import RowMac, SealError, SecretBox

RATCHET_BYTES = 32
ADOPTED_FOR_MS = 7 * 86_400_000
"""So long the machine that a person decided for may take to come."""
RESTORED_FOR_MS = 30 * 86_400_000
"""So long nodes may be away when the database is restored; who comes later, and is ahead of it, has to be adopted."""
MAX_CHAINS_FORGOTTEN = 1000
_TELLS_NONE = bytes(BOOT_ID_BYTES)
MAX_BOOTS = 8
"""Of so many processes a node's row tells; as many machines that take turns are found out."""


class Verdict(Enum):
    """What a shown value says."""

    KEEPS_UP = "keeps up"
    """It is the offered one: confirmed from now on."""
    LAGS = "lags"
    """It is the confirmed one: the offered one did not get through."""
    FOREIGN = "foreign"
    """It is neither."""


def judge(*, confirmed_sha256: bytes, offered: bytes, shown: bytes) -> Verdict:
    """Decide about a shown value.

    Args:
        confirmed_sha256: of the value that the last hello showed; empty when that showed none, or there was no hello.
        offered: handed on since; empty when nothing was.
        shown: from the hello; empty when the node has none.
    """
    if offered and hmac.compare_digest(shown, offered):
        return Verdict.KEEPS_UP
    if hmac.compare_digest(digest(shown), confirmed_sha256):
        return Verdict.LAGS
    return Verdict.FOREIGN


def has_come_back(boots: bytes, boot_id: bytes) -> bool:
    """Whether another process has said hello since this one did last: on one machine the earlier one is gone by then.

    Args:
        boots: ids of the processes that said hello, newest first.
        boot_id: of the one that does now; empty when it tells none, which counts as one, too.
    """
    return (boot_id or _TELLS_NONE) in _each(boots)[1:]


def with_newest(boots: bytes, boot_id: bytes) -> bytes:
    """The ids once this process has said hello, too; the oldest are forgotten."""
    newest = boot_id or _TELLS_NONE
    return b"".join([newest, *(each for each in _each(boots) if each != newest)][:MAX_BOOTS])


def _each(boots: bytes) -> list[bytes]:
    return [boots[at : at + BOOT_ID_BYTES] for at in range(0, len(boots), BOOT_ID_BYTES)]


def next_chain(held: int, told: int) -> int:
    """Number of the audit chain that a machine begins when it starts over.

    Args:
        held: newest chain that was given to the node, as the database remembers it.
        told: chain that the machine writes by its own word, as a database that was restored may have forgotten a few;
            or the newest that has rows, as a ratchet row that was changed around the server has forgotten all.
    """
    return max(held, min(told, held + MAX_CHAINS_FORGOTTEN)) + 1


def digest(value: bytes) -> bytes:
    """How a confirmed value is kept; nothing stays nothing."""
    return hashlib.sha256(value).digest() if value else b""


class Turn(NamedTuple):
    """What a stream that may open takes along.

    Args:
        handed_on: for the welcome.
        seq_floor: every seq up to it lies behind the node; 0 without a floor.
        floor_at_ms: intents issued up to then lie behind the node, too. Unix milliseconds; 0 if it never was adopted.
        audit_chain: chain that the node writes; 0 is its first.
        starts_over: a person said that this machine is the node, and this was the stream that it let in: how its
            ratchet would have been judged without that. None otherwise.
    """

    handed_on: bytes
    seq_floor: int
    floor_at_ms: int
    audit_chain: int = 0
    starts_over: Verdict | None = None


class Ratchets:
    """Judges and turns the ratchet of each node.

    Args:
        box: seals what is offered.
        mac: of the table `node_ratchets`.
    """

    def __init__(self, box: SecretBox, mac: RowMac) -> None:
        self._box = box
        self._store = RatchetStore(mac)

    def held(self, conn: Connection, node_ids: Sequence[str]) -> dict[str, RatchetRow]:
        """The rows of nodes, by id, which nobody else turns before the transaction ends. One of which nothing can be
        told is missing."""
        return self._store.load_all(conn, node_ids)

    def turn(
        self,
        row: RatchetRow,
        shown: bytes,
        newest_chain: Callable[[], int] = lambda: 0,
        *,
        boot_id: bytes = b"",
        now_ms: int,
    ) -> tuple[Turn, RatchetRow] | None:
        """Judge what a hello shows; what to hand on, and the row to `save`, or None when it is FOREIGN.

        A machine that starts over may have written other audit rows than are held here: it is given a chain of its own,
        behind every one that either side knows of.

        Args:
            row: of its node.
            shown: the ratchet.
            newest_chain: the newest audit chain that the machine says it writes, or that has rows here; asked only of a
                machine that starts over.
            boot_id: of its process; empty when it tells none.
            now_ms: Unix milliseconds.

        Raises:
            TamperedRatchetError: nothing can be told.
        """
        offered = self._open(row)
        verdict = judge(confirmed_sha256=row.confirmed_sha256, offered=offered, shown=shown)
        if has_come_back(row.boots, boot_id):
            verdict = Verdict.FOREIGN
        starts_over = now_ms < row.any_until_ms
        if verdict is Verdict.FOREIGN and not starts_over:
            return None
        met = replace(row, boots=with_newest(row.boots, boot_id))
        if verdict is Verdict.LAGS and offered and not starts_over:
            return Turn(offered, row.seq_floor, row.floor_at_ms, row.audit_chain), met
        chain = next_chain(row.audit_chain, newest_chain()) if starts_over else row.audit_chain
        handed_on = os.urandom(RATCHET_BYTES)
        sealed = self._box.seal(handed_on, row=_place(row.node_id))
        turned = replace(met, confirmed_sha256=digest(shown), sealed_offer=sealed, any_until_ms=0, audit_chain=chain)
        return Turn(handed_on, row.seq_floor, row.floor_at_ms, chain, verdict if starts_over else None), turned

    def save(self, conn: Connection, rows: Sequence[RatchetRow]) -> None:
        """Store rows of nodes that were turned."""
        self._store.save_all(conn, rows)

    def begin(self, conn: Connection, node_id: str) -> None:
        """A node was made, and nothing handed on to it yet."""
        self._store.save(conn, RatchetRow(node_id))

    def accept_any(self, conn: Connection, node_id: str, *, seq_floor: int, now_ms: int, replaced: bool) -> None:
        """The node's next hello within `ADOPTED_FOR_MS` may show anything, once.

        Args:
            seq_floor: highest seq that was ever signed to the node.
            now_ms: Unix milliseconds.
            replaced: by a machine with keys of its own, so with another fingerprint: no intent of before names it.
        """
        try:
            row = self._store.load(conn, node_id)
        except TamperedRatchetError:
            row = RatchetRow(node_id)  # a person decided: nothing of it counts any more
        floor = max(row.seq_floor, seq_floor)
        # A person's clock may be ahead, and what it signed used already.
        floor_at_ms = row.floor_at_ms if replaced else max(row.floor_at_ms, now_ms + CLOCK_SLACK_MS)
        until_ms = now_ms + ADOPTED_FOR_MS
        self._store.save(conn, replace(row, any_until_ms=until_ms, seq_floor=floor, floor_at_ms=floor_at_ms))

    def expect_any(self, conn: Connection, node_id: str, *, now_ms: int) -> bool:
        """The node's next hello within `RESTORED_FOR_MS` may show anything, once, and its floor stays: the database
        went back in time. False when its row was changed around the server."""
        try:
            row = self._store.load(conn, node_id)
        except TamperedRatchetError:
            return False  # stays for a person to adopt
        self._store.save(conn, replace(row, any_until_ms=now_ms + RESTORED_FOR_MS))
        return True

    def any_until_ms(self, conn: Connection, node_id: str) -> int:
        """Until when any machine with the node's keys is taken for it, once, Unix milliseconds; 0 when none is. For
        whoever looks: nothing is locked.

        Raises:
            TamperedRatchetError: nothing can be told.
        """
        return self._store.load(conn, node_id, lock=False).any_until_ms

    def _open(self, row: RatchetRow) -> bytes:
        if not row.sealed_offer:
            return b""
        try:
            return self._box.unseal(row.sealed_offer, row=_place(row.node_id))
        except SealError as error:
            raise TamperedRatchetError(row.node_id) from error


def _place(node_id: str) -> str:
    return f"node_ratchets/{node_id}"
