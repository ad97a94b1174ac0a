"""What is reported about a command when its state changes. Pure; reports are numbered when they are journaled."""

from __future__ import annotations

from fleet.v1 import command_pb2
from fleet.v1.command_pb2 import CommandState
from fleet_node.commands.rules import Objection, Resume
from fleet_node.commands.runner import Run, StopCause
from fleet_node.commands.store import Entry
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


def running(entry: Entry, now_ms: int) -> command_pb2.Report:
    """It is about to be handed to its driver."""
    report = _next(entry, _RUNNING)
    report.started_at_ms = now_ms
    return report


def expired(entry: Entry, now_ms: int) -> command_pb2.Report:
    """Its time to live passed while it waited."""
    return _not_started(
        entry, CommandState.COMMAND_STATE_EXPIRED, now_ms, "EXPIRED", "its time to live passed while it waited"
    )


def cancelled_unstarted(entry: Entry, now_ms: int) -> command_pb2.Report:
    """A cancel came before its turn."""
    return _not_started(
        entry, CommandState.COMMAND_STATE_CANCELLED, now_ms, "CANCELLED", "it was cancelled before it started"
    )


def after_restart(entry: Entry, decision: Resume, objection: Objection | None, now_ms: int) -> command_pb2.Report:
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


def ended(run: Run, outcome: Outcome | None, now_ms: int) -> command_pb2.Report:
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
    report = _final(run.entry, _STATES[state], now_ms, reason, error)
    report.output = encode_output(outcome.output) if outcome.output else b"{}"
    report.output_truncated = outcome.truncated
    return report


def _not_started(
    entry: Entry, state: CommandState.ValueType, now_ms: int, reason: str, error: str
) -> command_pb2.Report:
    if entry.state == _RUNNING:  # idempotent: it ran before a restart and waited to run again
        state, error = CommandState.COMMAND_STATE_INTERRUPTED, f"{error} again; how its earlier run ended is unknown"
    return _final(entry, state, now_ms, reason, error)


def _final(entry: Entry, state: CommandState.ValueType, now_ms: int, reason: str, error: str) -> command_pb2.Report:
    report = _next(entry, state)
    report.finished_at_ms = now_ms
    if reason or error:
        report.reason = reason[:MAX_REASON_CHARS]
        report.error = error[:MAX_ERROR_CHARS]
    return report


def _next(entry: Entry, state: CommandState.ValueType) -> command_pb2.Report:
    before = entry.report
    return command_pb2.Report(
        command_id=entry.command_id,
        monotonic_seq=entry.seq,
        state=state,
        accepted_at_ms=before.accepted_at_ms,
        started_at_ms=before.started_at_ms,
    )
