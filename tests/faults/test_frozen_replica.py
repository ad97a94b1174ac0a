"""Fault: a replica stands still for longer than the others wait for it, and its nodes go elsewhere; then it goes on.

Must hold: it knows nothing of what it missed, and does no harm. What it had in hand for those nodes it neither signs
nor marks as sent, it finds out within a heartbeat that their streams were left behind, and the others see it as it is.
"""

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from fleet.clock import SystemClock
from fleet.v1 import admin_pb2, command_pb2
from fleet_server import bootstrap
from tests.fakes.process import Processes
from tests.fakes.proxy import FaultProxy
from tests.integration.installation import Installation, Template, assert_each_ran_once, free_ports, server_settings
from tests.integration.processes import ServerProcess
from tests.integration.waiting import eventually

if TYPE_CHECKING:
    from tests.fakes.postgres import PostgresServer


async def test_a_replica_that_was_paused_for_long_finds_its_nodes_gone(
    tmp_path: Path, postgres: "PostgresServer", processes: Processes
) -> None:
    name = postgres.create_database()
    url = SecretStr(postgres.url(name))
    made = await asyncio.to_thread(
        lambda: asyncio.run(
            bootstrap.init(
                server_settings(tmp_path / "template", *free_ports(2), database_url=url),
                owner="owner",
                clock=SystemClock(),
            )
        )
    )
    assert made.owner_token is not None
    template = Template(tmp_path / "template", made.owner_token.reveal())
    fields = {"database_url": url, "heartbeat_interval_s": 1}
    async with contextlib.AsyncExitStack() as running:
        frozen = await running.enter_async_context(ServerProcess(tmp_path / "a", template, processes, **fields))
        other = await running.enter_async_context(
            Installation(tmp_path / "b", template, replica_id="replica-b", **fields)
        )
        await check(frozen, other, await running.enter_async_context(FaultProxy(("127.0.0.1", frozen.gateway_port))))
    postgres.drop_database(name)


async def check(frozen: ServerProcess, other: Installation, proxy: FaultProxy) -> None:
    """All of it, on one node."""
    assert frozen.process is not None
    name = (await frozen.owner.ask("WhoAmI", admin_pb2.WhoAmIRequest())).replica_id
    node = await frozen.enroll("n-1", endpoints=(proxy.address,))
    await node.start()
    selector = admin_pb2.Selector(patterns=["n-1"])
    async for _ in frozen.owner.follow("DrainNodes", admin_pb2.DrainNodesRequest(selector=selector)):
        pass
    issue = await frozen.owner.issue("n-1", count=3)  # in the hand of the replica whose stream is held

    frozen.process.freeze()
    for connection in proxy.connections:
        connection.deafen()  # nor does it hear, once it goes on, that the node hung up
    proxy.target = ("127.0.0.1", other.gateway_port)
    await other.owner.wait_node("n-1", lambda view: view.online and view.replica_id == "replica-b")

    async def state(wanted: str) -> bool:
        listed = (await other.owner.ask("ListReplicas", admin_pb2.ListReplicasRequest())).replicas
        return any((each.replica_id, each.state) == (name, wanted) for each in listed)

    await eventually(lambda: state("LOST"), "the other one takes it for lost")
    frozen.process.thaw()
    await eventually(lambda: state("READY"), "it says that it is back")
    await other.owner.wait_audit("replica.started", lambda detail: detail.get("lost", False))
    await asyncio.to_thread(frozen.process.wait_line, "SUPERSEDED.*stream_closed")
    views = await frozen.owner.ask("ListCommands", admin_pb2.ListCommandsRequest(issue_id=issue.issue_id))
    assert {view.state for view in views.commands} == {command_pb2.COMMAND_STATE_QUEUED}, "none was marked as sent"
    there = await frozen.owner.node("n-1")
    assert (there.online, there.replica_id) == (True, "replica-b")

    await frozen.owner.ask("ResumeNodes", admin_pb2.ResumeNodesRequest(selector=selector))
    done = await other.owner.outcomes(issue.issue_id)
    assert {view.state for view in done} == {command_pb2.COMMAND_STATE_SUCCEEDED}
    assert_each_ran_once(node, [view.command_id for view in done])
