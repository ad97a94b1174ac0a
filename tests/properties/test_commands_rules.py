"""State of a command: forward only, one result, the same in whatever order reports come."""

from hypothesis import given
from hypothesis import strategies as st

from fleet.v1 import command_pb2 as wire
from fleet_server.commands import rules
from fleet_server.commands.rules import Standing

NOW_MS = 1_900_000_000_000
STATES = st.sampled_from([state for state in wire.CommandState.values() if state <= wire.COMMAND_STATE_QUARANTINED])

reports = st.builds(
    wire.Report,
    state=STATES,
    accepted_at_ms=st.integers(-(2**63), 2**63 - 1),
    started_at_ms=st.integers(-(2**63), 2**63 - 1),
    finished_at_ms=st.integers(-(2**63), 2**63 - 1),
    reason=st.sampled_from(["", "TIMEOUT", *rules.DECLARED_REASONS]),
    error=st.text(max_size=20),
    output=st.binary(max_size=20),
    output_truncated=st.booleans(),
)
standings = st.builds(
    lambda state, reason: Standing(state=state, reason=reason),
    st.integers(1, 11),
    st.sampled_from(["", *rules.DECLARED_REASONS]),
)


def fold(standing: Standing, told: list[wire.Report]) -> Standing:
    for report in told:
        standing = rules.advance(standing, report, NOW_MS) or standing
    return standing


@given(standings, st.lists(reports, max_size=12))
def test_a_final_state_stands_but_for_what_the_server_only_declared(start: Standing, told: list[wire.Report]) -> None:
    standing, finals = start, 0
    for report in told:
        moved = rules.advance(standing, report, NOW_MS)
        if moved is None:
            continue
        if rules.is_final(standing.state):
            assert standing.declared
            assert rules.is_final(moved.state)
            finals += 1
        else:
            assert moved.state > standing.state
        assert not moved.declared
        standing = moved
    assert finals <= 1


@given(standings, st.lists(reports, max_size=12))
def test_hearing_it_all_again_changes_nothing(start: Standing, told: list[wire.Report]) -> None:
    once = fold(start, told)
    assert fold(once, told) == once


@given(st.permutations([wire.COMMAND_STATE_ACCEPTED, wire.COMMAND_STATE_RUNNING, wire.COMMAND_STATE_SUCCEEDED] * 2))
def test_any_order_of_true_reports_ends_the_same(states: list[int]) -> None:
    told = [
        wire.Report(state=wire.CommandState.ValueType(state), accepted_at_ms=1, started_at_ms=2, finished_at_ms=3)
        for state in states
    ]
    ended = fold(Standing(rules.SENT), told)
    assert (ended.state, ended.accepted_at_ms, ended.started_at_ms, ended.finished_at_ms) == (rules.SUCCEEDED, 1, 2, 3)


@given(standings, reports)
def test_times_are_never_later_than_now_and_texts_never_hold_nul(start: Standing, report: wire.Report) -> None:
    moved = rules.advance(start, report, NOW_MS)
    if moved is not None:
        assert all(0 <= at_ms <= NOW_MS for at_ms in (moved.accepted_at_ms, moved.started_at_ms, moved.finished_at_ms))
        assert "\x00" not in moved.error


@given(standings, st.integers(0, 6))
def test_a_cancel_answered_moves_open_commands_to_an_end_only(start: Standing, outcome: int) -> None:
    moved = rules.cancel_answer(start, outcome, NOW_MS)
    if moved is not None:
        assert not rules.is_final(start.state)
        assert moved.state in (rules.CANCELLED, rules.INTERRUPTED)


@given(standings)
def test_a_cancel_by_the_server_is_for_what_was_never_signed(start: Standing) -> None:
    assert (rules.cancel_step(start.state) is rules.CancelStep.NOW) == (start.state == rules.QUEUED)
