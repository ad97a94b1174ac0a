"""What is known after a run, by four witnesses: operators, the server's tables, drivers' logs, nodes' journals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

FINAL = frozenset({"SUCCEEDED", "FAILED", "EXPIRED", "CANCELLED", "REJECTED", "INTERRUPTED"})


@dataclass(slots=True)
class Issue:
    """What one operator asked for once, and was told.

    Args:
        key: idempotency key.
        operator: who asked.
        wanted: what for, in words.
        attempts: how often it was asked for.
        unknown: attempts without an answer.
        issue_id: of the answer; empty without one.
        commands: (node id, seq) by command id, as answered.
        refused: reasons by node id, as answered.
        refusal: reason for which all of it was refused.
        differing: answers to the same key that were not the first one.
        told: final state by command id, as the operator who watched was told.
        changed: a final state that was told as another one later.
    """

    key: str
    operator: str
    wanted: str
    attempts: int = 0
    unknown: int = 0
    issue_id: str = ""
    commands: dict[bytes, tuple[str, int]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    refusal: str = ""
    differing: list[str] = field(default_factory=list)
    told: dict[bytes, str] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)

    @property
    def is_answered(self) -> bool:
        """Whether the operator knows what became of it."""
        return bool(self.issue_id or self.refusal)


@dataclass(frozen=True, slots=True)
class CommandRow:
    """One command as the server's table has it at the end."""

    node_id: str
    seq: int
    command_id: bytes
    issue_id: str
    state: str
    reason: str
    action: str
    device: str | None


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One node as the server's table has it at the end."""

    node_id: str
    name: str
    state: str
    drain_state: str
    last_seq: int
    last_accepted_seq: int


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a node's drivers: `state` is empty when a run begins."""

    command_id: bytes
    state: str


@dataclass(frozen=True, slots=True)
class Journal:
    """A node's journal at the end.

    Args:
        last_accepted_seq: how far it accepted.
        states: (command id, state) by seq.
        unreported: reports that the server has not acknowledged.
        findings: what its own audit's verification found.
    """

    last_accepted_seq: int
    states: Mapping[int, tuple[bytes, str]]
    unreported: int
    findings: Sequence[str] = ()


@dataclass(slots=True)
class Evidence:
    """All of it.

    Args:
        issues: of every operator.
        roll_call: the last of them, to every node.
        commands, nodes: rows of the server.
        issue_counts: commands by issue id, as the issue's own row says.
        runs: lines of the drivers' log by node id, in their order.
        journals: by node id.
        repeatable: actions that may run again.
        errors: answers to operators that no operator should get, in words.
        faults: errors in logs of programs, and programs that ended by themselves, in words.
        audit: what the verification of the whole audit found, in words.
        unread: evidence that could not be read, in words.
    """

    issues: Sequence[Issue] = ()
    roll_call: Issue | None = None
    commands: Sequence[CommandRow] = ()
    nodes: Sequence[NodeRow] = ()
    issue_counts: Mapping[str, int] = field(default_factory=dict)
    runs: Mapping[str, Sequence[LogLine]] = field(default_factory=dict)
    journals: Mapping[str, Journal] = field(default_factory=dict)
    repeatable: frozenset[str] = frozenset()
    errors: Sequence[str] = ()
    faults: Sequence[str] = ()
    audit: Sequence[str] = ()
    unread: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must never be.

    Args:
        rule: stable name.
        what: which command, node or issue, and what the witnesses say of it.
    """

    rule: str
    what: str
