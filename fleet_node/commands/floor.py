"""Takes a floor: what lies behind a node that was let in again, and which audit chain it writes from then on."""

from __future__ import annotations

from fleet.logs import get_logger
from fleet.sequence import StreamContext
from fleet.v1 import trust_pb2
from fleet_node.commands import audit_rows
from fleet_node.commands.intake import Intake
from fleet_node.commands.journal import Journal
from fleet_node.commands.ledger import Ledger

log = get_logger(__name__)


async def take_floor(
    signed: trust_pb2.Signed, context: StreamContext, intake: Intake, ledger: Ledger, journal: Journal, now_ms: int
) -> None:
    """Verify a floor and make it durable, unless it says nothing new.

    Args:
        now_ms: server time as the node knows it, Unix milliseconds.

    Raises:
        StatementRefusal: it does not count.
        JournalUnavailableError: it does not stand.
    """
    last_accepted_seq = ledger.last_accepted_seq
    floor = intake.open_floor(signed, context, last_accepted_seq)
    if (
        floor.seq_floor > last_accepted_seq
        or floor.intents_after_ms > ledger.used.issued_after_ms
        or floor.audit_chain > journal.next_audit_chain
    ):
        audited = audit_rows.floor(floor, last_accepted_seq, now_ms)
        await ledger.raise_floor(floor.seq_floor, floor.intents_after_ms, audited)
        log.warning(
            "seq_floor_raised",
            seq_floor=floor.seq_floor,
            last_accepted_seq=last_accepted_seq,
            audit_chain=floor.audit_chain,
        )
