"""Rows about keys and people's words: every event, and refusals as often as a disk can bear."""

import pytest

from fleet.node_audit import JSON, NodeAuditKind
from fleet_node.link.key_audit import MAX_ALIKE, ROW_EVERY_S, KeyAudit
from tests.fakes.clock import MockClock

TAKEN, REFUSED = NodeAuditKind.PEOPLE_TAKEN, NodeAuditKind.PEOPLE_REFUSED


class Heard:
    """An audit that remembers."""

    def __init__(self) -> None:
        self.rows: list[tuple[NodeAuditKind, dict[str, JSON]]] = []

    def audit(self, kind: NodeAuditKind, **detail: JSON) -> None:
        self.rows.append((kind, detail))


@pytest.fixture
def clock() -> MockClock:
    return MockClock()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def audit(clock: MockClock, heard: Heard) -> KeyAudit:
    audit = KeyAudit(clock)
    audit.audited_by(heard)
    return audit


def test_every_event_is_a_row_also_what_was_found_before_the_audit_was_there(clock: MockClock, heard: Heard) -> None:
    audit = KeyAudit(clock)
    audit.tell(TAKEN, policy=1)
    audit.refuse(REFUSED, "ROLLBACK")
    audit.audited_by(heard)
    audit.tell(TAKEN, policy=2)
    audit.tell(TAKEN, policy=2)
    assert heard.rows == [
        (TAKEN, {"policy": 1}),
        (REFUSED, {"reason": "ROLLBACK", "count": 1}),
        (TAKEN, {"policy": 2}),
        (TAKEN, {"policy": 2}),
    ]


async def test_refusals_that_repeat_are_counted_and_the_latest_is_told(
    audit: KeyAudit, heard: Heard, clock: MockClock
) -> None:
    for number in range(1000):
        audit.refuse(REFUSED, "ROLLBACK", detail=f"policy {number}")
    assert heard.rows == [(REFUSED, {"reason": "ROLLBACK", "detail": "policy 0", "count": 1})]
    await clock.advance(ROW_EVERY_S)
    audit.refuse(REFUSED, "ROLLBACK", detail="policy 1000")
    assert heard.rows[1:] == [(REFUSED, {"reason": "ROLLBACK", "detail": "policy 1000", "count": 1000})]
    audit.settle()
    assert len(heard.rows) == 2
    audit.refuse(REFUSED, "ROLLBACK", detail="policy 1001")
    audit.settle()
    assert heard.rows[2:] == [(REFUSED, {"reason": "ROLLBACK", "detail": "policy 1001", "count": 1})]


def test_what_is_not_alike_is_told_apart(audit: KeyAudit, heard: Heard) -> None:
    kind = NodeAuditKind.CREDENTIAL_REFUSED
    for subject, reason in (("api_key", "DISK"), ("node_keys", "DISK"), ("node_keys", "PINNED"), ("api_key", "DISK")):
        audit.refuse(kind, reason, subject=subject)
    assert [(row["subject"], row["reason"]) for _, row in heard.rows] == [
        ("api_key", "DISK"),
        ("node_keys", "DISK"),
        ("node_keys", "PINNED"),
    ]


def test_reasons_that_a_server_makes_up_fill_nothing(audit: KeyAudit, heard: Heard) -> None:
    for number in range(10 * MAX_ALIKE):
        audit.refuse(REFUSED, f"reason {number} " + "x" * 1000)
    assert len(heard.rows) == MAX_ALIKE + 1
    assert all(len(str(row["reason"])) <= 64 for _, row in heard.rows)
    audit.settle()
    assert sum(int(str(row["count"])) for _, row in heard.rows) == 10 * MAX_ALIKE
