"""Commands put together from what is encoded once are the commands that Protocol Buffers would have encoded."""

from hypothesis import given
from hypothesis import strategies as st

from fleet.v1 import admin_pb2, command_pb2
from fleet_server.commands import rules
from fleet_server.commands.authority import Authority
from fleet_server.commands.runs import Run
from fleet_server.commands.store import NewRow

_MAX_SEQ = 2**63 - 1
_times = st.integers(0, 2**62)


@given(
    seqs=st.lists(st.integers(1, _MAX_SEQ), min_size=1, max_size=5, unique=True),
    specs=st.lists(st.tuples(st.text(max_size=20), st.binary(max_size=300)), min_size=1, max_size=3),
    actor=st.text(max_size=20),
    issued_at_ms=_times,
    not_after_ms=_times,
    prev_seq=st.integers(0, _MAX_SEQ),
)
def test_a_statement_of_encoded_commands_parses_to_all_that_was_ordered(
    seqs: list[int],
    specs: list[tuple[str, bytes]],
    actor: str,
    issued_at_ms: int,
    not_after_ms: int,
    prev_seq: int,
) -> None:
    rows = [
        NewRow("n", seq, seq.to_bytes(16, "big"), "i", seq % len(specs), not_after_ms, b"", rules.QUEUED, None, 0)
        for seq in seqs
    ]
    said = [admin_pb2.CommandSpec(action=action, arguments=arguments) for action, arguments in specs]
    run = Run("n", 1, Authority("i", actor, issued_at_ms, said, b"", 1), rows)
    expected = command_pb2.CommandStatement(
        cluster_id="c",
        prev_seq=prev_seq,
        commands=[
            command_pb2.Command(
                command_id=row.command_id,
                monotonic_seq=row.seq,
                actor=actor,
                issued_at_ms=issued_at_ms,
                not_after_ms=not_after_ms,
                action=specs[row.spec_no][0],
                arguments=specs[row.spec_no][1],
            )
            for row in rows
        ],
    )
    header = command_pb2.CommandStatement(cluster_id="c", prev_seq=prev_seq).SerializeToString()
    statement = header + b"".join(pending.encoded() for pending in run.pending())
    assert command_pb2.CommandStatement.FromString(statement) == expected
    sizes = [pending.size_bytes for pending in run.pending()]
    assert all(size <= len(pending.encoded()) for size, pending in zip(sizes, run.pending(), strict=True))
