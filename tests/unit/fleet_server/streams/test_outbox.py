"""The queue to a stream's one writer."""

import asyncio

from fleet.v1 import command_pb2, gateway_pb2
from fleet_server.streams.outbox import MAX_QUEUED, MAX_QUEUED_BYTES, Outbox


def _ping(number: int) -> gateway_pb2.ServerControl:
    return gateway_pb2.ServerControl(ping=gateway_pb2.Ping(number=number))


def _put(outbox: Outbox, frame: gateway_pb2.ServerControl, size_bytes: int = 10) -> bool:
    return outbox.put(frame, size_bytes)


async def test_control_goes_first_and_acks_fold_into_the_newest() -> None:
    outbox = Outbox()
    for number in (3, 7, 5):
        outbox.ack_reports(number)
    outbox.ack_telemetry(9)
    _put(outbox, _ping(1))
    assert (await outbox.next()).ping.number == 1
    assert (await outbox.next()).telemetry_ack.batch_seq == 9
    assert (await asyncio.wait_for(outbox.next(), 10)).result_ack.report_no == 7


async def test_an_acknowledgement_of_reports_waits_for_commands_and_leaves_with_them() -> None:
    outbox = Outbox()
    waiting = asyncio.create_task(outbox.next())
    outbox.ack_reports(7)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiting.done()
    _put(outbox, gateway_pb2.ServerControl(commands=command_pb2.CommandFrame()))
    assert (await asyncio.wait_for(waiting, 10)).commands.reports_acked == 7


async def test_a_stream_that_ends_says_at_once_what_it_has_to_acknowledge() -> None:
    outbox = Outbox()
    outbox.ack_reports(7)
    outbox.close()
    assert (await outbox.next()).result_ack.report_no == 7
    assert await outbox.next() is None


async def test_an_acknowledgement_leaves_once_with_the_first_commands() -> None:
    outbox = Outbox()
    outbox.ack_reports(7)
    _put(outbox, _ping(1))
    _put(outbox, gateway_pb2.ServerControl(commands=command_pb2.CommandFrame()))
    _put(outbox, gateway_pb2.ServerControl(commands=command_pb2.CommandFrame()))
    assert (await outbox.next()).ping.number == 1
    assert (await outbox.next()).commands.reports_acked == 7
    assert (await outbox.next()).commands.reports_acked == 0
    outbox.ack_reports(8)
    assert (await asyncio.wait_for(outbox.next(), 10)).result_ack.report_no == 8


async def test_closing_hands_out_what_is_queued_and_takes_nothing_more() -> None:
    outbox = Outbox()
    _put(outbox, _ping(1))
    outbox.close()
    assert not _put(outbox, _ping(2))
    assert (await outbox.next()).ping.number == 1
    assert await outbox.next() is None


async def test_a_peer_that_stopped_reading_is_noticed_by_a_full_queue() -> None:
    outbox = Outbox()
    assert all(_put(outbox, _ping(number)) for number in range(MAX_QUEUED))
    assert not _put(outbox, _ping(0))


async def test_a_peer_that_stopped_reading_is_noticed_by_the_bytes_that_wait() -> None:
    outbox = Outbox()
    large = MAX_QUEUED_BYTES // 4
    assert all(_put(outbox, _ping(number), large) for number in range(4))
    assert not _put(outbox, _ping(4), 1)
    assert (await outbox.next()).ping.number == 0
    assert _put(outbox, _ping(5), 2 * MAX_QUEUED_BYTES), "what is larger than the bound goes as well, alone over it"
    assert not _put(outbox, _ping(6), 1)
    for number in (1, 2, 3, 5):
        assert (await outbox.next()).ping.number == number
    assert _put(outbox, _ping(7))


async def test_a_waiting_writer_is_woken() -> None:
    outbox = Outbox()
    waiting = asyncio.create_task(outbox.next())
    await asyncio.sleep(0)
    outbox.ack_telemetry(4)
    assert (await asyncio.wait_for(waiting, 1)).telemetry_ack.batch_seq == 4
