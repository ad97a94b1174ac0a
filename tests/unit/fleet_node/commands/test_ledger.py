"""What is on its way to the disk: nothing that comes in between undoes it or overtakes it."""

import asyncio
import threading

from fleet.v1 import command_pb2
from fleet.v1.command_pb2 import CommandState
from fleet_node.commands.entry import Entry
from fleet_node.commands.outbox import ENTRY_BYTES, MAX_LOADED_BYTES, Outbox
from fleet_node.commands.store import JournalStore
from tests.unit.fleet_node.commands.node import TestNode, state_name
from tests.unit.fleet_node.commands.test_store import change, entry


class HeldDisk:
    """Keeps the journal's thread busy until released."""

    def __init__(self, node: TestNode) -> None:
        self._released = threading.Event()
        self._reached = threading.Event()
        self._query = asyncio.ensure_future(node.journal.query(self._hold))

    async def wait_held(self) -> None:
        await asyncio.to_thread(self._reached.wait)

    async def release(self) -> None:
        self._released.set()
        await self._query

    def _hold(self, store: JournalStore) -> None:
        self._reached.set()
        self._released.wait()


async def test_a_replay_does_not_undo_a_result_that_is_being_written(node: TestNode) -> None:
    command, other = node.command("probe.gate", gate="g"), node.command()
    await node.give(command)
    await node.wait_reported(command, "RUNNING")
    disk = HeldDisk(node)
    await disk.wait_held()
    node.probe.release("g")
    await node.clock.advance(0)

    replay = asyncio.ensure_future(node.give(command, other))
    await node.clock.advance(0)
    await disk.release()
    await replay
    await node.wait_reported(command, "SUCCEEDED")
    await node.wait_reported(other, "SUCCEEDED")
    await node.crash()
    await node.restart()
    node.open_stream()

    assert state_name(await node.wait_report(command, lambda one: True)) == "SUCCEEDED"
    assert node.probe.runs == []


async def test_a_replay_does_not_undo_a_start_that_is_being_written(node: TestNode) -> None:
    first = node.command("probe.gate", gate="one", device="arm")
    second = node.command("probe.gate", gate="two", device="arm")
    await node.give(first, second)
    await node.wait_reported(second, "ACCEPTED")
    disk = HeldDisk(node)
    await disk.wait_held()
    node.probe.release("one")
    await node.clock.advance(0)

    replay = asyncio.ensure_future(node.give(second, node.command()))
    await node.clock.advance(0)
    await disk.release()
    await replay
    await node.wait_reported(second, "RUNNING")
    await node.probe.wait_started(2)
    await node.crash()
    await node.restart()
    node.open_stream()

    await node.wait_reported(second, "INTERRUPTED")
    assert second.command_id not in node.probe.runs


async def test_what_ended_at_once_shares_its_commit_with_the_next_statement(node: TestNode) -> None:
    before = node.metrics.commit_duration.count
    commands = [node.command() for _ in range(10)]

    for command in commands:
        await node.give(command)
    await node.wait_reported(commands[-1], "SUCCEEDED")

    assert node.metrics.commit_duration.count - before == 11  # the last result finds no statement to go with


async def test_a_commit_whose_caller_was_cancelled_still_decides(node: TestNode) -> None:
    command = node.command()
    disk = HeldDisk(node)
    await disk.wait_held()
    giving = asyncio.ensure_future(node.give(command))
    await node.clock.advance(0)

    giving.cancel()
    await asyncio.wait({giving})
    await disk.release()

    await node.wait_reported(command, "SUCCEEDED")
    assert node.probe.runs == [command.command_id]


def ended(number: int, output_bytes: int = 0) -> Entry:
    """A command with that seq whose end has that number."""
    one = entry(number)
    change(one, number, CommandState.COMMAND_STATE_SUCCEEDED, b"x" * output_bytes).stands()
    return one


def numbers(reports: list[bytes]) -> list[int]:
    return [command_pb2.Report.FromString(one).report_no for one in reports]


def test_the_outbox_leaves_what_does_not_fit_on_disk_and_keeps_the_order() -> None:
    entries = {number: ended(number, 100) for number in range(1, 9)}
    outbox = Outbox({}, max_memory_bytes=3 * (ENTRY_BYTES + 150))
    outbox.add(entries.values())

    taken: list[int] = []
    read = 0
    while outbox.ready:
        batch = outbox.take(3, 10_000)
        if not batch:
            missing = outbox.missing(2)
            assert len(missing) <= 2
            read += len(missing)
            outbox.loaded(missing, [entries[number] for number in missing])
        taken.extend(numbers(batch))
        if batch:
            outbox.acked(taken[-1])

    assert taken == list(range(1, 9))
    assert read == 5
    assert len(outbox) == 0


def test_a_server_that_never_acknowledges_is_sent_everything_and_fills_no_memory() -> None:
    entries = {number: ended(number, 100) for number in range(1, 41)}
    outbox = Outbox({}, max_memory_bytes=3 * (ENTRY_BYTES + 150))
    outbox.add(entries.values())
    whole = outbox.size_bytes

    for _ in range(2):  # two streams
        taken: list[int] = []
        held: list[int] = []
        while outbox.ready:
            missing = outbox.missing(2)
            outbox.loaded(missing, [entries[number] for number in missing])
            taken.extend(numbers(outbox.take(3, 10_000)))
            held.append(outbox.held_bytes)
        assert taken == list(range(1, 41))
        assert max(held) <= 3 * (ENTRY_BYTES + 150)
        assert outbox.size_bytes == whole
        outbox.start_over()

    outbox.acked(40)
    assert (len(outbox), outbox.size_bytes) == (0, 0)


def test_large_reports_are_read_few_at_a_time() -> None:
    outbox = Outbox(dict.fromkeys(range(1, 10), MAX_LOADED_BYTES // 2 - ENTRY_BYTES))
    assert outbox.missing(256) == [1, 2]
    outbox = Outbox({1: 2 * MAX_LOADED_BYTES, 2: 0})
    assert outbox.missing(256) == [1]


def test_a_frame_of_reports_stays_below_its_bytes_but_for_one_that_alone_exceeds_them() -> None:
    outbox = Outbox({})
    outbox.add(ended(number, size) for number, size in enumerate([900, 300, 300, 300], start=1))

    assert [numbers(outbox.take(10, 800)) for _ in range(3)] == [[1], [2, 3], [4]]


def test_a_superseded_report_never_goes_out() -> None:
    outbox = Outbox({1: 0, 2: 30})
    one = entry(1)
    outbox.remove(one)
    change(one, 3, CommandState.COMMAND_STATE_SUCCEEDED).stands()
    outbox.add([one])

    assert outbox.missing(10) == [2]
    outbox.loaded([2], [])

    assert numbers(outbox.take(10, 1000)) == [3]
    assert outbox.first_report_no == 3
    outbox.acked(3)
    assert (len(outbox), outbox.size_bytes) == (0, 0)


def test_what_has_not_ended_is_told_as_it_stands() -> None:
    outbox = Outbox({})
    one = entry(4, report_no=6, state=CommandState.COMMAND_STATE_RUNNING)
    one.started_at_ms = 7
    outbox.add([one])

    (told,) = map(command_pb2.Report.FromString, outbox.take(10, 1000))

    assert told == command_pb2.Report(
        report_no=6,
        command_id=one.command_id,
        monotonic_seq=4,
        state=CommandState.COMMAND_STATE_RUNNING,
        accepted_at_ms=one.accepted_at_ms,
        started_at_ms=7,
    )
