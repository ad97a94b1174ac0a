"""monotonic_seq: which statement and which command a node takes. Pure; both tables of docs/protocol.md, "Commands".

A statement is judged whole first: nothing in it changes state unless it is meant for this node, on this stream, and
follows what came before. Then each command is judged by itself, in seq order, against the journal.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from fleet.v1 import command_pb2, trust_pb2

MAX_COMMANDS_PER_STATEMENT = 32
MAX_SEQ_STEP = 2**32
MAX_DETAIL_CHARS = 500
_DIGEST_DOMAIN = b"fleet.v1/command-digest\x00"
# A number's own length, the number, and the length of the field after it: once a command, so in one call each.
_LENGTH = struct.Struct(">I").pack
_SEQ_AND_LENGTH = struct.Struct(">IQI").pack
_TIMES_AND_LENGTH = struct.Struct(">IqIqI").pack


class StatementReason(StrEnum):
    """Why a whole statement is refused; travels in `statement_refused`."""

    BAD_SIGNATURE = "BAD_SIGNATURE"
    UNKNOWN_KEY = "UNKNOWN_KEY"
    KEY_NOT_YET_VALID = "KEY_NOT_YET_VALID"
    KEY_EXPIRED = "KEY_EXPIRED"
    KEY_REVOKED = "KEY_REVOKED"
    WRONG_SITE = "WRONG_SITE"
    BUNDLE_EXPIRED = "BUNDLE_EXPIRED"
    MALFORMED = "MALFORMED"
    WRONG_CLUSTER = "WRONG_CLUSTER"
    WRONG_NODE = "WRONG_NODE"
    WRONG_STREAM = "WRONG_STREAM"
    GAP = "GAP"
    JOURNAL_UNAVAILABLE = "JOURNAL_UNAVAILABLE"


class Verdict(StrEnum):
    """What becomes of one command of a good statement."""

    ACCEPT = "ACCEPT"  # journal, then run
    REPLAY = "REPLAY"  # report the journaled state again
    SEQ_CONFLICT = "SEQ_CONFLICT"  # another command held this seq: nothing runs, loud on both sides
    FORGOTTEN = "FORGOTTEN"  # its journal entry is trimmed: nothing runs
    TOO_FAR = "TOO_FAR"  # journaled as REJECTED; last accepted stays
    EXPIRED = "EXPIRED"  # journaled, last accepted advances
    REJECTED = "REJECTED"  # journaled, last accepted advances
    TOMBSTONED = "TOMBSTONED"  # a cancel came first: journaled as CANCELLED, last accepted advances

    @property
    def advances(self) -> bool:
        """Whether last accepted moves to this command's seq."""
        return self in _ADVANCING


_ADVANCING = frozenset({Verdict.ACCEPT, Verdict.EXPIRED, Verdict.REJECTED, Verdict.TOMBSTONED})


class StatementRefusal(Exception):
    """A whole statement is refused; no command's state changed. `detail` is cut: it may quote what the other side made
    as long as a frame."""

    def __init__(self, reason: StatementReason, detail: str) -> None:
        detail = detail[:MAX_DETAIL_CHARS]
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class StreamContext:
    """What a statement must name to be meant for this stream.

    Args:
        cluster_id: the node's cluster.
        node_id: the node.
        stream_binding: SHA-256 of the stream's own proof; a statement withheld on one stream is worth nothing on the
        next.
    """

    cluster_id: str
    node_id: str
    stream_binding: bytes


def check_statement(
    statement: command_pb2.CommandStatement,
    context: StreamContext,
    last_accepted_seq: int,
) -> None:
    """Check a verified and parsed statement as a whole.

    Raises:
        StatementRefusal: not for this cluster, node or stream; malformed; or something before it was withheld (GAP).
    """
    _check_addressee(statement.cluster_id, statement.node_id, statement.stream_binding, context)
    commands = statement.commands
    if not 1 <= len(commands) <= MAX_COMMANDS_PER_STATEMENT:
        raise StatementRefusal(
            StatementReason.MALFORMED,
            f"{len(commands)} commands; 1 to {MAX_COMMANDS_PER_STATEMENT} are allowed",
        )
    _check_order(commands, statement.prev_seq)
    if statement.prev_seq > last_accepted_seq:
        raise StatementRefusal(
            StatementReason.GAP,
            f"follows seq {statement.prev_seq}, but the last accepted is {last_accepted_seq}: "
            "something in between was withheld",
        )


def check_cancel(statement: command_pb2.CancelStatement, context: StreamContext) -> None:
    """Check a verified and parsed cancel.

    Raises:
        StatementRefusal: not for this cluster, node or stream, or malformed.
    """
    _check_addressee(statement.cluster_id, statement.node_id, statement.stream_binding, context)
    if len(statement.command_id) != 16 or statement.monotonic_seq == 0:
        raise StatementRefusal(StatementReason.MALFORMED, "a cancel names a 16-byte command id and its seq")


def check_floor(statement: trust_pb2.FloorStatement, *, cluster_id: str, node_id: str, last_accepted_seq: int) -> None:
    """Check a verified and parsed floor.

    Raises:
        StatementRefusal: not for this cluster or node, or so far ahead that it would strand the node.
    """
    if statement.cluster_id != cluster_id:
        raise StatementRefusal(StatementReason.WRONG_CLUSTER, f"is for cluster {statement.cluster_id!r}")
    if statement.node_id != node_id:
        raise StatementRefusal(StatementReason.WRONG_NODE, f"is for node {statement.node_id!r}")
    if statement.seq_floor > last_accepted_seq + MAX_SEQ_STEP:
        raise StatementRefusal(StatementReason.MALFORMED, "is further ahead than any seq may be")


def judge_command(
    command: command_pb2.Command,
    *,
    last_accepted_seq: int,
    journaled: tuple[bytes, bytes] | None,
    tombstoned: bool,
    server_now_ms: int,
    objection: str | None,
) -> Verdict:
    """Decide about one command of a good statement.

    Args:
        command: as parsed.
        last_accepted_seq: highest seq that the journal advanced to, earlier commands of the same statement included.
        journaled: (command_id, digest) that the journal holds at this seq, or None.
        tombstoned: a cancel for exactly this command_id and seq came first.
        server_now_ms: server time, measured in this boot.
        objection: why action, arguments or policy refuse it, or None.
    """
    seq = command.monotonic_seq
    if seq <= last_accepted_seq:
        if journaled is None:
            return Verdict.FORGOTTEN
        same = journaled == (command.command_id, command_digest(command))
        return Verdict.REPLAY if same else Verdict.SEQ_CONFLICT
    if seq - last_accepted_seq > MAX_SEQ_STEP:
        return Verdict.TOO_FAR
    if tombstoned:
        return Verdict.TOMBSTONED
    if server_now_ms > command.not_after_ms:
        return Verdict.EXPIRED
    if objection is not None:
        return Verdict.REJECTED
    return Verdict.ACCEPT


def command_digest(command: command_pb2.Command) -> bytes:
    """SHA-256 over what makes the command this one, each field as 4-byte big-endian length and bytes.

    It stays the same when the command is signed again for another stream or with another key.
    """
    command_id, arguments, intent = command.command_id, command.arguments, command.intent.statement
    actor, action = command.actor.encode(), command.action.encode()
    framed = (
        _DIGEST_DOMAIN,
        _LENGTH(len(command_id)),
        command_id,
        _SEQ_AND_LENGTH(8, command.monotonic_seq, len(actor)),
        actor,
        _TIMES_AND_LENGTH(8, command.issued_at_ms, 8, command.not_after_ms, len(action)),
        action,
        _LENGTH(len(arguments)),
        arguments,
        _LENGTH(len(intent)),
        intent,
    )
    return hashlib.sha256(b"".join(framed)).digest()


def digest_of_alike(command: command_pb2.Command) -> Callable[[bytes, int], bytes]:
    """`command_digest` of commands that differ from this one by their id and seq alone, which the result takes."""
    actor, action = command.actor.encode(), command.action.encode()
    actor_length = len(actor)
    alike = actor + _TIMES_AND_LENGTH(8, command.issued_at_ms, 8, command.not_after_ms, len(action)) + action
    for part in (command.arguments, command.intent.statement):
        alike += _LENGTH(len(part)) + part

    def digest(command_id: bytes, seq: int) -> bytes:
        own = _DIGEST_DOMAIN + _LENGTH(len(command_id)) + command_id + _SEQ_AND_LENGTH(8, seq, actor_length)
        return hashlib.sha256(own + alike).digest()

    return digest


def _check_addressee(cluster_id: str, node_id: str, stream_binding: bytes, context: StreamContext) -> None:
    if cluster_id != context.cluster_id:
        raise StatementRefusal(
            StatementReason.WRONG_CLUSTER,
            f"is for cluster {cluster_id!r}, this is {context.cluster_id!r}",
        )
    if node_id != context.node_id:
        raise StatementRefusal(
            StatementReason.WRONG_NODE,
            f"is for node {node_id!r}, this is {context.node_id!r}",
        )
    if stream_binding != context.stream_binding:
        raise StatementRefusal(
            StatementReason.WRONG_STREAM,
            "is bound to another stream: it was withheld or replayed",
        )


def _check_order(commands: Sequence[command_pb2.Command], prev_seq: int) -> None:
    previous = prev_seq
    ids = set()
    for command in commands:
        seq, command_id = command.monotonic_seq, command.command_id
        if seq <= previous:
            raise StatementRefusal(StatementReason.MALFORMED, "seqs do not grow from prev_seq on")
        if len(command_id) != 16:
            raise StatementRefusal(StatementReason.MALFORMED, "a command id has 16 bytes")
        ids.add(command_id)
        previous = seq
    if len(ids) != len(commands):
        raise StatementRefusal(StatementReason.MALFORMED, "a command id stands twice in the statement")
