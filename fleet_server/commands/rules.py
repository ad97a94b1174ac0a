"""Decisions about commands: what a request may hold, and how a command's state moves. Pure; time is an argument.

A command's state only ever moves forward: QUEUED, SENT, ACCEPTED, RUNNING, then one final state, which stands. One
thing may follow a final state: where the server itself declared INTERRUPTED because nobody could know the outcome, the
node's own word replaces the declaration once, for then somebody does know.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2, command_pb2, trust_pb2

MAX_SPECS = 1024
MAX_ARGUMENT_BYTES = 64 * 1024
MAX_COMMANDS_PER_ISSUE = 65_536
MAX_TTL_S = 30 * 24 * 3600
DEFAULT_TTL_S = 300
MAX_IDEMPOTENCY_KEY_CHARS = 128
MAX_CANCELS = 1024
ID_BYTES = 16
MAX_CLAIM = 32
_ALONE = 0  # in place of its number, for a command whose request holds no other

MAX_OUTPUT_BYTES = 256 * 1024
MAX_REASON_CHARS = 64
MAX_ERROR_CHARS = 4096

SILENCE_MS = 7 * 24 * 3600 * 1000
"""How long past its time to live a signed command may stay without a result before the server says: unknown."""

QUEUED = command_pb2.COMMAND_STATE_QUEUED
SENT = command_pb2.COMMAND_STATE_SENT
ACCEPTED = command_pb2.COMMAND_STATE_ACCEPTED
RUNNING = command_pb2.COMMAND_STATE_RUNNING
SUCCEEDED = command_pb2.COMMAND_STATE_SUCCEEDED
EXPIRED = command_pb2.COMMAND_STATE_EXPIRED
CANCELLED = command_pb2.COMMAND_STATE_CANCELLED
INTERRUPTED = command_pb2.COMMAND_STATE_INTERRUPTED
QUARANTINED = command_pb2.COMMAND_STATE_QUARANTINED

FORGOTTEN = "FORGOTTEN"
SEQ_CONFLICT = "SEQ_CONFLICT"
JOURNAL_LOST = "JOURNAL_LOST"
NO_ANSWER = "NO_ANSWER"
ADOPTED = "ADOPTED"
REPLACED = "REPLACED"
DECLARED_REASONS = (FORGOTTEN, SEQ_CONFLICT, JOURNAL_LOST, NO_ANSWER, ADOPTED, REPLACED)
"""Reasons with which the server itself declares INTERRUPTED."""

DECLARED_ERRORS = {
    FORGOTTEN: "the node no longer knows this command and no result was recorded: whether it ran is unknown",
    SEQ_CONFLICT: "the node holds another command under this seq: the server's database went back in time; nothing ran",
    JOURNAL_LOST: "the node's journal went back behind this command: whether it finished is unknown",
    ADOPTED: "the node was adopted with another machine or an older copy: whether this ran is unknown",
    REPLACED: "this was signed to a machine whose place another one has taken: whether it ran there is unknown",
    NO_ANSWER: "the node never said what became of this command: whether it ran is unknown",
}


_OF_MANY = frozenset("*?[=,")  # in a pattern; no name and no id has any of these (nodes/selectors.py)


@dataclass(frozen=True, slots=True)
class Spec:
    """One action with its arguments, as bytes to sign and as the value that its schema judges; `intent` is what people
    signed, when it needs that."""

    action: str
    arguments: bytes
    value: dict[str, Any]
    intent: trust_pb2.Signed | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """A request that is well formed; whether its targets can take it is another question."""

    patterns: tuple[str, ...]
    specs: tuple[Spec, ...]
    ttl_ms: int
    idempotency_key: str | None
    body_sha256: bytes
    summary_only: bool


def check_request(request: admin_pb2.IssueCommandsRequest) -> Order:
    """Check the form of an operator's request.

    Raises:
        Refusal: INVALID_ARGUMENT, ARGUMENTS_INVALID, ARGUMENTS_TOO_LARGE, or NO_TARGETS when it names nobody.
    """
    if not request.selector.patterns:
        raise Refusal(Reason.NO_TARGETS, "the request is to nobody: name nodes, a glob, a label key=value, or *")
    if not 1 <= len(request.commands) <= MAX_SPECS:
        raise _wrong(f"the request holds {len(request.commands)} commands; 1 to {MAX_SPECS} are taken: split it")
    if request.ttl_s > MAX_TTL_S:
        raise _wrong(f"a time to live of {request.ttl_s} s is too long; at most {MAX_TTL_S} s (30 days) are taken")
    if len(request.idempotency_key) > MAX_IDEMPOTENCY_KEY_CHARS or "\x00" in request.idempotency_key:
        raise _wrong(f"an idempotency key has at most {MAX_IDEMPOTENCY_KEY_CHARS} characters and no NUL")
    parsed: dict[bytes, dict[str, Any]] = {}
    first_no = 1 if len(request.commands) > 1 else _ALONE
    specs = tuple(_check_spec(no, spec, parsed) for no, spec in enumerate(request.commands, start=first_no))
    return Order(
        patterns=tuple(request.selector.patterns),
        specs=specs,
        ttl_ms=(request.ttl_s or DEFAULT_TTL_S) * 1000,
        idempotency_key=request.idempotency_key or None,
        body_sha256=body_sha256(request),
        summary_only=request.summary_only,
    )


def rank(order: Order) -> str:
    """Whose row an order takes, if it names one node: orders to one node each, in one transaction, are given by it at
    every replica. Before all of these come orders to many, which take theirs in one order each."""
    [pattern, *others] = order.patterns
    return "" if others or _OF_MANY & set(pattern) else pattern


def body_sha256(request: admin_pb2.IssueCommandsRequest) -> bytes:
    """What makes two requests the same one: targets, commands and time to live; not how the answer is to look."""
    body = admin_pb2.IssueCommandsRequest(selector=request.selector, commands=request.commands, ttl_s=request.ttl_s)
    return hashlib.sha256(body.SerializeToString(deterministic=True)).digest()


def check_volume(specs: int, nodes: int) -> Refusal | None:
    """Refuse an issue that would hold up everybody else's writes."""
    if specs * nodes <= MAX_COMMANDS_PER_ISSUE:
        return None
    return _wrong(
        f"{specs} commands to {nodes} nodes make {specs * nodes}; "
        f"at most {MAX_COMMANDS_PER_ISSUE} fit one request: split it"
    )


def _check_spec(no: int, spec: admin_pb2.CommandSpec, parsed: dict[bytes, dict[str, Any]]) -> Spec:
    if not spec.action or len(spec.action) > 128:
        raise _wrong(f"{_which(no)} names no action: write driver.action, at most 128 characters")
    arguments = spec.arguments or b"{}"
    if len(arguments) > MAX_ARGUMENT_BYTES:
        raise Refusal(
            Reason.ARGUMENTS_TOO_LARGE,
            f"the arguments of {_which(no)} have {len(arguments)} bytes; at most {MAX_ARGUMENT_BYTES} are taken",
        )
    value = parsed.get(arguments)
    if value is None:
        value = parsed[arguments] = _parse_arguments(no, arguments)
    return Spec(spec.action, arguments, value, spec.intent if spec.HasField("intent") else None)


def _which(no: int) -> str:
    return "the command" if no == _ALONE else f"command {no}"


def _parse_arguments(no: int, arguments: bytes) -> dict[str, Any]:
    try:
        value = _ARGUMENTS.decode(arguments.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        detail = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise Refusal(Reason.ARGUMENTS_INVALID, f"the arguments of {_which(no)} are no JSON: {detail}") from None
    if not isinstance(value, dict):
        raise Refusal(Reason.ARGUMENTS_INVALID, f"the arguments of {_which(no)} are no JSON object: write {{...}}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object names a key twice")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


# Two readers of one text must see one order: a key given twice, or NaN, is read differently elsewhere.
_ARGUMENTS = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)


def is_final(state: int) -> bool:
    """Whether nothing more comes of a command in this state. A state from a newer server counts as final."""
    return state >= SUCCEEDED


def made_at_ms(command_id: bytes) -> int:
    """When a command was issued, Unix milliseconds, as its id says; 0 for what is no id. Nobody vouches for the id of a
    command that is not here."""
    return int.from_bytes(command_id[:6], "big") if len(command_id) == ID_BYTES else 0


def may_be_forgotten(command_id: bytes, now_ms: int, retention_ms: int) -> bool:
    """Whether a command that is not here may have been, by what its id says."""
    return 0 < made_at_ms(command_id) < now_ms - retention_ms


def expired(not_after_ms: int, now_ms: int) -> bool:
    """Whether a command that was never signed has outlived its time."""
    return now_ms > not_after_ms


class Standing(NamedTuple):
    """Where a command stands, as its row says. Times are Unix milliseconds, 0 for what did not happen."""

    state: int
    accepted_at_ms: int = 0
    started_at_ms: int = 0
    finished_at_ms: int = 0
    output: bytes | None = None
    output_truncated: int = 0
    reason: str = ""
    error: str = ""

    @property
    def declared(self) -> bool:
        """Whether the server itself said "unknown": the one final state that the node's own word may replace."""
        return self.state == INTERRUPTED and self.reason in DECLARED_REASONS


def advance(standing: Standing, report: command_pb2.Report, now_ms: int) -> Standing | None:
    """What a report makes of a command; None when it brings nothing new (docs/protocol.md, "Report").

    Reports may come twice, late, in any order and over an older stream; the outcome is the same.
    """
    state = report.state
    if not ACCEPTED <= state <= INTERRUPTED:
        return None
    final = state >= SUCCEEDED
    if standing.state >= SUCCEEDED:
        if not (final and standing.declared):
            return None
    elif state <= standing.state:
        return None
    accepted_at_ms = standing.accepted_at_ms or _plausible(report.accepted_at_ms, now_ms)
    started_at_ms = standing.started_at_ms or _plausible(report.started_at_ms, now_ms)
    if not final:
        if state == RUNNING:
            started_at_ms = started_at_ms or now_ms
        return Standing(state, accepted_at_ms or now_ms, started_at_ms)
    output = report.output
    reason = _text(report.reason, MAX_REASON_CHARS)
    return Standing(
        state=state,
        accepted_at_ms=accepted_at_ms,
        started_at_ms=started_at_ms,
        finished_at_ms=_plausible(report.finished_at_ms, now_ms) or now_ms,
        output=output[:MAX_OUTPUT_BYTES] or None,
        output_truncated=int(report.output_truncated or len(output) > MAX_OUTPUT_BYTES),
        # The server's own words are not a node's to use: they would make its result replaceable.
        reason=f"NODE_{reason}" if reason in DECLARED_REASONS else reason,
        error=_text(report.error, MAX_ERROR_CHARS),
    )


def declare_unknown(standing: Standing, reason: str, now_ms: int) -> Standing | None:
    """The server says that nobody can know the outcome; None when there is a result already."""
    if is_final(standing.state):
        return None
    return standing._replace(state=INTERRUPTED, finished_at_ms=now_ms, reason=reason, error=DECLARED_ERRORS[reason])


class CancelStep(Enum):
    """What a cancel does with a command (docs/protocol.md, "Cancel")."""

    NOW = "now"  # never signed: cancelled by compare-and-set
    ASK = "ask"  # signed: only the node's answer counts
    NOTHING = "nothing"  # it has ended


def cancel_step(state: int) -> CancelStep:
    """Decide from the state that the row has inside the cancelling transaction."""
    if state == QUEUED:
        return CancelStep.NOW
    return CancelStep.NOTHING if is_final(state) else CancelStep.ASK


def cancel_answer(standing: Standing, outcome: int, now_ms: int) -> Standing | None:
    """What the node's answer to a cancel makes of a command; None when its state does not move by it.

    STOPPING and ALREADY_FINISHED move nothing: the command's own result says what came of it.
    """
    if is_final(standing.state):
        return None
    if outcome == command_pb2.CANCEL_OUTCOME_FORGOTTEN:
        return declare_unknown(standing, FORGOTTEN, now_ms)
    if outcome in (command_pb2.CANCEL_OUTCOME_TOMBSTONED, command_pb2.CANCEL_OUTCOME_CANCELLED):
        return standing._replace(
            state=CANCELLED,
            finished_at_ms=now_ms,
            reason=_CANCELLED_BY[outcome],
            error="cancelled before it started",
        )
    return None


_CANCELLED_BY: dict[int, str] = {
    command_pb2.CANCEL_OUTCOME_TOMBSTONED: "CANCELLED_BEFORE_ACCEPTING",
    command_pb2.CANCEL_OUTCOME_CANCELLED: "CANCELLED_BEFORE_STARTING",
}


def _plausible(at_ms: int, now_ms: int) -> int:
    # The node's clock is corrected by its known offset, but a node may still claim anything.
    return at_ms if 0 <= at_ms <= now_ms else max(0, min(at_ms, now_ms))


def _text(text: str, max_chars: int) -> str:
    # PostgreSQL stores no NUL: one report with it would fail the whole group again and again.
    return text and text[:max_chars].replace("\x00", "\N{REPLACEMENT CHARACTER}")


def _wrong(detail: str) -> Refusal:
    return Refusal(Reason.INVALID_ARGUMENT, detail)
