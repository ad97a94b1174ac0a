"""Takes a floor: what lies behind a node that was let in again, and which audit chain it writes from then on."""

from __future__ import annotations

from fleet.logs import get_logger
from fleet.sequence import StatementReason, StatementRefusal, StreamContext
from fleet.v1 import trust_pb2
from fleet_node.commands import audit_rows
from fleet_node.commands.intake import Intake
from fleet_node.commands.journal import Journal
from fleet_node.commands.ledger import Ledger
from fleet_node.commands.refusals import Refusals
from fleet_node.commands.store import JournalUnavailableError

log = get_logger(__name__)


async def take_floor(
    signed: trust_pb2.Signed,
    context: StreamContext,
    intake: Intake,
    ledger: Ledger,
    journal: Journal,
    refusals: Refusals,
    *,
    now_ms: int,
) -> None:
    """Verify a floor and make it durable, unless it says nothing new. One that does not count is told of.

    Args:
        refusals: told of one that does not count, or does not stand.
        now_ms: server time as the node knows it, Unix milliseconds.

    Raises:
        StatementRefusal: JOURNAL_UNAVAILABLE: it does not stand yet.
    """
    try:
        await _take(signed, context, intake, ledger, journal, now_ms)
    except StatementRefusal as refusal:
        refusals.floor(refusal)
    except JournalUnavailableError as error:
        refusals.floor(error)
        raise StatementRefusal(StatementReason.JOURNAL_UNAVAILABLE, str(error)) from error


async def _take(
    signed: trust_pb2.Signed, context: StreamContext, intake: Intake, ledger: Ledger, journal: Journal, now_ms: int
) -> None:
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
