"""From a signed statement to a plan: verify, parse, judge the whole, then judge each command. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

from fleet.clock import MAX_TIME_MS, ServerTime
from fleet.command_trust import verify_command_envelope
from fleet.envelope import Domain, EnvelopeError, verify_one
from fleet.logs import get_logger
from fleet.redaction import printable
from fleet.sequence import (
    StatementReason,
    StatementRefusal,
    StreamContext,
    Verdict,
    check_cancel,
    check_floor,
    check_statement,
    command_digest,
    judge_command,
)
from fleet.trust import TrustState
from fleet.v1 import command_pb2, trust_pb2
from fleet.v1.command_pb2 import CommandState
from fleet_node.commands import audit_rows, reports
from fleet_node.commands.audit_rows import AuditEvent
from fleet_node.commands.entry import Change, Entry
from fleet_node.commands.protection import Permit, Protection
from fleet_node.commands.rules import (
    MAX_ACTION_CHARS,
    MAX_ACTOR_CHARS,
    MAX_SEQ,
    Objection,
    check_seq_range,
)
from fleet_node.commands.runner import Run
from fleet_node.drivers.api import Action
from fleet_node.drivers.json_text import ArgumentsError

log = get_logger(__name__)

MessageT = TypeVar("MessageT", bound=Message)

_REFUSED_DETAIL = {
    Verdict.SEQ_CONFLICT: "another command held this seq: the server's database went back in time, or seqs are forged",
    Verdict.FORGOTTEN: "this seq was accepted before and its journal entry is gone: it does not run again",
}
_ACCEPTED = CommandState.COMMAND_STATE_ACCEPTED  # an enum of protobuf costs a look-up each time
_NOT_RUN = {
    Verdict.TOO_FAR: (CommandState.COMMAND_STATE_REJECTED, "SEQ_TOO_FAR", "its seq is too far above the last accepted"),
    Verdict.EXPIRED: (CommandState.COMMAND_STATE_EXPIRED, "EXPIRED", "its time to live was over when it arrived"),
    Verdict.TOMBSTONED: (CommandState.COMMAND_STATE_CANCELLED, "CANCELLED", "it was cancelled before it arrived"),
}


class Offers(Protocol):
    """What judging needs of the drivers; `DriverRegistry` gives it."""

    def action(self, name: str) -> Action | None:
        """The action of that full name."""
        ...

    def validate(self, action: str, arguments: bytes) -> Mapping[str, Any]:
        """Parse and check arguments; raises ArgumentsError."""
        ...

    def ordering_key(self, action: str, arguments: Mapping[str, Any]) -> str | None:
        """What must not see commands out of order."""
        ...


@dataclass(slots=True)
class Plan:
    """What a statement comes to, before anything of it is durable.

    Args:
        entries: new to the journal, in seq order, ACCEPTED.
        runs: the ones among them that may run.
        not_run: how the others end, there and then.
        again: replayed: their state is reported again.
        refused: answers about commands that the journal says nothing of.
        last_accepted_seq: where it stands afterwards.
        consumed: seqs whose tombstone has served.
        permits: by intent id, what lets protected actions among the runs do so.
        audited: what the node's audit says of these permits.
    """

    last_accepted_seq: int
    entries: list[Entry] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    not_run: list[Change] = field(default_factory=list)
    again: list[Entry] = field(default_factory=list)
    refused: list[command_pb2.CommandRefused] = field(default_factory=list)
    consumed: list[int] = field(default_factory=list)
    permits: dict[bytes, Permit] = field(default_factory=dict)
    audited: list[AuditEvent] = field(default_factory=list)


class Intake:
    """Judges statements and cancels.

    Args:
        offers: the drivers.
        protection: judges protected actions.
        trust: the verified bundle in force.
        site: the node's site; a command key may be limited to one.
        server_time: as heard from the server.
    """

    def __init__(
        self,
        *,
        offers: Offers,
        protection: Protection,
        trust: Callable[[], TrustState],
        site: str,
        server_time: ServerTime,
    ) -> None:
        self._offers = offers
        self._protection = protection
        self._trust = trust
        self._site = site
        self._server_time = server_time

    def open_statement(
        self, signed: trust_pb2.Signed, context: StreamContext, last_accepted_seq: int
    ) -> command_pb2.CommandStatement:
        """Verify and parse a statement, and check it as a whole.

        Raises:
            StatementRefusal: nothing in it counts.
        """
        statement = self._verified(signed, Domain.COMMAND, command_pb2.CommandStatement)
        check_statement(statement, context, last_accepted_seq)
        check_seq_range(statement)
        if statement.signed_at_ms > MAX_TIME_MS:
            raise StatementRefusal(StatementReason.MALFORMED, "is dated after the year 9999")
        self._server_time.observe(statement.signed_at_ms)  # signed now, so the server's clock is at least there
        return statement

    def open_cancel(self, signed: trust_pb2.Signed, context: StreamContext) -> command_pb2.CancelStatement:
        """Verify, parse and check a cancel.

        Raises:
            StatementRefusal: it does not count.
        """
        statement = self._verified(signed, Domain.CANCEL, command_pb2.CancelStatement)
        check_cancel(statement, context)
        if statement.monotonic_seq > MAX_SEQ:
            raise StatementRefusal(StatementReason.MALFORMED, "the seq is beyond 2^63 - 1")
        return statement

    def open_floor(
        self, signed: trust_pb2.Signed, context: StreamContext, last_accepted_seq: int
    ) -> trust_pb2.FloorStatement:
        """Verify, parse and check a floor; intents that lie further ahead than this node can know of are taken out.

        Raises:
            StatementRefusal: it does not count.
        """
        try:
            raw = verify_one(signed, domain=Domain.FLOOR, public_key=self._trust().authority_key)
            floor = trust_pb2.FloorStatement.FromString(raw)
        except (EnvelopeError, DecodeError) as error:
            raise StatementRefusal(StatementReason.BAD_SIGNATURE, "is not signed by the cluster's authority") from error
        check_floor(floor, cluster_id=context.cluster_id, node_id=context.node_id, last_accepted_seq=last_accepted_seq)
        latest_ms = self._protection.latest_floor_ms()
        if floor.intents_after_ms > latest_ms:  # the rest comes again on the next stream, if it is true
            log.warning("floor_ahead_of_clock", intents_after_ms=floor.intents_after_ms, taken_ms=latest_ms)
            floor.intents_after_ms = latest_ms
        return floor

    def judge(
        self,
        statement: command_pb2.CommandStatement,
        *,
        last_accepted_seq: int,
        journaled: Mapping[int, Entry],
        tombstones: Mapping[int, bytes],
    ) -> Plan:
        """Judge each command of a good statement, in seq order.

        Args:
            statement: from `open_statement`.
            last_accepted_seq: highest seq journaled.
            journaled: what the journal holds at seqs up to that one.
            tombstones: command_id by seq of cancels that came first.
        """
        plan = Plan(last_accepted_seq)
        now_ms = self._server_time.now_ms()
        for command in statement.commands:
            self._judge_one(command, plan, journaled.get(command.monotonic_seq), tombstones, now_ms)
        return plan

    def run_of(self, entry: Entry) -> Run | Objection:
        """A journaled command, ready to run with the drivers of this process, or why it cannot."""
        checked = self._check(entry.action, entry.arguments)
        if isinstance(checked, Objection):
            return checked
        action, arguments = checked
        limit_ms = self._protection.resume(action, entry)
        if isinstance(limit_ms, Objection):
            return limit_ms
        entry.not_after_ms = min(entry.not_after_ms, limit_ms)
        return Run(entry, action, arguments, self._offers.ordering_key(entry.action, arguments))

    def permits(self, action: Action, entry: Entry) -> bool:
        """Whether a journaled command may still run, as far as people are concerned."""
        return self._protection.permits(action, entry)

    def objection(self, run: Run) -> Objection | None:
        """Why a command whose turn has come may not start."""
        return self._protection.start(run.action, run.entry)

    def _verified(self, signed: trust_pb2.Signed, domain: Domain, message: type[MessageT]) -> MessageT:
        now_ms = self._server_time.now_ms()
        statement = verify_command_envelope(self._trust(), signed, domain, site=self._site, now_ms=now_ms)
        try:
            return message.FromString(statement)
        except DecodeError as error:
            raise StatementRefusal(StatementReason.MALFORMED, "the signed bytes are no such statement") from error

    def _judge_one(
        self,
        command: command_pb2.Command,
        plan: Plan,
        known: Entry | None,
        tombstones: Mapping[int, bytes],
        now_ms: int,
    ) -> None:
        seq, action, arguments = command.monotonic_seq, command.action, command.arguments
        checked = self._check(action, arguments) if seq > plan.last_accepted_seq else None
        objection = checked if isinstance(checked, Objection) else None
        permit: Permit | None = None
        verdict = judge_command(
            command,
            last_accepted_seq=plan.last_accepted_seq,
            journaled=None if known is None else (known.command_id, known.digest),
            tombstoned=bool(tombstones) and tombstones.get(seq) == command.command_id,
            server_now_ms=now_ms,
            objection=None if objection is None else objection.reason,
        )
        if verdict is Verdict.ACCEPT and isinstance(checked, tuple) and self._protection.protects(checked[0]):
            judged = self._protection.judge(command, plan.permits)
            if isinstance(judged, Objection):
                verdict, objection = Verdict.REJECTED, judged
            else:
                permit = judged
        if verdict.advances:
            plan.last_accepted_seq = seq
        if verdict is Verdict.REPLAY and known is not None:
            plan.again.append(known)
            return
        if verdict in _REFUSED_DETAIL:
            plan.refused.append(_refused(command, verdict))
            return
        entry = Entry(
            seq,
            command.command_id,
            command_digest(command),
            printable(command.actor)[:MAX_ACTOR_CHARS],
            printable(action)[:MAX_ACTION_CHARS],
            arguments,
            command.not_after_ms,
            now_ms if verdict.advances else 0,
            _ACCEPTED,
        )
        plan.entries.append(entry)
        if verdict is Verdict.ACCEPT and isinstance(checked, tuple):
            driver_action, parsed = checked
            if permit is not None:
                _permit(permit, entry, plan)
            plan.runs.append(Run(entry, driver_action, parsed, self._offers.ordering_key(action, parsed)))
        else:
            entry.arguments = b""
            plan.not_run.append(_not_run(entry, verdict, objection, now_ms))
        if verdict is Verdict.TOMBSTONED:
            plan.consumed.append(seq)

    def _check(self, name: str, data: bytes) -> tuple[Action, Mapping[str, Any]] | Objection:
        try:
            arguments = self._offers.validate(name, data)
        except ArgumentsError as error:
            return Objection(error.reason, error.detail)
        action = self._offers.action(name)
        if action is None:
            return Objection("UNKNOWN_ACTION", "this node has no such action")
        return action, arguments


def _permit(permit: Permit, entry: Entry, plan: Plan) -> None:
    plan.permits[permit.use.intent_id] = permit
    entry.not_after_ms = min(entry.not_after_ms, permit.start_by_ms)
    plan.audited.append(audit_rows.intent_used(entry, permit.use.intent_id, sorted(permit.people)))
    log.info(
        "intent_accepted",
        action=entry.action,
        seq=entry.seq,
        command_id=entry.command_id.hex(),
        intent_id=permit.use.intent_id.hex(),
        people=sorted(permit.people),
    )


def _not_run(entry: Entry, verdict: Verdict, objection: Objection | None, now_ms: int) -> Change:
    if verdict in _NOT_RUN:
        state, reason, error = _NOT_RUN[verdict]
        return reports.not_run(entry, state, now_ms, reason, error)
    why = objection or Objection("REJECTED", "the node refused it")
    return reports.not_run(entry, CommandState.COMMAND_STATE_REJECTED, now_ms, why.reason, why.detail)


def _refused(command: command_pb2.Command, verdict: Verdict) -> command_pb2.CommandRefused:
    if verdict is Verdict.SEQ_CONFLICT:
        log.error("seq_conflict", seq=command.monotonic_seq, command_id=command.command_id.hex())
    return command_pb2.CommandRefused(
        command_id=command.command_id,
        monotonic_seq=command.monotonic_seq,
        reason=verdict.value,
        detail=_REFUSED_DETAIL[verdict],
    )
