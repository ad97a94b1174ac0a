"""A command that is cancelled has one truth on both sides, whatever state it was in when the cancel came.

server QUEUED: cancelled there, and the node never hears of it
node unknown: buried (TOMBSTONED), and the command may arrive after all
node ACCEPTED: ends CANCELLED in the commit of the answer; the server has its end from the answer or from a report
node RUNNING or ended: the report alone says what came of it
"""

from collections.abc import Iterator, Sequence
from itertools import permutations

import pytest

from fleet.audit_crosscheck import CrossCheckSummary
from fleet.audit_findings import AuditFinding
from fleet.told_commands import GRACE_MS
from fleet.v1 import admin_pb2
from tests.unit.fleet.test_audit_crosscheck import (
    D1,
    D2,
    NODE,
    accepted,
    begun,
    check,
    ended,
    gap,
    issued,
    later,
    of_chain,
    opened,
    reported,
    row,
)

Row = admin_pb2.AuditEntry


def answered(outcome: str, state: str = "CANCELLED", at_ms: int = 1000, seq: int = 1) -> Row:
    """The server's row about the node's answer."""
    entry = row("r-1", "command.cancelled", {"outcome": outcome, "seq": seq, "state": state}, at_ms)
    entry.actor = f"node:{NODE}"
    return entry


def cancel(outcome: str, seq: int = 1) -> Row:
    """The node's row about the same."""
    return row(f"node:{NODE}", "command.cancel", {"command_id": "0" * 32, "outcome": outcome, "seq": seq})


def orders(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Each order that keeps each chain's own."""
    for order in permutations(range(len(rows))):
        chosen = [rows[place] for place in order]
        if all(
            earlier < later or rows[earlier].writer != rows[later].writer
            for number, earlier in enumerate(order)
            for later in order[number + 1 :]
        ):
            yield chosen


OTHER_REPLICAS = reported(ACCEPTED=[1])
OTHER_REPLICAS.writer = "r-2"


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([issued(1, D1), answered("TOMBSTONED"), cancel("TOMBSTONED"), later()], id="never arrived"),
        pytest.param(
            [issued(1, D1), answered("TOMBSTONED"), answered("TOMBSTONED"), *[cancel("TOMBSTONED")] * 2, later()],
            id="asked twice",
        ),
        pytest.param(
            [
                issued(1, D1),
                answered("TOMBSTONED"),
                cancel("TOMBSTONED"),
                accepted([1], D1),
                ended("CANCELLED", 1),
                later(),
            ],
            id="arrived after all",
        ),
        pytest.param(
            [
                issued(1, D1),
                reported(CANCELLED=[1]),
                cancel("TOMBSTONED"),
                accepted([1], D1),
                ended("CANCELLED", 1),
                cancel("ALREADY_FINISHED"),
                answered("ALREADY_FINISHED"),
                later(),
            ],
            id="arrived, and the first answer was lost",
        ),
        pytest.param(
            [issued(1, D1), answered("CANCELLED"), accepted([1], D1), cancel("CANCELLED"), ended("CANCELLED", 1)],
            id="waited",
        ),
        pytest.param(
            [
                issued(1, D1),
                OTHER_REPLICAS,
                answered("CANCELLED"),
                accepted([1], D1),
                cancel("CANCELLED"),
                ended("CANCELLED", 1),
            ],
            id="waited, and another replica was told so",
        ),
        pytest.param(
            [
                issued(1, D1),
                reported(CANCELLED=[1]),
                answered("CANCELLED"),
                accepted([1], D1),
                cancel("CANCELLED"),
                ended("CANCELLED", 1),
            ],
            id="waited, and the report came first",
        ),
        pytest.param(
            [
                issued(1, D1),
                answered("STOPPING", "RUNNING"),
                reported(SUCCEEDED=[1]),
                accepted([1], D1),
                cancel("STOPPING"),
                ended("SUCCEEDED", 1),
            ],
            id="ran to its end",
        ),
        pytest.param(
            [
                issued(1, D1),
                answered("ALREADY_FINISHED", "SENT"),
                reported(EXPIRED=[1]),
                accepted([1], D1),
                ended("EXPIRED", 1),
                cancel("ALREADY_FINISHED"),
            ],
            id="expired on the node",
        ),
    ],
)
def test_both_sides_tell_it_alike_in_any_order(rows: list[Row]) -> None:
    for order in orders(rows):
        assert check(*order) == CrossCheckSummary(1, 1, 0, 0, ()), [one.kind for one in order]


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([row("r-1", "command.cancel_requested", {"cancelled": [[NODE, 1]], "asked": []})], id="queued"),
        pytest.param([row("r-1", "command.expired", {"seqs": {NODE: [1]}})], id="expired in the queue"),
        pytest.param([answered("FORGOTTEN", "INTERRUPTED"), cancel("FORGOTTEN")], id="forgotten"),
        pytest.param([cancel("TOMBSTONED"), answered("FORGOTTEN", "INTERRUPTED")], id="buried, answer lost, forgotten"),
        pytest.param([cancel("TOMBSTONED")], id="buried, and the answer is on its way"),
        pytest.param([answered("TOMBSTONED", "INTERRUPTED"), cancel("TOMBSTONED")], id="declared unknown before"),
    ],
)
def test_of_what_never_ran_and_one_side_ended_nothing_is_awaited(rows: list[Row]) -> None:
    for order in orders([issued(1, D1, D2), *rows, accepted([2], D2), later()]):
        assert check(*order) == CrossCheckSummary(1, 0, 0, 0, ())


@pytest.mark.parametrize("outcome", ["TOMBSTONED", "CANCELLED"])
def test_what_the_node_has_not_told_of_it_is_awaited_and_then_missing(outcome: str) -> None:
    told = [issued(1, D1, D2), answered(outcome)]
    assert check(*told).awaited == 1
    for behind in (later(), accepted([2], D2)):
        with pytest.raises(AuditFinding) as caught:
            check(*told, behind)
        assert caught.value.code == "MISSING_ON_NODE"
    assert check(*told, gap(1), later()).left_out == 1
    assert check(*told, opened(1), begun(1, 0), of_chain(1, later())).lost == 1


def test_who_accepted_what_was_buried_and_does_not_say_how_it_ended_passes_over_it() -> None:
    arrived = [issued(1, D1), answered("TOMBSTONED"), cancel("TOMBSTONED"), accepted([1], D1)]
    assert check(*arrived).awaited == 1
    with pytest.raises(AuditFinding, match="passes over"):
        check(*arrived, later())


@pytest.mark.parametrize("outcome", ["TOMBSTONED", "CANCELLED"])
def test_a_node_that_ran_what_it_said_was_cancelled_is_found(outcome: str) -> None:
    for order in orders([issued(1, D1), answered(outcome), cancel(outcome), accepted([1], D1), ended("SUCCEEDED", 1)]):
        with pytest.raises(AuditFinding, match="says"):
            check(*order)


@pytest.mark.parametrize("outcome", ["TOMBSTONED", "CANCELLED"])
def test_a_report_beside_the_answer_does_not_hide_that_it_ran(outcome: str) -> None:
    told = [issued(1, D1), answered(outcome), reported(SUCCEEDED=[1]), accepted([1], D1), ended("SUCCEEDED", 1)]
    for order in orders(told):
        with pytest.raises(AuditFinding, match="the server says CANCELLED of seq 1"):
            check(*order)


def test_a_later_chain_may_tell_again_that_it_buried_what_arrived_since() -> None:
    settled = [issued(1, D1), answered("TOMBSTONED"), cancel("TOMBSTONED"), accepted([1], D1), ended("CANCELLED", 1)]
    again = check(*settled, opened(1), begun(1, 0), of_chain(1, cancel("TOMBSTONED")))
    assert (again.commands, again.awaited) == (1, 0)


def test_what_was_buried_before_a_restore_forgot_it_is_lost() -> None:
    assert check(row("restored-1", "database.restored", {}, 2000), cancel("TOMBSTONED")).lost == 1


@pytest.mark.parametrize(
    ("code", "entry"),
    [
        ("SERVER_ROW_MALFORMED", row("r-1", "command.cancelled", {"seq": "1", "outcome": "STOPPING", "state": "SENT"})),
        ("SERVER_ROW_MALFORMED", row("r-1", "command.cancelled", {"seq": 1, "outcome": []})),
        ("NODE_ROW_MALFORMED", row(f"node:{NODE}", "command.cancel", {"seq": -1, "outcome": "TOMBSTONED"})),
        ("NODE_ROW_MALFORMED", row(f"node:{NODE}", "command.cancel", b"[")),
    ],
)
def test_a_row_that_says_something_else_is_found(code: str, entry: Row) -> None:
    with pytest.raises(AuditFinding) as caught:
        check(entry)
    assert caught.value.code == code


def test_the_answer_counts_from_when_the_server_had_it() -> None:
    assert check(issued(1, D1), answered("TOMBSTONED", at_ms=GRACE_MS), later()).awaited == 1
