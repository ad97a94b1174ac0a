"""Two replicas behind a real HAProxy that passes TLS through, with the config that is shipped."""

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from fleet.v1 import command_pb2
from tests.fakes.process import Processes
from tests.integration.balanced import balanced
from tests.integration.clock import QuickClock
from tests.integration.command_line import Fleetctl
from tests.integration.installation import assert_each_ran_once

if TYPE_CHECKING:
    from tests.fakes.postgres import PostgresServer

SUCCEEDED = command_pb2.COMMAND_STATE_SUCCEEDED


async def test_heartbeats_keep_an_idle_stream_up_and_who_is_cut_for_too_few_comes_back(
    tmp_path: Path, postgres: "PostgresServer", processes: Processes
) -> None:
    """One replica beats ten times within the balancer's timeout, the other one not once."""
    often, seldom = {"heartbeat_interval_s": 2}, {"heartbeat_interval_s": 300}
    async with balanced(tmp_path, postgres, processes, often, seldom, clock=QuickClock(speed=10)) as fleet:
        await fleet.start_balancer(fleet.configured("haproxy.cfg", client="2s", server="2s", tunnel="2s"))
        held = await fleet.one_node_on_each()

        await held["fleet-1"].wait_live(streams=2)
        assert held["fleet-0"].link.streams_opened == 1
        assert {view.state for view in await fleet.run()} == {SUCCEEDED}


async def test_both_replicas_restart_one_after_the_other_under_traffic(
    tmp_path: Path, postgres: "PostgresServer", processes: Processes
) -> None:
    """Nodes move through the balancer, and so does whoever issues; nothing is lost or run twice."""
    async with balanced(tmp_path, postgres, processes) as fleet:
        balancer = await fleet.start_balancer(fleet.configured("haproxy.cfg"))
        nodes = [await fleet.add_node(f"n-{number}") for number in range(1, 5)]
        fleetctl = Fleetctl(fleet.replicas[0], tmp_path, fleet.replicas[0].owner_token)
        fleetctl.address = fleet.admin
        await fleetctl.login()
        async with fleet.traffic():
            await fleet.more()
            for number, replica in enumerate(fleet.replicas):
                statuses = ["UP", "UP"]
                statuses[number] = "DOWN"
                assert await replica.stop_server() == 0
                await fleet.wait_statuses(balancer, *statuses)
                assert {(await fleet.owner.node(node.name)).replica_id for node in nodes} == {f"fleet-{1 - number}"}
                await fleet.more()
                code, out, err = await fleetctl("nodes", "list")
                assert (code, "4 nodes, 4 online" in err) == (0, True), out + err
                await replica.start_server()
                await fleet.wait_statuses(balancer, "UP", "UP")
                await fleet.more()

        views = await fleet.outcomes()
        assert {view.state for view in views} == {SUCCEEDED}
        for node in nodes:
            assert_each_ran_once(node, [view.command_id for view in views if view.node_name == node.name])
            assert node.link.streams_opened <= 3, "no stream was cut that was not drained"


async def test_a_reload_cuts_nothing_and_the_end_of_the_old_process_brings_nodes_back(
    tmp_path: Path, postgres: "PostgresServer", processes: Processes
) -> None:
    async with balanced(tmp_path, postgres, processes) as fleet:
        balancer = await fleet.start_balancer(fleet.configured("haproxy.cfg"))
        before = await fleet.add_node("before")
        (old,) = balancer.workers()
        await asyncio.to_thread(balancer.reload)
        after = await fleet.add_node("after")
        assert {view.state for view in await fleet.run()} == {SUCCEEDED}
        assert (before.link.streams_opened, after.link.streams_opened) == (1, 1)

        os.kill(old, signal.SIGTERM)  # what `hard-stop-after` does
        await before.wait_live(streams=2)
        assert {view.state for view in await fleet.run()} == {SUCCEEDED}
        assert after.link.streams_opened == 1
