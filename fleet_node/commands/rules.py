"""Decisions about commands on the node: what is refused, what a restart means, what a cancel does. Pure.

The rules that both sides share (accept, replay, gap) are in `fleet.sequence`; these are the node's own
(docs/protocol.md, "Commands").
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fleet.sequence import StatementReason, StatementRefusal
from fleet.v1 import command_pb2
from fleet.v1.command_pb2 import CancelOutcome, CommandState
from fleet_node.drivers.api import Action

MAX_SEQ = 2**63 - 1
"""What the journal can hold."""

MAX_ACTION_CHARS = 128
MAX_ACTOR_CHARS = 256

FINAL_STATES = frozenset(
    {
        CommandState.COMMAND_STATE_SUCCEEDED,
        CommandState.COMMAND_STATE_FAILED,
        CommandState.COMMAND_STATE_EXPIRED,
        CommandState.COMMAND_STATE_CANCELLED,
        CommandState.COMMAND_STATE_REJECTED,
        CommandState.COMMAND_STATE_INTERRUPTED,
    }
)

STATE_NAMES = {value: name.removeprefix("COMMAND_STATE_") for name, value in CommandState.items()}
"""A state's name as people and metrics know it."""


@dataclass(frozen=True, slots=True)
class Objection:
    """Why a command is REJECTED.

    Args:
        reason: stable and machine-readable.
        detail: sentence for a person.
    """

    reason: str
    detail: str


def check_seq_range(statement: command_pb2.CommandStatement) -> None:
    """Refuse seqs that the journal cannot hold.

    Args:
        statement: checked: it holds commands, and their seqs grow.

    Raises:
        StatementRefusal: MALFORMED.
    """
    if statement.commands[-1].monotonic_seq > MAX_SEQ:
        raise StatementRefusal(StatementReason.MALFORMED, "a seq is beyond 2^63 - 1")


class Resume(StrEnum):
    """What a restarted node does with a command that had not ended."""

    RUN = "RUN"
    EXPIRE = "EXPIRE"
    INTERRUPT = "INTERRUPT"
    REJECT = "REJECT"


def after_restart(
    state: CommandState.ValueType, *, not_after_ms: int, server_now_ms: int, action: Action | None, permitted: bool
) -> Resume:
    """Decide about a command that the journal holds unfinished.

    Args:
        state: ACCEPTED or RUNNING, as journaled.
        not_after_ms: it must not start later, server time.
        server_now_ms: server time, heard in this boot.
        action: as the drivers of this process offer it; None when they do not.
        permitted: it is not protected, or the intent that let it in is still good.
    """
    may_run = action is not None and permitted and server_now_ms <= not_after_ms
    if state == CommandState.COMMAND_STATE_RUNNING:
        # It may have run, wholly or in part: nobody can know, and only the action can say that this does no harm.
        return Resume.RUN if may_run and action is not None and action.idempotent else Resume.INTERRUPT
    if server_now_ms > not_after_ms:
        return Resume.EXPIRE
    return Resume.RUN if may_run else Resume.REJECT


def cancel_outcome(state: CommandState.ValueType | None, *, accepted: bool) -> CancelOutcome.ValueType:
    """What a cancel comes to.

    Args:
        state: of exactly this command in the journal; None when the journal does not hold it.
        accepted: its seq is not above last accepted.
    """
    if not accepted:
        return CancelOutcome.CANCEL_OUTCOME_TOMBSTONED
    if state is None:
        return CancelOutcome.CANCEL_OUTCOME_FORGOTTEN
    if state == CommandState.COMMAND_STATE_ACCEPTED:
        return CancelOutcome.CANCEL_OUTCOME_CANCELLED
    if state == CommandState.COMMAND_STATE_RUNNING:
        return CancelOutcome.CANCEL_OUTCOME_STOPPING
    return CancelOutcome.CANCEL_OUTCOME_ALREADY_FINISHED
