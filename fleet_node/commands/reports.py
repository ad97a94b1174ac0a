"""What a command becomes, and what is reported about it. Pure; reports are numbered when they are journaled."""

from __future__ import annotations

from fleet.v1 import command_pb2
from fleet.v1.command_pb2 import CommandState
from fleet_node.commands.entry import Change, Entry
from fleet_node.commands.rules import Objection, Resume
from fleet_node.commands.runner import Run, StopCause
from fleet_node.drivers.api import Outcome, OutcomeState
from fleet_node.drivers.json_text import encode_output

MAX_REASON_CHARS = 64
MAX_ERROR_CHARS = 2048

_STATES = {
    OutcomeState.SUCCEEDED: CommandState.COMMAND_STATE_SUCCEEDED,
    OutcomeState.FAILED: CommandState.COMMAND_STATE_FAILED,
    OutcomeState.CANCELLED: CommandState.COMMAND_STATE_CANCELLED,
}
_RUNNING = CommandState.COMMAND_STATE_RUNNING
_UNKNOWN_OUTCOME = "it did not stop when asked and was given up: nobody can know how it ended"


def running(entry: Entry, now_ms: int) -> Change:
    """It is about to be handed to its driver."""
    return Change(entry, _RUNNING, now_ms)


def told_again(entry: Entry) -> Change:
    """As it stands, under another number."""
    report = command_pb2.Report.FromString(entry.final_report) if entry.final_report else None
    return Change(entry, entry.state, entry.started_at_ms, report=report)


def not_run(entry: Entry, state: CommandState.ValueType, now_ms: int, reason: str, error: str) -> Change:
    """It ends where it is judged."""
    return _final(entry, state, now_ms, reason, error)


def expired(entry: Entry, now_ms: int) -> Change:
    """Its time to live passed while it waited."""
    return _not_started(
        entry, CommandState.COMMAND_STATE_EXPIRED, now_ms, "EXPIRED", "its time to live passed while it waited"
    )


def not_permitted(entry: Entry, objection: Objection, now_ms: int) -> Change:
    """What people signed while it waited does not let it start."""
    return _not_started(
        entry, CommandState.COMMAND_STATE_REJECTED, now_ms, objection.reason, f"it could not start: {objection.detail}"
    )


def cancelled_unstarted(entry: Entry, now_ms: int) -> Change:
    """A cancel came before its turn."""
    return _not_started(
        entry, CommandState.COMMAND_STATE_CANCELLED, now_ms, "CANCELLED", "it was cancelled before it started"
    )


def after_restart(entry: Entry, decision: Resume, objection: Objection | None, now_ms: int) -> Change:
    """The node restarted and does not run it.

    Args:
        entry: as journaled.
        decision: why it does not run.
        objection: what its action or arguments are refused for, now.
        now_ms: server time.
    """
    if decision is Resume.INTERRUPT:
        error = "the node stopped while it ran: nobody can know how it ended"
        return _final(entry, CommandState.COMMAND_STATE_INTERRUPTED, now_ms, "NODE_RESTARTED", error)
    if decision is Resume.EXPIRE:
        return expired(entry, now_ms)
    why = objection or Objection("UNKNOWN_ACTION", "the restarted node offers this action no more")
    return _final(entry, CommandState.COMMAND_STATE_REJECTED, now_ms, why.reason, why.detail)


def left_behind(entry: Entry, now_ms: int) -> Change:
    """The node was adopted since it took this, and is not to run it."""
    error = "another machine was the node since, or this one's disk went back: whether this ran is unknown"
    return _final(entry, CommandState.COMMAND_STATE_INTERRUPTED, now_ms, "NODE_ADOPTED", error)


def restored(entry: Entry, now_ms: int) -> Change:
    """The journal that holds it was restored from a backup."""
    error = "the node was restored from a backup that was made before this ended: whether it ran since is unknown"
    return _final(entry, CommandState.COMMAND_STATE_INTERRUPTED, now_ms, "NODE_RESTORED", error)


def ended(run: Run, outcome: Outcome | None, now_ms: int) -> Change:
    """Its run is over.

    Args:
        run: with the cause, when it was asked to stop.
        outcome: what the driver returned; None when it was given up.
        now_ms: server time.
    """
    if outcome is None:
        reason = run.cause or "GIVEN_UP"
        return _final(run.entry, CommandState.COMMAND_STATE_INTERRUPTED, now_ms, reason, _UNKNOWN_OUTCOME)
    state, reason, error = outcome.state, outcome.reason, outcome.error
    if state is OutcomeState.CANCELLED and run.cause is StopCause.TIMEOUT:
        state, reason, error = OutcomeState.FAILED, run.cause, f"it took longer than {run.action.timeout_s:g} s"
    elif state is OutcomeState.CANCELLED and run.cause is not None:
        reason = run.cause
    output = encode_output(outcome.output) if outcome.output else b"{}"
    return _final(run.entry, _STATES[state], now_ms, reason, error, output, outcome.truncated)


def _not_started(entry: Entry, state: CommandState.ValueType, now_ms: int, reason: str, error: str) -> Change:
    if entry.state == _RUNNING:  # idempotent: it ran before a restart and waited to run again
        state, error = (
            CommandState.COMMAND_STATE_INTERRUPTED,
            f"{error}; it was to run again, and how its earlier run ended is unknown",
        )
    return _final(entry, state, now_ms, reason, error)


def _final(
    entry: Entry,
    state: CommandState.ValueType,
    now_ms: int,
    reason: str,
    error: str,
    output: bytes = b"",
    truncated: bool = False,
) -> Change:
    report = command_pb2.Report(
        command_id=entry.command_id,
        monotonic_seq=entry.seq,
        state=state,
        output=output,
        accepted_at_ms=entry.accepted_at_ms,
        started_at_ms=entry.started_at_ms,
        finished_at_ms=now_ms,
        output_truncated=truncated,
    )
    if reason or error:
        report.reason = reason[:MAX_REASON_CHARS]
        report.error = error[:MAX_ERROR_CHARS]
    return Change(entry, state, entry.started_at_ms, now_ms, report)
