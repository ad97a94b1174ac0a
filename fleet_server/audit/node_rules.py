"""Whether the rows that a node sends continue its chain, and how many of them the server keeps. Pure.

A node is believed nothing but what hashes: a row is stored as it came, once, behind the row that it was hashed with.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from fleet.node_audit import (
    CHAIN_ENDED,
    MAX_DETAIL_BYTES,
    MAX_ROWS_PER_FRAME,
    ROW_BYTES,
    Begun,
    NodeAuditKind,
    node_row_hash,
    writer_of,
)
from fleet.v1 import gateway_pb2
from fleet_server.audit.rules import AuditRow, Head

DAY_MS = 86_400_000
MAX_ROWS_A_DAY = 250_000
MAX_BYTES_A_DAY = 256 * 1024 * 1024
RETRY_MS = 3_600_000
ENDED_RETRY_MS = 60_000
"""For a node that does not hold its floor yet; one that does begins its next chain at once."""
_MAX_KIND_CHARS = 64
_MAX_NUMBER = 2**62


class Finding(StrEnum):
    """What is wrong with a node's chain. Stable: it stands in the audit, in metrics and in `fleetctl nodes show`."""

    CHANGED = "CHANGED"
    REMOVED = "REMOVED"
    BROKEN_LINK = "BROKEN_LINK"
    MALFORMED = "MALFORMED"


class Pause(StrEnum):
    """Why the server takes no rows for a while, in `AuditAck.paused`."""

    OVER_QUOTA = "OVER_QUOTA"
    CHAIN_BROKEN = "CHAIN_BROKEN"
    CHAIN_ENDED = CHAIN_ENDED


@dataclass(frozen=True, slots=True)
class NodeStanding:
    """What is known of a node's chain, beside its rows.

    Args:
        chain: newest one that has rows; 0 is the first.
        last_at_ms: when rows came last, Unix milliseconds; 0 if never.
        day: days since 1970 that `day_rows` and `day_bytes` count.
        finding: the newest finding and where; empty without one. It stays: what was shown wrong is not right later.
        finding_at_ms: when it was found, Unix milliseconds.
    """

    chain: int = 0
    last_at_ms: int = 0
    day: int = 0
    day_rows: int = 0
    day_bytes: int = 0
    finding: str = ""
    finding_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Judged:
    """What a frame comes to.

    Args:
        rows: to store, in order; those before the finding, if there is one.
        head: of the chain with them.
        agreed: number of the newest row that was compared and is stored just so, or to be.
        finding: what is wrong with the row that follows; None when nothing is.
        detail: which row, and how.
    """

    head: Head
    agreed: int
    rows: list[AuditRow] = field(default_factory=list)
    finding: Finding | None = None
    detail: str = ""


def judge(
    node_id: str,
    head: Head,
    stored: Mapping[int, bytes],
    rows: Sequence[gateway_pb2.AuditRow],
    *,
    chain: int = 0,
) -> Judged:
    """Compare rows with the chain as it is stored.

    Args:
        node_id: the node that sent them, as its session says.
        head: of its chain.
        stored: hash by number of what is stored among these numbers.
        rows: as they came; at most `MAX_ROWS_PER_FRAME` count.
        chain: which one; 0 is the node's first.
    """
    taken: list[AuditRow] = []
    writer, actor = writer_of(node_id, chain), writer_of(node_id)
    agreed = min(head.number, max(rows[0].number - 1, 0)) if rows else head.number

    def wrong(finding: Finding, detail: str) -> Judged:
        return Judged(head, agreed, taken, finding, detail)

    if len(rows) > MAX_ROWS_PER_FRAME:
        return wrong(Finding.MALFORMED, f"{len(rows)} rows in one frame")
    for row in rows:
        number = row.number
        if not 0 < number <= _MAX_NUMBER or not 0 <= row.at_ms <= _MAX_NUMBER or not _well_formed(row):
            return wrong(Finding.MALFORMED, f"row {head.number + 1} is no audit row")
        if number <= head.number:
            known = stored.get(number)
            if known is not None and not hmac.compare_digest(known, row.hash):
                return wrong(Finding.CHANGED, f"row {number} came again and is another one")
            agreed = number
            continue
        if number != head.number + 1:
            return wrong(Finding.REMOVED, f"row {number} follows row {head.number}")
        if not hmac.compare_digest(node_row_hash(node_id, head.hash, row, chain=chain), row.hash):
            return wrong(Finding.BROKEN_LINK, f"row {number} was not hashed behind row {head.number} as it is stored")
        taken.append(AuditRow(0, writer, number, row.at_ms, row.kind, actor, node_id, row.detail, head.hash, row.hash))
        head = Head(writer, number, row.hash)
        agreed = number
    return Judged(head, agreed, taken)


def begins(chain: int, row: gateway_pb2.AuditRow) -> Begun | None:
    """What the first row of a later chain says of the one before; None when it is no such row.

    Args:
        chain: that the row stands in.
        row: its first.
    """
    if row.number != 1 or row.kind != NodeAuditKind.CHAIN_BEGUN:
        return None
    try:
        begun = Begun.parse(row.detail)
    except ValueError:
        return None
    return begun if begun.chain < chain else None


def size_of(rows: Sequence[AuditRow]) -> int:
    """Bytes that count against a day's quota."""
    return sum(len(row.detail) + ROW_BYTES for row in rows)


def over_quota(standing: NodeStanding, rows: Sequence[AuditRow], now_ms: int) -> bool:
    """Whether these rows would be too many for this day."""
    used_rows, used_bytes = (standing.day_rows, standing.day_bytes) if standing.day == now_ms // DAY_MS else (0, 0)
    return used_rows + len(rows) > MAX_ROWS_A_DAY or used_bytes + size_of(rows) > MAX_BYTES_A_DAY


def _well_formed(row: gateway_pb2.AuditRow) -> bool:
    kind = row.kind
    return (
        0 < len(kind) <= _MAX_KIND_CHARS
        and kind.isascii()
        and kind.isprintable()
        and len(row.detail) <= MAX_DETAIL_BYTES
        and len(row.hash) == 32
    )
