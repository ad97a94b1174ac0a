"""What the node's audit says of commands: one row for all that were accepted, and one for all that ended. Pure.

A row names what a command was by its digest, and how it ended by state and reason: no arguments and no outputs, which
may hold secrets. Commands that are alike share what is the same about them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from fleet.node_audit import JSON, MAX_DETAIL_BYTES, NodeAuditKind, encode_detail
from fleet.v1 import command_pb2, trust_pb2
from fleet_node.commands.entry import Entry
from fleet_node.commands.rules import STATE_NAMES

T = TypeVar("T")

_ITEMS = 256
_EMPTY_OUTPUTS = (b"", b"{}")


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """A row before it has its place in the chain.

    Args:
        kind: what happened.
        at_ms: server time as the node knows it, Unix milliseconds.
        detail: from `encode_detail`.
        items: what a gap counts it as, should it not be kept.
        opens_chain: chain that the node is to begin from here on; 0 when this says nothing of it.
        owner_pin: that is told, in hexadecimal; empty when this says nothing of it.
    """

    kind: NodeAuditKind
    at_ms: int
    detail: bytes
    items: int = 1
    opens_chain: int = 0
    owner_pin: str = ""


def event(kind: NodeAuditKind, at_ms: int, detail: dict[str, JSON]) -> AuditEvent:
    """An event; a detail that no row may hold is cut to its keys that are no text."""
    encoded = encode_detail(detail)
    if len(encoded) > MAX_DETAIL_BYTES:
        encoded = encode_detail({key: value for key, value in detail.items() if not isinstance(value, str)})
    return AuditEvent(kind, at_ms, encoded)


def cancel(
    statement: command_pb2.CancelStatement, outcome: command_pb2.CancelOutcome.ValueType, at_ms: int
) -> AuditEvent:
    """What a cancel came to."""
    detail: dict[str, JSON] = {
        "command_id": statement.command_id[:16].hex(),
        "outcome": command_pb2.CancelOutcome.Name(outcome).removeprefix("CANCEL_OUTCOME_"),
        "seq": statement.monotonic_seq,
    }
    return event(NodeAuditKind.COMMAND_CANCEL, at_ms, detail)


def intent_used(entry: Entry, intent_id: bytes, people: Sequence[str]) -> AuditEvent:
    """People's intent let a protected action run."""
    detail: dict[str, JSON] = {
        "action": entry.action,
        "intent_id": intent_id.hex(),
        "people": people,
        "seq": entry.seq,
    }
    return event(NodeAuditKind.INTENT_USED, entry.accepted_at_ms, detail)


def owner_pinned(pin: str, former: str, at_ms: int) -> AuditEvent:
    """Another owner is pinned than the chain has told."""
    told = event(NodeAuditKind.OWNER_PINNED, at_ms, {"former": former, "pin": pin})
    return replace(told, owner_pin=pin)


def floor(statement: trust_pb2.FloorStatement, last_accepted_seq: int, at_ms: int) -> AuditEvent:
    """A floor was raised above what was accepted or above intents that would have counted, or names another chain."""
    detail: dict[str, JSON] = {
        "audit_chain": statement.audit_chain,
        "intents_after_ms": statement.intents_after_ms,
        "last_accepted_seq": last_accepted_seq,
        "seq_floor": statement.seq_floor,
    }
    return replace(event(NodeAuditKind.FLOOR_RAISED, at_ms, detail), opens_chain=statement.audit_chain)


def accepted(entries: Sequence[Entry]) -> Iterator[AuditEvent]:
    """Rows about commands that were accepted, in seq order."""
    for some, detail in _fitting(entries, _accepted):
        yield AuditEvent(NodeAuditKind.COMMAND_ACCEPTED, some[-1].accepted_at_ms, detail, len(some))


def ended(reports: Sequence[command_pb2.Report]) -> Iterator[AuditEvent]:
    """Rows about commands that ended, from their final reports."""
    for some, detail in _fitting(reports, _ended):
        yield AuditEvent(NodeAuditKind.COMMAND_ENDED, some[-1].finished_at_ms, detail, len(some))


def _fitting(
    items: Sequence[T], describe: Callable[[Sequence[T]], dict[str, JSON]]
) -> Iterator[tuple[Sequence[T], bytes]]:
    for start in range(0, len(items), _ITEMS):
        yield from _halved(items[start : start + _ITEMS], describe)


def _halved(
    some: Sequence[T], describe: Callable[[Sequence[T]], dict[str, JSON]]
) -> Iterator[tuple[Sequence[T], bytes]]:
    """In as many rows as it takes: the server refuses one that is too long, and all that is chained behind it. One
    item always fits (`MAX_ACTION_CHARS`, `MAX_ACTOR_CHARS`)."""
    detail = encode_detail(describe(some))
    if len(detail) <= MAX_DETAIL_BYTES or len(some) == 1:
        yield some, detail
        return
    middle = len(some) // 2
    yield from _halved(some[:middle], describe)
    yield from _halved(some[middle:], describe)


def _accepted(entries: Sequence[Entry]) -> dict[str, JSON]:
    alike: dict[tuple[str, str], tuple[list[int], list[str]]] = {}
    for entry in entries:
        seqs, digests = alike.setdefault((entry.action, entry.actor), ([], []))
        seqs.append(entry.seq)
        digests.append(entry.digest.hex())
    return {
        "commands": [
            {"action": action, "actor": actor, "digests": digests, "seqs": seqs}
            for (action, actor), (seqs, digests) in alike.items()
        ]
    }


def _ended(reports: Sequence[command_pb2.Report]) -> dict[str, JSON]:
    alike: dict[tuple[command_pb2.CommandState.ValueType, str], tuple[list[int], dict[str, str]]] = {}
    for report in reports:
        seqs, outputs = alike.setdefault((report.state, report.reason), ([], {}))
        seqs.append(report.monotonic_seq)
        output = report.output
        if output not in _EMPTY_OUTPUTS:
            outputs[str(report.monotonic_seq)] = hashlib.sha256(output).hexdigest()
    results: list[JSON] = []
    for (state, reason), (seqs, outputs) in alike.items():
        result: dict[str, JSON] = {"reason": reason, "seqs": seqs, "state": STATE_NAMES[state]}
        results.append({**result, "outputs": outputs} if outputs else result)
    return {"results": results}
