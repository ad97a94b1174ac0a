"""Which statement and which command a node takes: the tables of docs/protocol.md, "Commands", and their properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.envelope import Domain, Signer
from fleet.sequence import (
    MAX_COMMANDS_PER_STATEMENT,
    MAX_SEQ_STEP,
    StatementReason,
    StatementRefusal,
    StreamContext,
    Verdict,
    check_cancel,
    check_statement,
    command_digest,
    judge_command,
)
from fleet.v1 import command_pb2, trust_pb2

CONTEXT = StreamContext("cluster-1", "node-1", b"\x07" * 32)
NOW_MS = 1_900_000_000_000
LAST = 40


def command(seq: int, *, not_after_ms: int = NOW_MS + 60_000) -> command_pb2.Command:
    return command_pb2.Command(
        command_id=seq.to_bytes(16, "big"),
        monotonic_seq=seq,
        actor="anna",
        issued_at_ms=NOW_MS,
        not_after_ms=not_after_ms,
        action="host.info",
        arguments=b"{}",
        intent=trust_pb2.Signed(statement=b"intent"),
    )


def statement(*seqs: int, prev_seq: int = LAST) -> command_pb2.CommandStatement:
    return command_pb2.CommandStatement(
        cluster_id=CONTEXT.cluster_id,
        node_id=CONTEXT.node_id,
        stream_binding=CONTEXT.stream_binding,
        prev_seq=prev_seq,
        commands=[command(seq) for seq in seqs],
    )


def changed(base: command_pb2.CommandStatement, **fields: object) -> command_pb2.CommandStatement:
    other = command_pb2.CommandStatement()
    other.CopyFrom(base)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def with_commands(*commands: command_pb2.Command) -> command_pb2.CommandStatement:
    made = statement()
    made.commands.extend(commands)
    return made


TWICE = command(42)
TWICE.command_id = command(41).command_id
SHORT_ID = command(41)
SHORT_ID.command_id = b"short"

GOOD_STATEMENTS = {
    "the next one": statement(41),
    "as many as may stand in one": statement(*range(41, 41 + MAX_COMMANDS_PER_STATEMENT)),
    "seqs that were given to others leave holes": statement(50, 77),
    "sent again after a lost answer": statement(39, 40, 41, prev_seq=38),
    "the first ever": statement(1, prev_seq=0),
}
REFUSED_STATEMENTS = {
    "another cluster": (changed(statement(41), cluster_id="cluster-2"), StatementReason.WRONG_CLUSTER),
    "no cluster": (changed(statement(41), cluster_id=""), StatementReason.WRONG_CLUSTER),
    "another node": (changed(statement(41), node_id="node-2"), StatementReason.WRONG_NODE),
    "withheld on an older stream": (changed(statement(41), stream_binding=b"\x06" * 32), StatementReason.WRONG_STREAM),
    "bound to no stream": (changed(statement(41), stream_binding=b""), StatementReason.WRONG_STREAM),
    "something before it was withheld": (statement(42, prev_seq=41), StatementReason.GAP),
    "no command": (statement(), StatementReason.MALFORMED),
    "one command too many": (
        statement(*range(41, 42 + MAX_COMMANDS_PER_STATEMENT)),
        StatementReason.MALFORMED,
    ),
    "seqs that fall": (statement(42, 41), StatementReason.MALFORMED),
    "a seq twice": (statement(41, 41), StatementReason.MALFORMED),
    "a seq at prev_seq": (statement(40), StatementReason.MALFORMED),
    "seq 0": (statement(0, prev_seq=0), StatementReason.MALFORMED),
    "a command id twice": (with_commands(command(41), TWICE), StatementReason.MALFORMED),
    "a command id that is none": (with_commands(SHORT_ID), StatementReason.MALFORMED),
    "out of order and after a gap": (statement(43, 42, prev_seq=41), StatementReason.MALFORMED),
}


@pytest.mark.parametrize("good", GOOD_STATEMENTS.values(), ids=GOOD_STATEMENTS.keys())
def test_statements_that_are_taken(good: command_pb2.CommandStatement) -> None:
    check_statement(good, CONTEXT, LAST)


@pytest.mark.parametrize(("refused", "reason"), REFUSED_STATEMENTS.values(), ids=REFUSED_STATEMENTS.keys())
def test_statements_that_are_refused(refused: command_pb2.CommandStatement, reason: StatementReason) -> None:
    with pytest.raises(StatementRefusal) as caught:
        check_statement(refused, CONTEXT, LAST)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("cluster_id", "cluster-2", StatementReason.WRONG_CLUSTER),
        ("node_id", "node-2", StatementReason.WRONG_NODE),
        ("stream_binding", b"\x06" * 32, StatementReason.WRONG_STREAM),
        ("command_id", b"short", StatementReason.MALFORMED),
        ("monotonic_seq", 0, StatementReason.MALFORMED),
    ],
)
def test_cancels(field: str, value: object, reason: StatementReason) -> None:
    cancel = command_pb2.CancelStatement(
        cluster_id=CONTEXT.cluster_id,
        node_id=CONTEXT.node_id,
        stream_binding=CONTEXT.stream_binding,
        command_id=bytes(16),
        monotonic_seq=41,
    )
    check_cancel(cancel, CONTEXT)
    setattr(cancel, field, value)
    with pytest.raises(StatementRefusal) as caught:
        check_cancel(cancel, CONTEXT)
    assert caught.value.reason is reason


def journal_of(held: command_pb2.Command) -> tuple[bytes, bytes]:
    return held.command_id, command_digest(held)


def other_arguments(seq: int) -> command_pb2.Command:
    other = command(seq)
    other.arguments = b'{"all":true}'
    return other


# seq, journal at that seq, tombstoned, milliseconds past not_after, objection -> verdict
VERDICTS = {
    "new": (41, None, False, 0, None, Verdict.ACCEPT),
    "new after holes": (99, None, False, 0, None, Verdict.ACCEPT),
    "in its last millisecond": (41, None, False, 0, None, Verdict.ACCEPT),
    "same again": (40, journal_of(command(40)), False, 0, None, Verdict.REPLAY),
    "same again, late": (40, journal_of(command(40)), False, 10**9, None, Verdict.REPLAY),
    "same again, refused by a policy made since": (40, journal_of(command(40)), False, 0, "policy", Verdict.REPLAY),
    "another command at a used seq": (40, journal_of(other_arguments(40)), False, 0, None, Verdict.SEQ_CONFLICT),
    "another id at a used seq": (
        40,
        (bytes(16), command_digest(command(40))),
        False,
        0,
        None,
        Verdict.SEQ_CONFLICT,
    ),
    "a used seq that the journal trimmed": (3, None, False, 0, None, Verdict.FORGOTTEN),
    "a used seq with a tombstone left": (3, None, True, 0, None, Verdict.FORGOTTEN),
    "as far ahead as may be": (LAST + MAX_SEQ_STEP, None, False, 0, None, Verdict.ACCEPT),
    "fast-forwarded": (LAST + MAX_SEQ_STEP + 1, None, False, 0, None, Verdict.TOO_FAR),
    "fast-forwarded and expired": (LAST + MAX_SEQ_STEP + 1, None, False, 1, "policy", Verdict.TOO_FAR),
    "cancelled before it came": (41, None, True, 0, None, Verdict.TOMBSTONED),
    "cancelled before it came, and expired": (41, None, True, 1, None, Verdict.TOMBSTONED),
    "expired by a millisecond": (41, None, False, 1, None, Verdict.EXPIRED),
    "expired and objected to": (41, None, False, 1, "unknown action", Verdict.EXPIRED),
    "objected to": (41, None, False, 0, "unknown action", Verdict.REJECTED),
}


@pytest.mark.parametrize(
    ("seq", "journaled", "tombstoned", "late_ms", "objection", "verdict"), VERDICTS.values(), ids=VERDICTS.keys()
)
def test_verdicts(
    seq: int,
    journaled: tuple[bytes, bytes] | None,
    tombstoned: bool,
    late_ms: int,
    objection: str | None,
    verdict: Verdict,
) -> None:
    judged = command(seq)
    found = judge_command(
        judged,
        last_accepted_seq=LAST,
        journaled=journaled,
        tombstoned=tombstoned,
        server_now_ms=judged.not_after_ms + late_ms,
        objection=objection,
    )
    assert found is verdict


def test_what_moves_last_accepted() -> None:
    advancing = {verdict for verdict in Verdict if verdict.advances}
    assert advancing == {Verdict.ACCEPT, Verdict.EXPIRED, Verdict.REJECTED, Verdict.TOMBSTONED}


@given(
    seq=st.integers(1, 2**64 - 1),
    last=st.integers(0, 2**64 - 1),
    known=st.booleans(),
    tombstoned=st.booleans(),
    now_ms=st.integers(0, 2**50),
    objection=st.none() | st.just("no"),
)
def test_no_seq_is_ever_run_twice_or_far_ahead(
    seq: int, last: int, known: bool, tombstoned: bool, now_ms: int, objection: str | None
) -> None:
    judged = command(seq)
    verdict = judge_command(
        judged,
        last_accepted_seq=last,
        journaled=journal_of(judged) if known else None,
        tombstoned=tombstoned,
        server_now_ms=now_ms,
        objection=objection,
    )
    if verdict is Verdict.ACCEPT:
        assert last < seq <= last + MAX_SEQ_STEP
        assert not tombstoned
        assert objection is None
        assert now_ms <= judged.not_after_ms
    assert verdict.advances == (last < seq <= last + MAX_SEQ_STEP)


@given(
    sent=st.lists(
        st.lists(st.integers(1, 30), min_size=1, max_size=5, unique=True).map(sorted), min_size=1, max_size=8
    ),
    prevs=st.lists(st.integers(0, 30), min_size=8, max_size=8),
)
def test_whatever_is_sent_each_seq_runs_at_most_once(sent: list[list[int]], prevs: list[int]) -> None:
    """A node fed with arbitrary statements, replayed and reordered, accepts growing seqs only."""
    journal: dict[int, tuple[bytes, bytes]] = {}
    accepted: list[int] = []
    last = 0
    for seqs, prev_seq in zip(sent, prevs, strict=False):
        offered = statement(*seqs, prev_seq=prev_seq)
        try:
            check_statement(offered, CONTEXT, last)
        except StatementRefusal:
            continue
        for one in offered.commands:
            verdict = judge_command(
                one,
                last_accepted_seq=last,
                journaled=journal.get(one.monotonic_seq),
                tombstoned=False,
                server_now_ms=NOW_MS,
                objection=None,
            )
            if verdict.advances:
                last = one.monotonic_seq
                journal[last] = journal_of(one)
                accepted.append(last)
    assert accepted == sorted(set(accepted))


# --- digest ----------------------------------------------------------------------------------------------------------


def test_the_digest_outlives_signing_again() -> None:
    first, second = Signer.from_private_bytes(b"\x01" * 32), Signer.from_private_bytes(b"\x02" * 32)
    digests = set()
    for signer, binding in ((first, b"\x01" * 32), (second, b"\x02" * 32)):
        sent = changed(statement(41), stream_binding=binding, signed_at_ms=len(digests))
        signed = signer.sign(Domain.COMMAND, sent.SerializeToString())
        digests.add(command_digest(command_pb2.CommandStatement.FromString(signed.statement).commands[0]))
    cosigned = command(41)
    first.add(cosigned.intent, Domain.INTENT)
    digests.add(command_digest(cosigned))
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("command_id", b"\x01" * 16),
        ("monotonic_seq", 42),
        ("actor", "ben"),
        ("issued_at_ms", NOW_MS + 1),
        ("not_after_ms", NOW_MS + 60_001),
        ("action", "host.infos"),
        ("arguments", b"{ }"),
    ],
)
def test_the_digest_depends_on_every_field(field: str, value: object) -> None:
    base, other = command(41), command(41)
    setattr(other, field, value)
    assert command_digest(other) != command_digest(base)


def test_the_digest_depends_on_the_intent() -> None:
    other = command(41)
    other.intent.statement = b"another intent"
    assert command_digest(other) != command_digest(command(41))


def test_the_digest_covers_every_field_of_a_command() -> None:
    """A field added to the wire must be added to the digest, or two different commands would be one."""
    assert [field.name for field in command_pb2.Command.DESCRIPTOR.fields] == [
        "command_id",
        "monotonic_seq",
        "actor",
        "issued_at_ms",
        "not_after_ms",
        "action",
        "arguments",
        "intent",
    ]


@given(text=st.text(st.characters(codec="ascii"), min_size=2, max_size=20), data=st.data())
def test_no_byte_moves_between_fields(text: str, data: st.DataObject) -> None:
    cut, other_cut = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, len(text)))
    first, second = command(41), command(41)
    first.action, first.arguments = text[:cut], text[cut:].encode()
    second.action, second.arguments = text[:other_cut], text[other_cut:].encode()
    assert (command_digest(first) == command_digest(second)) == (cut == other_cut)
