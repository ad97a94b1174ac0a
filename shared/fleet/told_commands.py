"""What server and node have told of a node's commands, as far as it is not settled (fleet.audit_crosscheck). Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from fleet.node_audit import Begun

GRACE_MS = 600_000
"""A node's rows about what it reported come within seconds; one that speaks of later and not of it has left it out."""
FINAL_STATES = frozenset({"SUCCEEDED", "FAILED", "EXPIRED", "CANCELLED", "REJECTED", "INTERRUPTED"})
"""A node's command is in one of these once it has ended."""

_PAGE = 1024
_DIGEST_BYTES = 8
_OVERTAKEN = "TOMBSTONED"


@dataclass(slots=True)
class ToldCommand:
    """What is known of one command. It is forgotten once both sides said all, unless it may still arrive.

    Args:
        issued: by the server, its digest.
        accepted: by the node, its digest.
        too_far: the node refused it for its seq, and never accepted it.
        reported: newest state that the server was told.
        reported_at_ms: when it was, Unix milliseconds.
        answered: outcome of a cancel that ended it, as the server was told.
        buried: TOMBSTONED, once the node has said that a cancel came before it.
        ended: by the node, its final state.
    """

    issued: str = ""
    accepted: str = ""
    too_far: bool = False
    reported: str = ""
    reported_at_ms: int = 0
    answered: str = ""
    buried: str = ""
    ended: str = ""

    @property
    def server_says(self) -> str:
        """The end that the server was told; one by an answer to a cancel stands, whatever was reported beside it."""
        return "CANCELLED" if self.answered else self.reported

    @property
    def is_buried_by_both(self) -> bool:
        """Whether both sides say that a cancel came before it, and the node not that it arrived since."""
        return bool(self.buried) and self.answered == _OVERTAKEN and not self.accepted and not self.ended


class Settled:
    """The digests of commands of which both sides said all, by seq; 8 bytes of each, for a later chain may tell again
    what an older one has."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def add(self, seq: int, digest: str) -> None:
        """`digest` in hexadecimal; empty for a command that was never accepted."""
        page = self._pages.setdefault(seq // _PAGE, bytearray(_PAGE * _DIGEST_BYTES))
        at = seq % _PAGE * _DIGEST_BYTES
        page[at : at + _DIGEST_BYTES] = _short(digest)

    def tells(self, seq: int, digest: str) -> bool:
        """Whether this command is settled; `digest` must be its own unless it is empty."""
        page = self._pages.get(seq // _PAGE)
        at = seq % _PAGE * _DIGEST_BYTES
        found = b"" if page is None else page[at : at + _DIGEST_BYTES]
        return any(found) and (not digest or found == _short(digest))


@dataclass(slots=True)
class ToldNode:
    """What is known of one node.

    Args:
        commands: by seq, those that are not settled.
        settled: the others, and `cancelled` the seqs of those among them that ended so.
        issued_open: how many of `commands` the server issued.
        given_up: it makes up too many.
        agreed: how many both sides tell alike.
        last_accepted: highest seq that it accepted.
        last_at_ms: when it wrote its newest row, Unix milliseconds.
        left_out: rows that it says are missing.
        lost: commands that no chain of it tells, for a machine that was let in could not know them.
        went_back: seqs that it tells alone, for the server's database was restored.
        opened_at_ms: when the server opened each of its later chains.
        heads: newest row of each chain, number and hash.
        begun: what each later chain continues; None if it does not say.
    """

    commands: dict[int, ToldCommand] = field(default_factory=dict)
    settled: Settled = field(default_factory=Settled)
    cancelled: set[int] = field(default_factory=set)
    issued_open: int = 0
    given_up: bool = False
    agreed: int = 0
    last_accepted: int = 0
    last_at_ms: int = 0
    left_out: int = 0
    lost: int = 0
    went_back: set[int] = field(default_factory=set)
    opened_at_ms: dict[int, int] = field(default_factory=dict)
    heads: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    begun: dict[int, Begun | None] = field(default_factory=dict)


def is_final(command: ToldCommand) -> bool:
    """Whether the server was told how it ended."""
    return command.reported in FINAL_STATES


def told_before(node: ToldNode, seq: int, chain: int, state: str) -> bool:
    """Whether the server knew another end of a command before it let this machine in, which cannot know that one."""
    command = node.commands.get(seq)
    if command is None or not is_final(command) or command.reported == state:
        return False
    return command.reported_at_ms <= node.opened_at_ms.get(chain, 0)


def passed_over(node: ToldNode, seq: int, command: ToldCommand) -> bool:
    """Whether the node has said something later, and not what the server was told of this one."""
    if not command.reported:
        return False
    late = command.reported_at_ms + GRACE_MS < node.last_at_ms
    if not command.accepted and not command.too_far:
        # A cancel leaves its row in the commit that buries: behind it alone a later seq is accepted.
        return not command.is_buried_by_both and (late or seq < node.last_accepted)
    return late and is_final(command) and not command.ended


def _short(digest: str) -> bytes:
    return hashlib.sha256(digest.encode()).digest()[:_DIGEST_BYTES]
