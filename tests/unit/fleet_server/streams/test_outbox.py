"""The queue to a stream's one writer."""

import asyncio

from fleet.v1 import command_pb2, gateway_pb2
from fleet_server.streams.outbox import MAX_QUEUED, Outbox


def _ping(number: int) -> gateway_pb2.ServerControl:
    return gateway_pb2.ServerControl(ping=gateway_pb2.Ping(number=number))


async def test_control_goes_first_and_acks_fold_into_the_newest() -> None:
    outbox = Outbox()
    for number in (3, 7, 5):
        outbox.ack_reports(number)
    outbox.ack_telemetry(9)
    outbox.put(_ping(1))
    assert (await outbox.next()).ping.number == 1
    assert (await outbox.next()).result_ack.report_no == 7
    assert (await outbox.next()).telemetry_ack.batch_seq == 9


async def test_an_acknowledgement_that_is_ready_leaves_with_the_commands() -> None:
    outbox = Outbox()
    outbox.ack_reports(7)
    outbox.put(_ping(1))
    outbox.put(gateway_pb2.ServerControl(commands=command_pb2.CommandFrame()))
    outbox.put(gateway_pb2.ServerControl(commands=command_pb2.CommandFrame()))
    assert (await outbox.next()).ping.number == 1
    assert (await outbox.next()).commands.reports_acked == 7
    assert (await outbox.next()).commands.reports_acked == 0
    outbox.ack_reports(8)
    assert (await outbox.next()).result_ack.report_no == 8


async def test_closing_hands_out_what_is_queued_and_takes_nothing_more() -> None:
    outbox = Outbox()
    outbox.put(_ping(1))
    outbox.close()
    assert not outbox.put(_ping(2))
    assert (await outbox.next()).ping.number == 1
    assert await outbox.next() is None


async def test_a_peer_that_stopped_reading_is_noticed_by_a_full_queue() -> None:
    outbox = Outbox()
    assert all(outbox.put(_ping(number)) for number in range(MAX_QUEUED))
    assert not outbox.put(_ping(0))


async def test_a_waiting_writer_is_woken() -> None:
    outbox = Outbox()
    waiting = asyncio.create_task(outbox.next())
    await asyncio.sleep(0)
    outbox.ack_telemetry(4)
    assert (await asyncio.wait_for(waiting, 1)).telemetry_ack.batch_seq == 4
