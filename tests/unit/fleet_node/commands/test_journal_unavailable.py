"""A disk that is full: commands are refused before they run, nothing that happened is lost, and it heals by itself."""

import pytest

from fleet.v1.command_pb2 import CancelOutcome
from fleet_node.commands.ledger import FIRST_RETRY_S
from fleet_node.commands.outbox import ENTRY_BYTES
from tests.unit.fleet_node.commands.node import TestNode


class FullDisk:
    """Makes SQLite itself say "database or disk is full", by its page limit."""

    def __init__(self, node: TestNode) -> None:
        self._connection = node.store.connection

    async def fill(self, node: TestNode) -> None:
        await node.journal.query(lambda store: store.connection.execute("PRAGMA max_page_count = 1").fetchone())
        await node.journal.query(lambda store: store.connection.execute("PRAGMA query_only = ON"))

    async def free(self, node: TestNode) -> None:
        await node.journal.query(lambda store: store.connection.execute("PRAGMA query_only = OFF"))
        await node.journal.query(lambda store: store.connection.execute("PRAGMA max_page_count = 1000000").fetchone())


@pytest.fixture
def disk(node: TestNode) -> FullDisk:
    return FullDisk(node)


async def test_a_statement_is_refused_and_nothing_runs_until_there_is_room(node: TestNode, disk: FullDisk) -> None:
    command = node.command()
    await disk.fill(node)

    await node.give(command)

    refused = await node.wait_control("statement_refused")
    assert refused.reason == "JOURNAL_UNAVAILABLE"
    assert refused.last_accepted_seq == 0
    assert node.probe.runs == []
    assert node.metrics.disk_full.value == 1

    await disk.free(node)
    await node.give(command)
    await node.wait_reported(command, "SUCCEEDED")
    assert len(node.probe.runs) == 1


async def test_a_result_waits_in_memory_until_it_can_be_written(node: TestNode, disk: FullDisk) -> None:
    running, waiting = [node.command("probe.gate", gate="g") for _ in range(4)], node.command()
    await node.give(*running, waiting)
    await node.wait_reported(waiting, "ACCEPTED")
    await disk.fill(node)

    node.probe.release("g")
    await node.clock.wait_sleepers(1)
    await node.journal.query(lambda store: None)
    await node.clock.advance(FIRST_RETRY_S)
    assert all(node.states[command.command_id].finished_at_ms == 0 for command in running)
    assert waiting.command_id not in node.probe.runs

    await disk.free(node)
    await node.clock.advance(60)
    for command in running:
        await node.wait_reported(command, "SUCCEEDED")


async def test_a_cancel_that_cannot_be_journaled_is_refused_and_the_command_still_waits(
    node: TestNode, disk: FullDisk
) -> None:
    running, waiting = [node.command("probe.gate", gate="g") for _ in range(4)], node.command()
    await node.give(*running, waiting)
    await disk.fill(node)

    await node.stream.cancel_frame(node.cancel_frame(waiting))
    assert (await node.wait_control("statement_refused")).reason == "JOURNAL_UNAVAILABLE"

    await disk.free(node)
    assert await node.cancel(waiting) == CancelOutcome.CANCEL_OUTCOME_CANCELLED
    node.probe.release("g")
    await node.wait_reported(running[3], "SUCCEEDED")
    assert waiting.command_id not in node.probe.runs


@pytest.mark.parametrize(("bound", "most"), [("MAX_BACKLOG", 3), ("MAX_BACKLOG_BYTES", 3 * ENTRY_BYTES)])
async def test_too_many_unacknowledged_reports_refuse_more_commands(
    node: TestNode, monkeypatch: pytest.MonkeyPatch, bound: str, most: int
) -> None:
    monkeypatch.setattr(f"fleet_node.commands.service.{bound}", most)
    commands = [node.command() for _ in range(3)]
    await node.give(*commands)
    await node.wait_reported(commands[2], "SUCCEEDED")
    more = node.command()

    await node.give(more)
    refused = await node.wait_control("statement_refused")
    assert refused.reason == "JOURNAL_UNAVAILABLE"
    assert "3 reports of" in refused.detail
    assert more.command_id not in node.probe.runs

    node.ack()
    await node.give(more)
    await node.wait_reported(more, "SUCCEEDED")
