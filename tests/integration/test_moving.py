"""Nodes that move from replica to replica under traffic: make before break, nothing lost, nothing twice."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2, command_pb2, gateway_pb2
from tests.integration.clock import QuickClock
from tests.integration.handmade import HandmadeNode
from tests.integration.installation import Installation, RunningNode, assert_each_ran_once
from tests.integration.several import several
from tests.integration.traffic import more, traffic
from tests.integration.waiting import eventually

if TYPE_CHECKING:
    from tests.fakes.postgres import PostgresServer

MOVES = 6


@pytest.fixture
async def replicas(tmp_path: Path, postgres: "PostgresServer") -> AsyncIterator[list[Installation]]:
    """Two of them, whose time runs four times as fast."""
    async with several(tmp_path, postgres, ["replica-a", "replica-b"], clock=QuickClock(speed=4)) as running:
        yield running


async def check_all_ran_once_in_order(at: Installation, node: RunningNode, orders: list[str]) -> None:
    """Every command of the orders succeeded, none ran twice, and they ran in the order of their seqs."""
    views = [view for issue in orders for view in await at.owner.outcomes(issue)]
    assert Counter(view.state for view in views) == {command_pb2.COMMAND_STATE_SUCCEEDED: len(views)}
    assert_each_ran_once(node, [view.command_id for view in views])
    assert sorted(view.monotonic_seq for view in views) == list(range(1, len(views) + 1))


def closes(at: Installation) -> dict[str, float]:
    """How streams ended there, by reason."""
    return {name: counter.value for (name,), counter in at.server.metrics.streams.closes.items() if counter.value}


async def test_a_node_that_moves_between_replicas_under_traffic_loses_nothing_and_leaves_with_a_goodbye(
    replicas: list[Installation],
) -> None:
    """The older stream's replica meets the newer epoch at its next claim, long before the node's goodbye arrives."""
    here, there = replicas
    node = await here.add_node("n-1", endpoints=(here.gateway, there.gateway))
    at, to = (here, there) if len(here.server.streams) else (there, here)  # it tries them in any order
    async with traffic(here, "n-1") as orders:
        for _ in range(MOVES):
            await more(orders, 3)
            (stream,) = [each for each in at.server.streams if not each.ended]
            goaway = gateway_pb2.ControlGoaway(reason=gateway_pb2.GOAWAY_REASON_REBALANCE, resume=True)
            goaway.endpoints.append(to.gateway)
            stream.goaway(goaway)
            await eventually(lambda to=to: len(to.server.streams) == 1, "the node has moved")  # type: ignore[misc]
            await eventually(lambda at=at: len(at.server.streams) == 0, "its older stream is gone")  # type: ignore[misc]
            at, to = to, at
    await check_all_ran_once_in_order(there, node, orders)
    assert node.link.streams_opened == 1 + MOVES
    ended = Counter(closes(here)) + Counter(closes(there))
    assert ended == {"GOODBYE_TAKEOVER": MOVES}


async def test_what_was_under_way_when_a_node_moved_goes_out_once_more_and_results_count_over_either_stream(
    replicas: list[Installation],
) -> None:
    """The old stream's replica hears of the new one at another, and leaves it its last words."""
    here, there = replicas
    node = await here.enroll("n-1")
    async with HandmadeNode(here, node) as at_here, HandmadeNode(there, node) as at_there, at_here.welcomed() as older:
        issued = await there.owner.issue("n-1", count=2)
        first = await older.wait_statement()
        async with at_there.welcomed(takeover_of=older.welcome.stream_id) as newer:
            second = await newer.wait_statement()
            assert second.commands == first.commands
            assert second.stream_binding != first.stream_binding
            assert (second.prev_seq, second.lease_epoch) == (0, first.lease_epoch + 1)
            for number, stream in enumerate((older, newer)):
                report = command_pb2.Report(
                    report_no=number + 1,
                    command_id=first.commands[number].command_id,
                    monotonic_seq=number + 1,
                    state=command_pb2.COMMAND_STATE_SUCCEEDED,
                )
                await stream.control(reports=command_pb2.ReportList(reports=[report]))
                assert (await stream.wait_control("result_ack")).report_no == number + 1
            views = await here.owner.outcomes(issued.issue_id)
            assert {view.state for view in views} == {command_pb2.COMMAND_STATE_SUCCEEDED}
            await here.owner.issue("n-1")
            assert [each.monotonic_seq for each in (await newer.wait_statement()).commands] == [3]
            await older.control(goodbye=gateway_pb2.Goodbye(reason="TAKEOVER"))
            with pytest.raises(Refusal):  # read to its end: it was sent nothing more
                await older.wait_statement()
    assert closes(here) == {"GOODBYE_TAKEOVER": 1}


async def test_a_second_machine_at_another_replica_ends_the_first_ones_stream(replicas: list[Installation]) -> None:
    """It says of no stream that it takes over from it: the one before is half-open, or somebody else's."""
    here, there = replicas
    node = await here.enroll("n-1")
    async with (
        HandmadeNode(here, node) as at_here,
        HandmadeNode(there, node) as at_there,
        at_here.welcomed() as older,
        at_there.welcomed() as newer,
    ):
        await there.owner.issue("n-1")
        assert (await newer.wait_statement()).commands
        assert (await older.wait_control("goaway")).reason == gateway_pb2.GOAWAY_REASON_SUPERSEDED
        assert (await older.wait_refusal()).reason is Reason.SUPERSEDED


NODES = 24


async def test_a_rolling_restart_under_traffic_loses_nothing_and_the_fleet_spreads_again(
    tmp_path: Path, postgres: "PostgresServer"
) -> None:
    """Each replica in turn is drained, at the other one's admin listener, and started again. Who came back holds
    nothing, and is handed its share."""
    async with several(tmp_path, postgres, ["replica-a", "replica-b"], clock=QuickClock(speed=4)) as (here, there):
        token = await here.join_token()
        endpoints = (here.gateway, there.gateway)
        nodes = [await here.enroll(f"n-{number}", token, endpoints=endpoints) for number in range(NODES)]
        await asyncio.gather(*(node.start() for node in nodes))
        drained_by: Counter[str] = Counter()
        issued = []
        for each, other in ((here, there), (there, here)):
            await eventually(lambda at=other: len(at.server.streams), "the other one was handed its share")  # type: ignore[misc]
            async with traffic(other, "n-1*") as orders:
                request = admin_pb2.DrainReplicaRequest(replica_id=each.settings.replica_id, deadline_s=60)
                told = [answer async for answer in other.owner.follow("DrainReplica", request)]
                assert told[-1].done
                assert told[-1].replica.state == "STOPPED"
                assert await each.wait_ended() == 0
                assert len(other.server.streams) == NODES
                drained_by.update(closes(each))
                await more(orders, 3)
                await each.start_server()
            issued += [view for order in orders for view in await other.owner.outcomes(order)]
        for node in nodes:
            await node.wait_live()
        assert Counter(view.state for view in issued) == {command_pb2.COMMAND_STATE_SUCCEEDED: len(issued)}
        for node in nodes:
            own = [view for view in issued if view.node_id == node.node_id]
            assert_each_ran_once(node, [view.command_id for view in own])
            assert sorted(view.monotonic_seq for view in own) == list(range(1, len(own) + 1))
        assert drained_by.keys() == {"GOODBYE_TAKEOVER"}, "nobody was cut off"
