"""monotonic_seq, whatever is sent: no command runs twice, none runs out of order, a gap runs nothing."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

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

HERE = StreamContext("cluster", "node", b"s" * 32)
NOW_MS = 1_000_000
seqs = st.integers(1, 12)


def command_id(seq: int, variant: int) -> bytes:
    """One of the ids that a command of this seq may have: two commands of a statement never share one."""
    return seq.to_bytes(15, "big") + bytes([variant])


@st.composite
def commands(draw: st.DrawFn, seq: st.SearchStrategy[int] = seqs) -> command_pb2.Command:
    number = draw(seq)
    return command_pb2.Command(
        command_id=command_id(number, draw(st.sampled_from(b"ab"))),
        monotonic_seq=number,
        actor="ada",
        not_after_ms=draw(st.sampled_from([NOW_MS - 1, NOW_MS, NOW_MS + 1])),
        action="a.b",
        arguments=draw(st.sampled_from([b"{}", b'{"x":1}'])),
    )


@st.composite
def statements(draw: st.DrawFn) -> command_pb2.CommandStatement:
    chosen = sorted(draw(st.lists(seqs, min_size=1, max_size=5, unique=True)))
    return command_pb2.CommandStatement(
        cluster_id=HERE.cluster_id,
        node_id=HERE.node_id,
        stream_binding=HERE.stream_binding,
        prev_seq=draw(st.integers(0, chosen[0] - 1)),
        commands=[draw(commands(st.just(seq))) for seq in chosen],
    )


@dataclass
class ModelNode:
    """The two tables as a node applies them, with a journal that may forget."""

    last_accepted_seq: int = 0
    journal: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    tombstones: set[tuple[int, bytes]] = field(default_factory=set)
    runs: list[int] = field(default_factory=list)

    def take(self, statement: command_pb2.CommandStatement, objection: str | None) -> None:
        try:
            check_statement(statement, HERE, self.last_accepted_seq)
        except StatementRefusal as refusal:
            assert refusal.reason == StatementReason.GAP
            assert statement.prev_seq > self.last_accepted_seq
            return
        for command in statement.commands:
            seq = command.monotonic_seq
            verdict = judge_command(
                command,
                last_accepted_seq=self.last_accepted_seq,
                journaled=self.journal.get(seq) if seq <= self.last_accepted_seq else None,
                tombstoned=(seq, command.command_id) in self.tombstones,
                server_now_ms=NOW_MS,
                objection=objection,
            )
            if verdict.advances:
                assert seq > self.last_accepted_seq
                self.last_accepted_seq = seq
                self.journal[seq] = (command.command_id, command_digest(command))
            else:
                assert seq <= self.last_accepted_seq
            if verdict is Verdict.ACCEPT:
                assert command.not_after_ms >= NOW_MS
                assert objection is None
                assert (seq, command.command_id) not in self.tombstones
                self.runs.append(seq)


events = st.one_of(
    st.tuples(st.just("statement"), statements(), st.sampled_from([None, None, "POLICY"])),
    st.tuples(st.just("tombstone"), seqs, st.sampled_from(b"ab")),
    st.tuples(st.just("forget"), seqs, st.none()),
)


@given(st.lists(events, max_size=30))
def test_whatever_arrives_each_seq_runs_at_most_once_and_in_order(history: list[tuple[str, object, object]]) -> None:
    node = ModelNode()
    for kind, what, extra in history:
        before = (node.last_accepted_seq, len(node.runs))
        if kind == "statement":
            assert isinstance(what, command_pb2.CommandStatement)
            node.take(what, extra if isinstance(extra, str) else None)
        elif kind == "tombstone":
            assert isinstance(what, int)
            assert isinstance(extra, int)
            if what > node.last_accepted_seq:
                node.tombstones.add((what, command_id(what, extra)))
        elif isinstance(what, int):
            node.journal.pop(what, None)
        assert (node.last_accepted_seq, len(node.runs)) >= before

    assert node.runs == sorted(set(node.runs))


@given(statements())
def test_the_same_statement_again_runs_nothing(statement: command_pb2.CommandStatement) -> None:
    node = ModelNode(last_accepted_seq=statement.prev_seq)
    node.take(statement, None)
    runs = list(node.runs)

    node.take(statement, None)

    assert node.runs == runs


@given(commands(), st.integers(0, 20))
def test_a_used_seq_is_a_replay_only_when_every_byte_is_the_same(command: command_pb2.Command, above: int) -> None:
    other = command_pb2.Command()
    other.CopyFrom(command)
    other.arguments += b" "
    judged = {
        name: judge_command(
            command,
            last_accepted_seq=command.monotonic_seq + above,
            journaled=journaled,
            tombstoned=True,
            server_now_ms=NOW_MS,
            objection="POLICY",
        )
        for name, journaled in {
            "same": (command.command_id, command_digest(command)),
            "other": (command.command_id, command_digest(other)),
            "other id": (b"z" * 16, command_digest(command)),
            "none": None,
        }.items()
    }
    assert judged == {
        "same": Verdict.REPLAY,
        "other": Verdict.SEQ_CONFLICT,
        "other id": Verdict.SEQ_CONFLICT,
        "none": Verdict.FORGOTTEN,
    }


@given(st.integers(0, 2**62), st.integers(1, 2**62))
def test_a_step_beyond_the_limit_never_advances(last_accepted_seq: int, step: int) -> None:
    command = command_pb2.Command(
        command_id=b"a" * 16, monotonic_seq=last_accepted_seq + step, not_after_ms=NOW_MS, action="a.b"
    )
    verdict = judge_command(
        command,
        last_accepted_seq=last_accepted_seq,
        journaled=None,
        tombstoned=False,
        server_now_ms=NOW_MS,
        objection=None,
    )
    assert verdict is (Verdict.TOO_FAR if step > MAX_SEQ_STEP else Verdict.ACCEPT)


FIELDS = {
    "command_id": b"z" * 16,
    "monotonic_seq": 99,
    "actor": "eve",
    "issued_at_ms": 5,
    "not_after_ms": 6,
    "action": "a.c",
    "arguments": b"[]",
    "intent": trust_pb2.Signed(statement=b"i"),
}


@given(commands(), st.sampled_from(sorted(FIELDS)))
def test_every_field_counts_in_the_digest(command: command_pb2.Command, name: str) -> None:
    changed = command_pb2.Command(**{one.name: value for one, value in command.ListFields()} | {name: FIELDS[name]})

    assert command_digest(changed) != command_digest(command)


@given(st.text(max_size=5), st.text(max_size=5), st.text(max_size=5), st.text(max_size=5))
def test_bytes_cannot_move_between_the_digests_fields(actor: str, action: str, actor2: str, action2: str) -> None:
    same = (actor, action) == (actor2, action2)
    first = command_pb2.Command(actor=actor, action=action)
    second = command_pb2.Command(actor=actor2, action=action2)

    assert (command_digest(first) == command_digest(second)) == same


@given(st.lists(st.integers(1, 60), max_size=40), st.booleans(), st.integers(0, 13))
def test_only_growing_seqs_make_a_statement(chosen: list[int], in_order: bool, prev_seq: int) -> None:
    chosen = sorted(set(chosen)) if in_order else chosen
    statement = command_pb2.CommandStatement(
        cluster_id=HERE.cluster_id,
        node_id=HERE.node_id,
        stream_binding=HERE.stream_binding,
        prev_seq=prev_seq,
        commands=[
            command_pb2.Command(command_id=command_id(number, 0), monotonic_seq=seq)
            for number, seq in enumerate(chosen)
        ],
    )
    good = 1 <= len(chosen) <= MAX_COMMANDS_PER_STATEMENT and chosen == sorted(set(chosen)) and chosen[0] > prev_seq
    if good:
        check_statement(statement, HERE, last_accepted_seq=prev_seq)
        return
    with pytest.raises(StatementRefusal) as refused:
        check_statement(statement, HERE, last_accepted_seq=prev_seq)
    assert refused.value.reason == StatementReason.MALFORMED


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("cluster_id", "other", StatementReason.WRONG_CLUSTER),
        ("node_id", "other", StatementReason.WRONG_NODE),
        ("stream_binding", b"x" * 32, StatementReason.WRONG_STREAM),
        ("command_id", b"short", StatementReason.MALFORMED),
        ("monotonic_seq", 0, StatementReason.MALFORMED),
    ],
)
def test_a_cancel_names_this_node_this_stream_and_one_command(
    name: str, value: object, reason: StatementReason
) -> None:
    fields: dict[str, object] = {
        "cluster_id": HERE.cluster_id,
        "node_id": HERE.node_id,
        "stream_binding": HERE.stream_binding,
        "command_id": b"c" * 16,
        "monotonic_seq": 4,
    }
    check_cancel(command_pb2.CancelStatement(**fields), HERE)  # type: ignore[arg-type]

    with pytest.raises(StatementRefusal) as refused:
        check_cancel(command_pb2.CancelStatement(**fields | {name: value}), HERE)  # type: ignore[arg-type]
    assert refused.value.reason == reason


@pytest.mark.parametrize("ids", [[b"short"], [b"a" * 17], [b""], [b"a" * 16, b"a" * 16]])
def test_command_ids_are_whole_and_differ(ids: list[bytes]) -> None:
    statement = command_pb2.CommandStatement(
        cluster_id=HERE.cluster_id,
        node_id=HERE.node_id,
        stream_binding=HERE.stream_binding,
        commands=[command_pb2.Command(command_id=one, monotonic_seq=seq) for seq, one in enumerate(ids, start=1)],
    )
    with pytest.raises(StatementRefusal) as refused:
        check_statement(statement, HERE, last_accepted_seq=0)
    assert refused.value.reason == StatementReason.MALFORMED
