"""What node and server say of each other: each way in which they may differ has its name, and lag is none of them."""

import json
import tracemalloc
from typing import Any

import pytest

from fleet.audit_crosscheck import (
    MAX_UNISSUED,
    ChainNotOpened,
    CrossCheck,
    CrossCheckSummary,
    LaterChain,
    NeverIssued,
)
from fleet.audit_findings import AuditFinding
from fleet.node_audit import Begun, BegunBecause
from fleet.told_commands import GRACE_MS
from fleet.v1 import admin_pb2

NODE = "n-1"
D1, D2, D3 = ("1" * 64, "2" * 64, "3" * 64)


def row(writer: str, kind: str, detail: Any, at_ms: int = 1000, subject: str = "") -> admin_pb2.AuditEntry:
    raw = detail if isinstance(detail, bytes) else json.dumps(detail).encode()
    return admin_pb2.AuditEntry(writer=writer, number=1, at_ms=at_ms, kind=kind, subject=subject, detail=raw)


def issued(first: int, *digests: str) -> admin_pb2.AuditEntry:
    seqs = {NODE: [first, first + len(digests) - 1]}
    return row("r-1", "command.issued", {"digests": {NODE: digests}, "seqs": seqs})


def reported(at_ms: int = 1000, **states: list[int]) -> admin_pb2.AuditEntry:
    return row("r-1", "command.reported", {"nodes": {NODE: states}}, at_ms)


def accepted(seqs: list[int], *digests: str, at_ms: int = 1000) -> admin_pb2.AuditEntry:
    alike = {"action": "a.b", "actor": "ada", "digests": digests, "seqs": seqs}
    return row(f"node:{NODE}", "command.accepted", {"commands": [alike]}, at_ms)


def ended(state: str, *seqs: int, reason: str = "", at_ms: int = 1000) -> admin_pb2.AuditEntry:
    return row(f"node:{NODE}", "command.ended", {"results": [{"reason": reason, "seqs": seqs, "state": state}]}, at_ms)


def later() -> admin_pb2.AuditEntry:
    return row(f"node:{NODE}", "drain.ordered", {}, 1001 + GRACE_MS)


def gap(items: int) -> admin_pb2.AuditEntry:
    return row(f"node:{NODE}", "audit.gap", {"command.accepted": items})


def check(*rows: admin_pb2.AuditEntry) -> CrossCheckSummary:
    between = CrossCheck()
    for one in rows:
        between.add_row(one)
    return between.finish()


def test_what_both_say_agrees_in_any_order() -> None:
    rows = [issued(1, D1, D2), reported(SUCCEEDED=[1], FAILED=[2]), accepted([1, 2], D1, D2)]
    rows += [ended("SUCCEEDED", 1), ended("FAILED", 2), later()]

    for turn in range(len(rows)):
        assert check(*rows[turn:], *rows[:turn]) == CrossCheckSummary(1, 2, 0, 0, ())


def test_every_finding_has_its_name() -> None:
    both = [issued(1, D1, D2), accepted([1, 2], D1, D2)]
    cases: list[tuple[str, list[admin_pb2.AuditEntry]]] = [
        ("NEVER_ISSUED", [accepted([1], D1)]),
        ("NEVER_ISSUED", [issued(1, D1), accepted([1, 2], D1, D2)]),
        ("NEVER_ISSUED", [issued(1, D1), ended("SUCCEEDED", 3)]),
        ("NEVER_ISSUED", [*both, reported(SUCCEEDED=[1]), ended("SUCCEEDED", 1), accepted([1], D1)]),
        ("DIGEST_DIFFERS", [issued(1, D1), accepted([1], D2)]),
        ("OUTCOME_DIFFERS", [*both, reported(SUCCEEDED=[1]), ended("FAILED", 1)]),
        ("OUTCOME_DIFFERS", [*both, ended("FAILED", 1), reported(SUCCEEDED=[1])]),
        ("MISSING_ON_NODE", [issued(1, D1, D2), reported(SUCCEEDED=[1, 2]), accepted([2], D2)]),
        ("MISSING_ON_NODE", [issued(1, D1), reported(RUNNING=[1]), later()]),
        ("MISSING_ON_NODE", [*both, reported(SUCCEEDED=[1]), later()]),
        ("MISSING_ON_NODE", [issued(1, D1, D2), reported(SUCCEEDED=[1, 2]), gap(1), later()]),
        ("SERVER_ROW_MALFORMED", [row("r-1", "command.issued", b"\xff")]),
        ("SERVER_ROW_MALFORMED", [row("r-1", "command.issued", {"digests": {NODE: [D1]}})]),
        ("SERVER_ROW_MALFORMED", [row("r-1", "command.issued", {"digests": {NODE: [D1]}, "seqs": {NODE: []}})]),
        ("SERVER_ROW_MALFORMED", [issued(1, 7)]),  # type: ignore[arg-type]
        ("SERVER_ROW_MALFORMED", [reported(SUCCEEDED=["1"])]),  # type: ignore[list-item]
        ("SERVER_ROW_MALFORMED", [row("r-1", "command.reported", b"[" * 60_000)]),
        ("SERVER_ROW_MALFORMED", [row("r-1", "node.audit_chain_opened", {"chain": {}}, subject=f"node:{NODE}")]),
        ("NODE_ROW_MALFORMED", [row(f"node:{NODE}", "command.accepted", b"{")]),
        ("NODE_ROW_MALFORMED", [row(f"node:{NODE}", "command.accepted", b"[" * 60_000)]),
        ("NODE_ROW_MALFORMED", [row(f"node:{NODE}", "command.accepted", {"commands": [{"seqs": [1], "digests": []}]})]),
        ("NODE_ROW_MALFORMED", [row(f"node:{NODE}", "command.ended", {"results": "all"})]),
        ("NODE_ROW_MALFORMED", [accepted([1], "1" * 65)]),
        ("NODE_ROW_MALFORMED", [accepted([2**63], D1)]),
        ("NODE_ROW_MALFORMED", [row(f"node:{NODE}", "audit.gap", {"command.accepted": -1})]),
    ]
    for code, rows in cases:
        with pytest.raises(AuditFinding) as caught:
            check(*rows)
        assert caught.value.code == code, f"{code}: {caught.value}"


def test_what_only_a_node_tells_from_before_a_restore_is_lost_and_no_finding() -> None:
    restored = row("restored-1", "database.restored", {}, 2000)
    told = [accepted([1, 2], D1, D2), ended("SUCCEEDED", 1), ended("SUCCEEDED", 2, at_ms=3000)]
    assert check(restored, *told).lost == 2
    known = check(issued(1, D1), restored, *told, reported(SUCCEEDED=[1]), later())
    assert (known.commands, known.lost) == (1, 1)
    with pytest.raises(NeverIssued):
        check(restored, accepted([1], D1, at_ms=2001))
    with pytest.raises(AuditFinding, match="another command"):
        check(issued(1, D1), restored, accepted([1], D2))


def test_one_finding_hides_no_other() -> None:
    other = admin_pb2.AuditEntry()
    other.CopyFrom(accepted([1], D1))
    other.writer = "node:n-2"
    with pytest.raises(AuditFinding, match="and of 1 more"):
        check(accepted([1], D1), other)


def test_lag_is_no_finding() -> None:
    assert check(issued(1, D1)).awaited == 0
    assert check(issued(1, D1), reported(RUNNING=[1])).awaited == 1
    assert check(issued(1, D1), reported(SUCCEEDED=[1])).awaited == 1
    assert check(issued(1, D1), reported(SUCCEEDED=[1]), accepted([1], D1)).awaited == 1
    assert check(issued(1, D1), accepted([1], D1), ended("SUCCEEDED", 1)).awaited == 1
    assert check(issued(1, D1, D2), reported(SUCCEEDED=[2]), accepted([1], D1)).awaited == 1


def test_a_declared_gap_excuses_as_many_as_it_counts() -> None:
    assert check(issued(1, D1, D2), reported(SUCCEEDED=[1, 2]), gap(2), later()).left_out == 2


def test_what_was_too_far_away_was_never_accepted() -> None:
    rows = [issued(9, D1), reported(REJECTED=[9]), ended("REJECTED", 9, reason="SEQ_TOO_FAR"), later()]
    assert check(*rows) == CrossCheckSummary(1, 1, 0, 0, ())


def test_a_node_whose_rows_were_refused_is_named() -> None:
    broken = row("r-1", "node.audit_broken", {"finding": "CHANGED"}, subject=f"node:{NODE}")
    assert check(broken, broken).broken == (NODE,)


def of_chain(number: int, entry: admin_pb2.AuditEntry) -> admin_pb2.AuditEntry:
    entry.writer, entry.number = f"node:{NODE}/{number}", 2
    return entry


def opened(chain: int, at_ms: int = 2000) -> admin_pb2.AuditEntry:
    return row("r-1", "node.audit_chain_opened", {"chain": chain, "told": 0}, at_ms, subject=f"node:{NODE}")


def begun(chain: int, number: int, sha256: bytes = b"", of: int = 0) -> admin_pb2.AuditEntry:
    detail = Begun(of, number, sha256, number, b"", BegunBecause.RESTORED).detail()
    entry = of_chain(chain, row("", "chain.begun", detail, 2001))
    entry.number = 1
    return entry


def test_a_later_chain_is_named_with_what_it_continues_and_what_stands_behind_that() -> None:
    first = [accepted([1], D1), later()]
    first[1].number = 7

    summary = check(issued(1, D1), *first, opened(1), begun(1, 3))

    assert summary.chains == (LaterChain(NODE, 1, "RESTORED", continues=0, number=3, beyond=4),)


def test_a_chain_that_the_server_did_not_open_or_that_continues_nothing_is_found() -> None:
    older = row(f"node:{NODE}", "drain.ordered", {})
    older.hash = b"h" * 32
    for rows in (
        [older, begun(1, 1)],
        [older, opened(2), begun(1, 1)],
        [older, opened(1), begun(1, 2)],
        [older, opened(1), begun(1, 1, b"x" * 32)],
        [older, opened(1), of_first(1, "drain.ended")],
    ):
        with pytest.raises(ChainNotOpened):
            check(*rows)
    check(older, opened(1), begun(1, 1, older.hash))


def of_first(chain: int, kind: str) -> admin_pb2.AuditEntry:
    entry = begun(chain, 1)
    entry.kind = kind
    return entry


def test_what_a_machine_cannot_know_of_its_node_is_lost_and_no_finding() -> None:
    """Seq 1 was reported and never told in the chain; of seq 2 the end; seq 3 the restored machine ends otherwise."""
    rows = [issued(1, D1, D2, D3), accepted([2, 3], D2, D3), reported(SUCCEEDED=[1, 2, 3]), opened(1), begun(1, 1)]
    rows += [of_chain(1, ended("INTERRUPTED", 3)), of_chain(1, later())]

    assert check(*rows).lost == 3
    for finding in ([*rows[:3], later()], [*rows[:4], later()]):
        with pytest.raises(AuditFinding, match="passes over"):
            check(*finding)


def test_what_was_reported_after_the_machine_was_let_in_is_not_lost() -> None:
    rows = [issued(1, D1), opened(1, at_ms=500), begun(1, 0), reported(SUCCEEDED=[1]), of_chain(1, later())]
    with pytest.raises(AuditFinding, match="passes over"):
        check(*rows)


def test_a_later_chain_may_tell_again_what_is_settled_and_nothing_else() -> None:
    settled = [issued(1, D1), accepted([1], D1), reported(SUCCEEDED=[1]), ended("SUCCEEDED", 1), opened(1), begun(1, 1)]

    again = check(*settled, of_chain(1, accepted([1], D1)), of_chain(1, ended("INTERRUPTED", 1)))

    assert (again.commands, again.awaited, again.lost) == (1, 0, 0)
    for lie in (accepted([1], D2), accepted([2], D1), ended("SUCCEEDED", 2)):
        with pytest.raises(AuditFinding) as caught:
            check(*settled, of_chain(1, lie))
        assert caught.value.code == "NEVER_ISSUED"


def test_a_node_that_makes_up_commands_without_end_fills_no_readers_memory() -> None:
    between = CrossCheck()
    per_row, other = 4096, "n-2"

    def grow(rows: int, first: int) -> None:
        for turn in range(rows):
            seqs = list(range(first + turn * per_row, first + (turn + 1) * per_row))
            between.add_row(accepted(seqs, *[D1] * per_row))

    grow(MAX_UNISSUED // per_row + 1, 0)
    tracemalloc.start()
    grow(20, 10**6)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 500_000  # 82,000 commands would take 20 MB
    between.add_row(row(f"node:{other}", "command.accepted", {"commands": [{"seqs": [1], "digests": [D1]}]}))
    with pytest.raises(NeverIssued, match=f"more than {MAX_UNISSUED} commands .*; and of 1 more"):
        between.finish()


def test_commands_that_were_issued_are_bounded_by_nothing_but_the_server() -> None:
    between = CrossCheck()
    count = MAX_UNISSUED + 10
    seqs = list(range(1, count + 1))
    between.add_row(issued(1, *[D1] * count))
    between.add_row(accepted(seqs, *[D1] * count))
    assert between.finish().nodes == 1
