"""Fault: two streams of one node, after a takeover, because one is half-open, or because a hello comes late.

Must hold: only the newest epoch is sent commands; an older one still delivers results; nothing runs twice.
"""

import asyncio
import hashlib
import threading

import pytest

from fleet.errors import Refusal
from fleet.v1 import command_pb2, gateway_pb2
from fleet_node.link.link_status import LinkState
from fleet_server.database.writer import Transaction
from tests.fakes.proxy import Direction, Side
from tests.integration.handmade import HandmadeNode
from tests.integration.installation import Installation, assert_each_ran_once
from tests.integration.waiting import eventually

SENT = command_pb2.COMMAND_STATE_SENT
SUCCEEDED = command_pb2.COMMAND_STATE_SUCCEEDED


@pytest.mark.parametrize("direction", [None, *Direction], ids=["both ways", "to server", "to node"])
async def test_a_deaf_connection_is_found_and_replaced(quick: Installation, direction: Direction | None) -> None:
    """Nobody is told that the network is gone: each side finds out by itself, and what was on its way runs once."""
    proxy = await quick.proxy()
    node = await quick.add_node("n-1", endpoints=(proxy.address,))
    epoch = node.link.stream_epoch
    (connection,) = proxy.connections
    connection.deafen(direction)
    issued = await quick.owner.issue("n-1", count=3)

    await node.wait_live(streams=2)

    views = await quick.owner.outcomes(issued.issue_id)
    assert {view.state for view in views} == {SUCCEEDED}
    assert_each_ran_once(node, [view.command_id for view in views])
    assert node.link.stream_epoch > epoch
    await eventually(lambda: len(quick.server.streams) == 1, "the half-open stream is gone from the server")


@pytest.mark.parametrize("side", [Side.CLIENT, Side.SERVER])
async def test_a_half_open_connection_is_replaced(quick: Installation, side: Side) -> None:
    proxy = await quick.proxy()
    node = await quick.add_node("n-1", endpoints=(proxy.address,))
    proxy.connections[0].cut(side)
    issued = await quick.owner.issue("n-1")

    await node.wait_live(streams=2)

    (view,) = await quick.owner.outcomes(issued.issue_id)
    assert view.state == SUCCEEDED
    assert_each_ran_once(node, [view.command_id])


async def test_a_slow_network_is_slow_and_nothing_else(installation: Installation) -> None:
    proxy = await installation.proxy()
    node = await installation.add_node("n-1", endpoints=(proxy.address,))
    proxy.slow(bytes_per_s=20_000, latency_s=0.02)

    views = await installation.owner.run("n-1", count=40)

    assert {view.state for view in views} == {SUCCEEDED}
    assert node.link.streams_opened == 1


async def test_only_the_newest_stream_is_sent_commands(installation: Installation) -> None:
    node = await installation.enroll("n-1")
    async with (
        HandmadeNode(installation, node) as hand,
        hand.welcomed() as older,
        hand.welcomed(takeover_of=older.welcome.stream_id) as newer,
    ):
        issued = await installation.owner.issue("n-1", count=2)

        statement = await newer.wait_statement()

        assert [each.command_id for each in statement.commands] == [each.command_id for each in issued.issued]
        assert statement.lease_epoch == newer.welcome.stream_epoch
        await older.control(goodbye=gateway_pb2.Goodbye(reason="TAKEOVER"))
        with pytest.raises(Refusal):  # the older one is read to its end: it was sent none
            await older.wait_statement()


async def test_what_the_older_stream_was_sent_and_nobody_answered_goes_out_again(installation: Installation) -> None:
    node = await installation.enroll("n-1")
    async with HandmadeNode(installation, node) as hand, hand.welcomed() as older:
        issued = await installation.owner.issue("n-1")
        first = await older.wait_statement()
        async with hand.welcomed(takeover_of=older.welcome.stream_id) as newer:
            second = await newer.wait_statement()

            assert first.commands == second.commands
            assert first.stream_binding != second.stream_binding
            assert second.prev_seq == 0
            view = await installation.owner.command(issued.issued[0].command_id)
            assert view.state == SENT


async def test_a_statement_that_comes_over_the_older_stream_after_a_takeover_is_ignored(
    installation: Installation,
) -> None:
    """Sent, held up on the way, and let go once the node has moved and was sent it again."""
    proxy = await installation.proxy()
    node = await installation.add_node("n-1", endpoints=(proxy.address,))
    (stream,), (older,) = installation.server.streams, proxy.connections
    stream.goaway(
        gateway_pb2.ControlGoaway(reason=gateway_pb2.GOAWAY_REASON_REBALANCE, resume=True, reconnect_after_ms=1500)
    )
    await eventually(lambda: node.link.state is LinkState.MOVING, "the node is about to move")
    older.hold(Direction.DOWN)
    issued = await installation.owner.issue("n-1", count=3)
    await installation.owner.wait_command(issued.issued[2].command_id, lambda view: view.state == SENT)
    assert not node.runs()

    await node.wait_live(streams=2)
    older.release(Direction.DOWN)

    views = await installation.owner.outcomes(issued.issue_id)
    assert {view.state for view in views} == {SUCCEEDED}
    await eventually(lambda: len(installation.server.streams) == 1, "the older stream is gone")
    assert_each_ran_once(node, [view.command_id for view in views])


async def test_a_node_that_drains_its_server_moves_without_losing_a_command(installation: Installation) -> None:
    """The whole restart: goaway, return, and a steady stream of commands across it."""
    node = await installation.add_node("n-1")
    before = [await installation.owner.issue("n-1", count=10) for _ in range(3)]

    assert await installation.stop_server() == 0
    await installation.start_server()
    after = [await installation.owner.issue("n-1", count=10) for _ in range(3)]

    views = [view for issue in (*before, *after) for view in await installation.owner.outcomes(issue.issue_id)]
    assert {view.state for view in views} == {SUCCEEDED}
    assert_each_ran_once(node, [view.command_id for view in views])


async def test_a_peer_that_stopped_reading_holds_nobody_up(installation: Installation) -> None:
    """A deaf node must not keep the server from stopping."""
    proxy = await installation.proxy()
    await installation.add_node("n-1", endpoints=(proxy.address,))
    proxy.deafen()

    assert await installation.stop_server(deadline_s=1) == 0
    proxy.cut()  # the node has nobody to say goodbye to


async def test_a_hello_that_its_node_gave_up_opens_nothing(installation: Installation) -> None:
    """It waited for the database. A stream of nobody's would end the one that its node has by then."""
    node = await installation.enroll("n-1")
    held, goes_on = threading.Event(), threading.Event()

    def hang(_: Transaction) -> None:
        held.set()
        assert goes_on.wait(20)

    async with HandmadeNode(installation, node) as hand:
        session = await hand.handshake()
        hello = gateway_pb2.NodeFrame(hello=hand.hello(session))
        writer = installation.server.database.writer
        hanging = writer.submit_nowait(hang)
        assert await asyncio.to_thread(held.wait, 10)
        async with hand.connect(session) as stream:
            await stream.send(hello)
            await eventually(writer.depth, "the claim waits")
        await hand.begin()  # behind the end of that call, on the same connection: the server knows of it
        goes_on.set()
        await hanging
        async with hand.connect(session) as stream:
            await stream.send(hello)
            await stream.wait_welcome()
            assert stream.welcome.stream_epoch == 1


async def test_statements_that_a_node_refuses_go_out_again_a_bounded_number_of_times(
    installation: Installation,
) -> None:
    node = await installation.enroll("n-1")
    async with HandmadeNode(installation, node) as hand, hand.welcomed() as stream:
        issued = await installation.owner.issue("n-1")
        seen = 0
        for _ in range(6):
            frame = await stream.wait_control("commands")
            seen += 1
            await stream.control(
                statement_refused=command_pb2.StatementRefused(
                    statement_sha256=_sha256(frame.signed.statement),
                    key_id=frame.signed.signatures[0].key_id,
                    reason="BAD_SIGNATURE",
                    last_accepted_seq=0,
                )
            )
        assert seen == 6
        rows = await eventually(lambda: _refusals(installation, 6), "each refusal is audited")
        assert rows == 6
        assert (await installation.owner.command(issued.issued[0].command_id)).state == SENT
    await node.start()
    (view,) = await installation.owner.outcomes(issued.issue_id)
    assert view.state == SUCCEEDED


async def _refusals(installation: Installation, wanted: int) -> int | None:
    rows = await installation.owner.audit("statement.refused")
    return len(rows) if len(rows) >= wanted else None


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


async def test_make_before_break_under_a_steady_stream_of_commands(installation: Installation) -> None:
    """A goaway that asks for a takeover: the node is never without a stream, and no command is sent twice."""
    node = await installation.add_node("n-1")
    issues: list[str] = []
    for streams in range(2, 6):
        issues += [(await installation.owner.issue("n-1", count=5)).issue_id for _ in range(3)]
        for stream in installation.server.streams:
            stream.goaway(gateway_pb2.ControlGoaway(reason=gateway_pb2.GOAWAY_REASON_REBALANCE, resume=True))
        issues += [(await installation.owner.issue("n-1", count=5)).issue_id for _ in range(3)]
        await node.wait_live(streams)
        assert (await installation.owner.node("n-1")).online

    views = [view for issue_id in issues for view in await installation.owner.outcomes(issue_id)]
    assert {view.state for view in views} == {SUCCEEDED}
    assert_each_ran_once(node, [view.command_id for view in views])
    await eventually(lambda: len(installation.server.streams) == 1, "the older streams said goodbye")


async def test_a_result_of_a_suspended_node_is_recorded_when_it_is_back(quick: Installation) -> None:
    node = await quick.add_node("n-1")
    issued = await quick.owner.issue("n-1", action="simulated.work", arguments={"latency_ms": 300}, ttl_s=3600)
    await eventually(node.runs, "the command runs")
    await quick.owner.set_state("n-1", "SUSPENDED")
    await node.wait_refused("SUSPENDED")

    await quick.owner.set_state("n-1", "ACTIVE")

    (view,) = await quick.owner.outcomes(issued.issue_id)
    assert view.state == SUCCEEDED
    assert_each_ran_once(node, [view.command_id])
