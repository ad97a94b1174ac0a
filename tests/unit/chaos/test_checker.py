"""The checker: of evidence without a fault it says nothing, and each violation that is planted is found."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.chaos.checker import RULES, check
from tests.chaos.evidence import CommandRow, Evidence, Issue, Journal, LogLine, NodeRow

REPEATABLE = "chaos.repeat"


def row(seq: int, state: str, *, action: str = "simulated.work", device: str | None = None) -> CommandRow:
    return CommandRow("node", seq, bytes([seq]), "issue", state, "", action, device)


ROWS = [
    row(1, "SUCCEEDED"),
    row(2, "FAILED"),
    row(3, "EXPIRED"),
    row(4, "CANCELLED"),
    row(5, "INTERRUPTED"),
    row(6, "SUCCEEDED", action=REPEATABLE),
    row(7, "SUCCEEDED", device="arm"),
    row(8, "SUCCEEDED", device="arm"),
    row(9, "CANCELLED"),
    row(10, "REJECTED"),
]
LINES = [(1, ""), (1, "SUCCEEDED"), (2, ""), (2, "FAILED"), (4, ""), (4, "CANCELLED"), (5, ""), (6, ""), (6, "")]
LINES += [(6, "SUCCEEDED"), (7, ""), (7, "SUCCEEDED"), (8, ""), (8, "SUCCEEDED")]


def whole() -> Evidence:
    """Nothing is wrong with it."""
    issue = Issue("key", "operator", "all", attempts=2, unknown=1, issue_id="issue")
    issue.commands = {each.command_id: (each.node_id, each.seq) for each in ROWS}
    issue.told = {each.command_id: each.state for each in ROWS}
    call = Issue("roll-call", "owner", "all", issue_id="issue", commands={bytes([1]): ("node", 1)})
    call.told = {bytes([1]): "SUCCEEDED"}
    return Evidence(
        issues=[issue],
        roll_call=call,
        commands=list(ROWS),
        nodes=[NodeRow("node", "n-1", "ACTIVE", "NONE", 10, 10)],
        issue_counts={"issue": 10},
        runs={"node": [LogLine(bytes([seq]), state) for seq, state in LINES]},
        journals={"node": Journal(10, {each.seq: (each.command_id, each.state) for each in ROWS}, 0)},
        repeatable=frozenset({REPEATABLE}),
    )


def lines(evidence: Evidence, *more: tuple[int, str], without: tuple[int, str] | None = None) -> None:
    kept = [line for line in evidence.runs["node"] if (line.command_id[0], line.state) != without]
    evidence.runs = {"node": [*kept, *(LogLine(bytes([seq]), state) for seq, state in more)]}


def stands(evidence: Evidence, seq: int, state: str) -> None:
    evidence.commands = [replace(each, state=state) if each.seq == seq else each for each in evidence.commands]


def journal(evidence: Evidence, **changes: object) -> None:
    evidence.journals = {"node": replace(evidence.journals["node"], **changes)}  # type: ignore[arg-type]


def node(evidence: Evidence, **changes: object) -> None:
    evidence.nodes = [replace(evidence.nodes[0], **changes)]  # type: ignore[arg-type]


def swap_devices(evidence: Evidence) -> None:
    first, second = (evidence.runs["node"][-4:-2], evidence.runs["node"][-2:])
    evidence.runs = {"node": [*evidence.runs["node"][:-4], *second, *first]}


def overlap_devices(evidence: Evidence) -> None:
    one, one_end, two, two_end = evidence.runs["node"][-4:]
    evidence.runs = {"node": [*evidence.runs["node"][:-4], one, two, one_end, two_end]}


def drop_row(evidence: Evidence) -> None:
    evidence.commands = [each for each in evidence.commands if each.seq != 3]


def move_row(evidence: Evidence) -> None:
    evidence.commands = [replace(each, issue_id="other") if each.seq == 3 else each for each in evidence.commands]


def answer_nothing(evidence: Evidence) -> None:
    evidence.issues = [*evidence.issues, Issue("lost", "operator", "one", attempts=3, unknown=3)]


def forget_answer(evidence: Evidence) -> None:
    del evidence.issues[0].commands[bytes([3])]


PLANTED: list[tuple[str, Callable[[Evidence], object]]] = [
    ("nothing_lost", drop_row),
    ("nothing_lost", move_row),
    ("nothing_lost", answer_nothing),
    ("nothing_refused_wrongly", lambda it: setattr(it.issues[0], "refusal", "NO_TARGETS")),
    ("nothing_refused_wrongly", lambda it: it.issues[0].refused.update(node="SUSPENDED")),
    ("nothing_issued_twice", forget_answer),
    ("nothing_issued_twice", lambda it: it.issues[0].differing.append("two answers")),
    ("nothing_issued_twice", lambda it: setattr(it, "issue_counts", {"issue": 11})),
    ("everything_ended", lambda it: stands(it, 3, "SENT")),
    ("everything_ended", lambda it: stands(it, 3, "QUARANTINED")),
    ("nothing_ran_twice", lambda it: lines(it, (1, ""), (1, "SUCCEEDED"))),
    ("nothing_ran_twice", lambda it: lines(it, (5, ""))),
    ("ran_on_its_node", lambda it: lines(it, (77, ""))),
    ("ran_on_its_node", lambda it: setattr(it, "runs", {"other": it.runs["node"]})),
    ("told_as_it_ran", lambda it: stands(it, 3, "SUCCEEDED")),
    ("told_as_it_ran", lambda it: stands(it, 2, "SUCCEEDED")),
    ("told_as_it_ran", lambda it: stands(it, 1, "FAILED")),
    ("told_as_it_ran", lambda it: stands(it, 1, "EXPIRED")),
    ("told_as_it_ran", lambda it: stands(it, 1, "REJECTED")),
    ("told_as_it_ran", lambda it: stands(it, 1, "CANCELLED")),
    ("told_as_it_ran", lambda it: lines(it, without=(6, "SUCCEEDED"))),
    ("told_as_it_ran", lambda it: stands(it, 6, "CANCELLED")),
    ("unknown_is_declared", lambda it: stands(it, 5, "CANCELLED")),
    ("unknown_is_declared", lambda it: lines(it, without=(1, "SUCCEEDED"))),
    ("seqs_are_dense", drop_row),
    ("seqs_are_dense", lambda it: node(it, last_seq=11)),
    ("seqs_are_dense", lambda it: node(it, last_seq=9)),
    ("devices_saw_order", swap_devices),
    ("devices_saw_order", overlap_devices),
    ("operators_were_told_the_truth", lambda it: stands(it, 3, "REJECTED")),
    ("operators_were_told_the_truth", lambda it: it.issues[0].changed.append("first this, then that")),
    ("everybody_answers", lambda it: setattr(it, "roll_call", None)),
    ("everybody_answers", lambda it: it.roll_call.told.clear()),  # type: ignore[union-attr]
    ("journals_agree", lambda it: setattr(it, "journals", {})),
    ("journals_agree", lambda it: stands(it, 3, "REJECTED")),
    ("journals_agree", lambda it: journal(it, unreported=1)),
    ("journals_agree", lambda it: journal(it, last_accepted_seq=11)),
    ("journals_agree", lambda it: journal(it, last_accepted_seq=7)),
    ("journals_agree", lambda it: journal(it, states={1: (b"other", "SUCCEEDED")})),
    ("nodes_are_members", lambda it: node(it, state="QUARANTINED")),
    ("nodes_are_members", lambda it: node(it, drain_state="DRAINED")),
    ("audits_are_whole", lambda it: setattr(it, "audit", ["CHANGED"])),
    ("audits_are_whole", lambda it: journal(it, findings=["TRUNCATED"])),
    ("no_internal_errors", lambda it: setattr(it, "errors", ["INTERNAL"])),
    ("logs_are_clean", lambda it: setattr(it, "faults", ["unexpected_error"])),
    ("evidence_is_whole", lambda it: setattr(it, "unread", ["a journal"])),
    ("evidence_is_whole", lambda it: setattr(it, "commands", [])),
]


def test_of_whole_evidence_it_says_nothing() -> None:
    assert check(whole()) == []


@pytest.mark.parametrize(("rule", "plant"), PLANTED, ids=[f"{rule}-{no}" for no, (rule, _) in enumerate(PLANTED)])
def test_what_is_planted_is_found(rule: str, plant: Callable[[Evidence], object]) -> None:
    evidence = whole()
    plant(evidence)
    assert rule in {violation.rule for violation in check(evidence)}


def test_every_rule_has_something_planted() -> None:
    assert {rule.__name__ for rule in RULES} == {rule for rule, _ in PLANTED}


def test_what_ran_again_and_was_then_stopped_is_cancelled() -> None:
    evidence = whole()
    lines(evidence, (6, "CANCELLED"), without=(6, "SUCCEEDED"))
    stands(evidence, 6, "CANCELLED")
    assert "told_as_it_ran" not in {violation.rule for violation in check(evidence)}


def test_an_interrupted_run_on_a_device_stands_in_nobodys_way() -> None:
    evidence = whole()
    lines(evidence, without=(7, "SUCCEEDED"))
    stands(evidence, 7, "INTERRUPTED")
    assert "devices_saw_order" not in {violation.rule for violation in check(evidence)}
