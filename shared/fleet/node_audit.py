"""A node's own audit chain: what its rows may say, how they are written down and hashed (docs/protocol.md, "Audit").

Node, server and reader use the same rules: the node chains rows, the server takes only what continues the chain, and
`fleetctl audit verify` holds the chain against the server's own.

Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum

from fleet.audit_chain import row_hash
from fleet.v1 import gateway_pb2

JSON = None | bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"]

MAX_DETAIL_BYTES = 64 * 1024
MAX_ROWS_PER_FRAME = 64
MAX_FRAME_BYTES = 256 * 1024
ROW_BYTES = 128
"""What a row takes on the wire and on a disk beside its detail, rounded up."""
_WRITER_PREFIX = "node:"


class NodeAuditKind(StrEnum):
    """Every kind of row that a node writes. Values are stable: they stand in hash chains."""

    PROCESS_STARTED = "process.started"
    PROCESS_STOPPED = "process.stopped"
    COMMAND_ACCEPTED = "command.accepted"
    INTENT_USED = "intent.used"
    COMMAND_ENDED = "command.ended"
    COMMAND_REFUSED = "command.refused"
    COMMAND_CANCEL = "command.cancel"
    STATEMENT_REFUSED = "statement.refused"
    BUNDLE_APPLIED = "bundle.applied"
    BUNDLE_REFUSED = "bundle.refused"
    PEOPLE_TAKEN = "people.taken"
    PEOPLE_REFUSED = "people.refused"
    CREDENTIAL_STORED = "credential.stored"
    CREDENTIAL_IN_FORCE = "credential.in_force"
    CREDENTIAL_REFUSED = "credential.refused"
    FLOOR_RAISED = "floor.raised"
    FLOOR_REFUSED = "floor.refused"
    DRAIN_ORDERED = "drain.ordered"
    DRAIN_ENDED = "drain.ended"
    AUDIT_GAP = "audit.gap"


def writer_of(node_id: str) -> str:
    """Name of a node's chain."""
    return _WRITER_PREFIX + node_id


def node_of(writer: str) -> str | None:
    """Node whose chain `writer` is; None for a replica's."""
    return writer.removeprefix(_WRITER_PREFIX) if writer.startswith(_WRITER_PREFIX) else None


def encode_detail(detail: Mapping[str, JSON]) -> bytes:
    """Sorted keys, no spaces, UTF-8.

    Raises:
        TypeError: a value is no JSON.
    """
    return json.dumps(detail, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def node_row_hash(node_id: str, previous_hash: bytes, row: gateway_pb2.AuditRow) -> bytes:
    """Hash of a node's row: as `fleet.audit_chain.row_hash`, with the writer as actor and the node id as subject.

    Args:
        node_id: whose chain it is.
        previous_hash: 32 bytes of the row before.
        row: number, at_ms, kind and detail count.

    Raises:
        OverflowError: number or time does not fit.
        ValueError: previous_hash does not have 32 bytes.
    """
    writer = writer_of(node_id)
    return row_hash(
        previous_hash=previous_hash,
        writer=writer,
        number=row.number,
        at_ms=row.at_ms,
        kind=row.kind,
        actor=writer,
        subject=node_id,
        detail=row.detail,
    )
