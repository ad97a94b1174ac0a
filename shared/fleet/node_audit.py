"""A node's own audit chain: what its rows may say, how they are written down and hashed (docs/protocol.md, "Audit").

Node, server and reader use the same rules: the node chains rows, the server takes only what continues the chain, and
`fleetctl audit verify` holds the chain against the server's own.

Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from fleet.audit_chain import row_hash
from fleet.v1 import gateway_pb2

JSON = None | bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"]

MAX_DETAIL_BYTES = 64 * 1024
MAX_ROWS_PER_FRAME = 64
MAX_FRAME_BYTES = 256 * 1024
CHAIN_ENDED = "CHAIN_ENDED"
"""In `AuditAck.paused`: the chain takes no more rows; the node begins the one that its floor names."""
ROW_BYTES = 128
"""What a row takes on the wire and on a disk beside its detail, rounded up."""
_WRITER_PREFIX = "node:"


class NodeAuditKind(StrEnum):
    """Every kind of row that a node writes. Values are stable: they stand in hash chains."""

    PROCESS_STARTED = "process.started"
    PROCESS_STOPPED = "process.stopped"
    COMMAND_ACCEPTED = "command.accepted"
    INTENT_USED = "intent.used"
    PROTECTED_REFUSED = "protected.refused"
    COMMAND_ENDED = "command.ended"
    COMMAND_REFUSED = "command.refused"
    COMMAND_CANCEL = "command.cancel"
    STATEMENT_REFUSED = "statement.refused"
    BUNDLE_APPLIED = "bundle.applied"
    BUNDLE_REFUSED = "bundle.refused"
    OWNER_PINNED = "owner.pinned"
    PEOPLE_TAKEN = "people.taken"
    PEOPLE_REFUSED = "people.refused"
    CREDENTIAL_STORED = "credential.stored"
    CREDENTIAL_IN_FORCE = "credential.in_force"
    CREDENTIAL_REFUSED = "credential.refused"
    FLOOR_RAISED = "floor.raised"
    FLOOR_REFUSED = "floor.refused"
    CONFIG_APPLIED = "config.applied"
    CONFIG_REFUSED = "config.refused"
    LEASE_REFUSED = "lease.refused"
    DRAIN_ORDERED = "drain.ordered"
    DRAIN_ENDED = "drain.ended"
    AUDIT_GAP = "audit.gap"
    CHAIN_BEGUN = "chain.begun"
    CHAIN_SIGNED = "chain.signed"
    JOURNAL_RESTORED = "journal.restored"


class BegunBecause(StrEnum):
    """Why a node began another chain, in `chain.begun`."""

    ADOPTED = "ADOPTED"
    RESTORED = "RESTORED"


@dataclass(frozen=True, slots=True)
class Begun:
    """What the first row of a later chain says.

    Args:
        chain: that it continues.
        number: newest row of that chain that the server holds just so; 0 when it holds none.
        sha256: hash of that row; empty when the node has forgotten it.
        held_number: newest row that the node had written in that chain.
        held_sha256: its hash.
        reason: one of `BegunBecause`.
    """

    chain: int
    number: int
    sha256: bytes
    held_number: int
    held_sha256: bytes
    reason: str

    def detail(self) -> bytes:
        """As it stands in the row."""
        return encode_detail(
            {
                "continues": {"chain": self.chain, "hash": self.sha256.hex(), "number": self.number},
                "held": {"hash": self.held_sha256.hex(), "number": self.held_number},
                "reason": self.reason,
            }
        )

    @classmethod
    def parse(cls, detail: bytes) -> Begun:
        """From a row.

        Raises:
            ValueError: it says something else.
        """
        try:
            said = json.loads(detail)
            continues, held, reason = said["continues"], said["held"], BegunBecause(said["reason"])
            numbers = (continues["chain"], continues["number"], held["number"])
            if any(type(number) is not int or not 0 <= number < 2**62 for number in numbers):
                raise ValueError("a number is out of range")
            hashes = (bytes.fromhex(continues["hash"]), bytes.fromhex(held["hash"]))
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"no beginning of a chain: {error}") from error
        return cls(numbers[0], numbers[1], hashes[0], numbers[2], hashes[1], reason.value)


def writer_of(node_id: str, chain: int = 0) -> str:
    """Name of a node's chain; its first is 0."""
    return f"{_WRITER_PREFIX}{node_id}/{chain}" if chain else _WRITER_PREFIX + node_id


def node_of(writer: str) -> str | None:
    """Node whose chain `writer` is; None for a replica's."""
    return writer.removeprefix(_WRITER_PREFIX).partition("/")[0] if writer.startswith(_WRITER_PREFIX) else None


def chain_of(writer: str) -> int:
    """Number of a node's chain; 0 is its first.

    Raises:
        ValueError: this is the name of no node's chain.
    """
    number = writer.partition("/")[2]
    if not number:
        return 0
    chain = int(number)
    if chain < 1 or str(chain) != number:
        raise ValueError(f"{writer!r} names no chain of a node")
    return chain


def encode_detail(detail: Mapping[str, JSON]) -> bytes:
    """Sorted keys, no spaces, UTF-8.

    Raises:
        TypeError: a value is no JSON.
    """
    return json.dumps(detail, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def node_row_hash(node_id: str, previous_hash: bytes, row: gateway_pb2.AuditRow, *, chain: int = 0) -> bytes:
    """Hash of a node's row: as `fleet.audit_chain.row_hash`, with ``node:<id>`` as actor and the node id as subject.

    Args:
        node_id: whose chain it is.
        previous_hash: 32 bytes of the row before.
        row: number, at_ms, kind and detail count.
        chain: of the node, that the row stands in.

    Raises:
        OverflowError: number or time does not fit.
        ValueError: previous_hash does not have 32 bytes.
    """
    return row_hash(
        previous_hash=previous_hash,
        writer=writer_of(node_id, chain),
        number=row.number,
        at_ms=row.at_ms,
        kind=row.kind,
        actor=writer_of(node_id),
        subject=node_id,
        detail=row.detail,
    )
