"""Audit frames of one stream: one at a time, acknowledged after their commit, dropped when a node floods."""

from fleet.v1 import gateway_pb2
from fleet_server.streams.audit_lane import MAX_WAITING, AuditLane
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.streams.wire import FakeNodeAudit


def frame(*numbers: int) -> gateway_pb2.AuditRows:
    return gateway_pb2.AuditRows(rows=[gateway_pb2.AuditRow(number=number) for number in numbers])


def lane(audit: FakeNodeAudit, sent: list[gateway_pb2.AuditAck]) -> AuditLane:
    def failed(error: Exception) -> None:
        raise error

    return AuditLane(
        "n",
        audit,  # type: ignore[arg-type]
        MockClock(),
        epoch=1,
        opened_chain=0,
        send=lambda control: sent.append(control.audit_ack),
        failed=failed,
    )


async def test_each_frame_is_acknowledged_and_a_node_that_was_sent_back_is_judged_as_such() -> None:
    acks = [gateway_pb2.AuditAck(number=2), gateway_pb2.AuditAck(number=2), gateway_pb2.AuditAck(number=4)]
    audit, sent = FakeNodeAudit(answers=list(acks)), list[gateway_pb2.AuditAck]()
    one = lane(audit, sent)
    for rows in (frame(1, 2), frame(4), frame(3, 4)):
        one.put(rows)
        await one.wait_idle()

    assert sent == acks
    assert [sent_back for _, sent_back in audit.frames] == [False, False, True]


async def test_a_flood_of_frames_is_dropped() -> None:
    audit = FakeNodeAudit(answers=[gateway_pb2.AuditAck(number=number) for number in range(10)])
    sent: list[gateway_pb2.AuditAck] = []
    one = lane(audit, sent)
    for number in range(10):
        one.put(frame(number + 1))
    await one.wait_idle()

    assert len(sent) == MAX_WAITING
