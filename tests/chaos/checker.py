"""What must hold after chaos (design: once, or known to be unknown). Pure: each rule compares two witnesses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

from tests.chaos.evidence import FINAL, CommandRow, Evidence, LogLine, Violation

_NEVER_RAN = frozenset({"EXPIRED", "REJECTED"})
_ENDED_WITH = {"SUCCEEDED": "SUCCEEDED", "FAILED": "FAILED"}


class Case:
    """The evidence, arranged for the rules."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.by_id = {row.command_id: row for row in evidence.commands}

    @cached_property
    def by_node(self) -> dict[str, dict[int, CommandRow]]:
        """Rows of each node by seq."""
        found: dict[str, dict[int, CommandRow]] = defaultdict(dict)
        for row in self.evidence.commands:
            found[row.node_id][row.seq] = row
        return found

    @cached_property
    def lines(self) -> dict[bytes, list[LogLine]]:
        """Lines of each command, in their order; a node runs what is its own (`ran_on_its_node`)."""
        found: dict[bytes, list[LogLine]] = defaultdict(list)
        for lines in self.evidence.runs.values():
            for line in lines:
                found[line.command_id].append(line)
        return found

    def may_repeat(self, row: CommandRow) -> bool:
        """Whether its action declares that it may run again."""
        return row.action in self.evidence.repeatable

    def begun(self, row: CommandRow) -> int:
        """How often it began to run."""
        return sum(not line.state for line in self.lines[row.command_id])

    def ended(self, row: CommandRow) -> list[str]:
        """How its runs ended."""
        return [line.state for line in self.lines[row.command_id] if line.state]


def nothing_lost(case: Case) -> Iterator[str]:
    """What was answered stands in the tables as it was answered; what had no answer was asked for until it had one."""
    for issue in case.evidence.issues:
        if not issue.is_answered:
            yield f"issue {issue.key} of {issue.operator} ({issue.wanted}): no answer after {issue.attempts} attempts"
        for command_id, (node_id, seq) in issue.commands.items():
            row = case.by_id.get(command_id)
            if row is None:
                yield f"issue {issue.key}: {command_id.hex()} was answered for {node_id} seq {seq} and stands nowhere"
            elif (row.node_id, row.seq, row.issue_id) != (node_id, seq, issue.issue_id):
                yield f"issue {issue.key}: {_name(row)} was answered for {node_id} seq {seq} of {issue.issue_id}"


def nothing_refused_wrongly(case: Case) -> Iterator[str]:
    """Everything that was asked for was in order, so it was taken; a node's full queue alone is a reason."""
    for issue in case.evidence.issues:
        if issue.refusal:
            yield f"issue {issue.key} ({issue.wanted}) was refused: {issue.refusal}"
        for node_id, reason in issue.refused.items():
            if reason != "QUEUE_FULL":
                yield f"issue {issue.key} ({issue.wanted}) was refused for {node_id}: {reason}"


def nothing_issued_twice(case: Case) -> Iterator[str]:
    """A key has one answer, and nothing stands in the tables that nobody was told of."""
    answered = {command_id for issue in case.evidence.issues for command_id in issue.commands}
    for issue in case.evidence.issues:
        yield from issue.differing
    for row in case.evidence.commands:
        if row.command_id not in answered:
            yield f"{_name(row)} of issue {row.issue_id} stands in the tables, and no operator was told of it"
    counted: dict[str, int] = defaultdict(int)
    for row in case.evidence.commands:
        counted[row.issue_id] += 1
    for issue_id, count in case.evidence.issue_counts.items():
        if counted[issue_id] != count:
            yield f"issue {issue_id} says that it holds {count} commands, and {counted[issue_id]} stand there"


def everything_ended(case: Case) -> Iterator[str]:
    """No command is left open, and none was set aside as forged."""
    for row in case.evidence.commands:
        if row.state not in FINAL:
            yield f"{_name(row)} stands as {row.state}"


def nothing_ran_twice(case: Case) -> Iterator[str]:
    """At most once, unless the action says that it may run again."""
    for row in case.evidence.commands:
        if not case.may_repeat(row) and case.begun(row) > 1:
            yield f"{_name(row)} ran {case.begun(row)} times"


def ran_on_its_node(case: Case) -> Iterator[str]:
    """A node runs what was issued to it, and nothing else."""
    for node_id, lines in case.evidence.runs.items():
        for command_id in {line.command_id for line in lines}:
            row = case.by_id.get(command_id)
            if row is None:
                yield f"{node_id} ran {command_id.hex()}, which was never issued"
            elif row.node_id != node_id:
                yield f"{node_id} ran {_name(row)}, which was issued to {row.node_id}"


def told_as_it_ran(case: Case) -> Iterator[str]:
    """The state that stands is what the driver's log says, or says that nobody knows."""
    for row in case.evidence.commands:
        begun, ended = case.begun(row), case.ended(row)
        what = f"{_name(row)} stands as {row.state} {row.reason}; begun {begun} times, ended as {ended}"
        if row.state in _ENDED_WITH:
            completed = ended.count(_ENDED_WITH[row.state])
            if not completed or not (case.may_repeat(row) or completed == begun == 1):
                yield what
        elif not _did_not_run(row.state, begun, ended, may_repeat=case.may_repeat(row)):
            yield what


def unknown_is_declared(case: Case) -> Iterator[str]:
    """A run that began and has no end is INTERRUPTED, unless it ran again to an end."""
    for row in case.evidence.commands:
        if case.begun(row) > len(case.ended(row)) and row.state != "INTERRUPTED" and not case.may_repeat(row):
            yield f"{_name(row)} began and was never seen to end, and stands as {row.state} {row.reason}"


def seqs_are_dense(case: Case) -> Iterator[str]:
    """Each node's seqs are 1 to n, and n is what the node's row says."""
    for node in case.evidence.nodes:
        seqs = sorted(case.by_node[node.node_id])
        if seqs != list(range(1, node.last_seq + 1)):
            missing = sorted(set(range(1, node.last_seq + 1)) - set(seqs))
            beyond = [seq for seq in seqs if seq > node.last_seq]
            yield f"{node.name}: last seq {node.last_seq}, {len(seqs)} rows, missing {missing}, beyond it {beyond}"


def devices_saw_order(case: Case) -> Iterator[str]:
    """Runs on one device begin in seq order, each after the end of the one before, unless that was interrupted."""
    for node_id, lines in case.evidence.runs.items():
        last: dict[str, CommandRow] = {}
        running: dict[str, CommandRow] = {}
        for line in lines:
            row = case.by_id.get(line.command_id)
            if row is None or row.device is None:
                continue
            if line.state:
                running.pop(row.device, None)
                continue
            before = last.get(row.device)
            if before is not None and before.seq > row.seq:
                yield f"{node_id} began {_name(row)} on {row.device} after {_name(before)}"
            under_way = running.get(row.device)
            if under_way is not None and under_way.state != "INTERRUPTED":
                yield f"{node_id} began {_name(row)} on {row.device} while {_name(under_way)} ran"
            last[row.device] = running[row.device] = row


def operators_were_told_the_truth(case: Case) -> Iterator[str]:
    """What an operator was told was final stands."""
    for issue in case.evidence.issues:
        yield from issue.changed
        for command_id, state in issue.told.items():
            row = case.by_id.get(command_id)
            if row is not None and row.state != state:
                yield f"{issue.operator} was told that {_name(row)} is {state}, and it stands as {row.state}"


def everybody_answers(case: Case) -> Iterator[str]:
    """The last issue, made when all was healed, went to every node, and each did it."""
    call = case.evidence.roll_call
    if call is None:
        yield "there was no roll call"
        return
    answered = {
        node_id for command_id, (node_id, _) in call.commands.items() if call.told.get(command_id) == "SUCCEEDED"
    }
    for node in case.evidence.nodes:
        if node.node_id not in answered:
            yield f"{node.name} did not answer the roll call; refused: {call.refused.get(node.node_id, 'no')}"


def journals_agree(case: Case) -> Iterator[str]:
    """A node's journal and the server's tables say the same; the node holds nothing back."""
    for node in case.evidence.nodes:
        journal = case.evidence.journals.get(node.node_id)
        if journal is None:
            yield f"{node.name} has no journal"
            continue
        rows = case.by_node[node.node_id]
        if journal.last_accepted_seq > node.last_seq:
            yield f"{node.name} accepted seq {journal.last_accepted_seq}, and {node.last_seq} were issued"
        if journal.unreported:
            yield f"{node.name} holds {journal.unreported} reports that the server has not acknowledged"
        for seq, (command_id, state) in journal.states.items():
            row = rows.get(seq)
            if row is None or row.command_id != command_id:
                yield f"{node.name} has {command_id.hex()} as seq {seq}, which the server never issued"
            elif row.state != state:
                yield f"{node.name} has {_name(row)} as {state}, and the server as {row.state}"
        for row in rows.values():
            ran = case.begun(row)
            if ran and row.seq > journal.last_accepted_seq:
                yield f"{node.name} ran {_name(row)} and accepted only {journal.last_accepted_seq}"


def nodes_are_members(case: Case) -> Iterator[str]:
    """Nobody was taken for a clone or left drained: chaos is no reason for a person to have to come."""
    for node in case.evidence.nodes:
        if node.state != "ACTIVE" or node.drain_state != "NONE":
            yield f"{node.name} is {node.state}, drain {node.drain_state}"


def audits_are_whole(case: Case) -> Iterator[str]:
    """Every chain verifies, the replicas' and the nodes', here and on the nodes."""
    yield from case.evidence.audit
    for node_id, journal in case.evidence.journals.items():
        for finding in journal.findings:
            yield f"the audit in the journal of {node_id}: {finding}"


def no_internal_errors(case: Case) -> Iterator[str]:
    """No operator is told of an internal error."""
    yield from case.evidence.errors


def logs_are_clean(case: Case) -> Iterator[str]:
    """No program logs an error that a fault of the schedule does not explain, or ends by itself."""
    yield from case.evidence.faults


def evidence_is_whole(case: Case) -> Iterator[str]:
    """A witness who is not heard proves nothing."""
    yield from case.evidence.unread
    if not case.evidence.commands:
        yield "no command was issued"


RULES: Sequence[Callable[[Case], Iterator[str]]] = (
    nothing_lost,
    nothing_refused_wrongly,
    nothing_issued_twice,
    everything_ended,
    nothing_ran_twice,
    ran_on_its_node,
    told_as_it_ran,
    unknown_is_declared,
    seqs_are_dense,
    devices_saw_order,
    operators_were_told_the_truth,
    everybody_answers,
    journals_agree,
    nodes_are_members,
    audits_are_whole,
    no_internal_errors,
    logs_are_clean,
    evidence_is_whole,
)


def check(evidence: Evidence) -> list[Violation]:
    """Everything that is wrong; empty when all rules hold."""
    case = Case(evidence)
    return [Violation(rule.__name__, what) for rule in RULES for what in rule(case)]


def _did_not_run(state: str, begun: int, ended: Sequence[str], *, may_repeat: bool) -> bool:
    """It never began, as its state says; what was cancelled may have begun, and its last run ended so."""
    if state == "CANCELLED":
        return ended == ["CANCELLED"] * begun or (may_repeat and ended[-1:] == ["CANCELLED"])
    return state not in _NEVER_RAN or not begun


def _name(row: CommandRow) -> str:
    return f"command {row.command_id.hex()} ({row.action}, {row.node_id} seq {row.seq})"
