"""Two replicas on one PostgreSQL: what is decided at one takes effect on the streams that the other holds."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from fleet.clock import SystemClock
from fleet.v1 import admin_pb2, command_pb2
from fleet_server import bootstrap
from fleet_server.nodes import poll
from tests.integration.installation import Installation, Template, free_ports, server_settings

if TYPE_CHECKING:
    from tests.fakes.postgres import PostgresServer


@pytest.fixture
async def replicas(tmp_path: Path, postgres: "PostgresServer") -> AsyncIterator[tuple[Installation, Installation]]:
    """Two servers of one installation, each with listeners of its own."""
    name = postgres.create_database()
    url = SecretStr(postgres.url(name))
    data = tmp_path / "template"
    settings = server_settings(data, *free_ports(2), database_url=url)
    made = await asyncio.to_thread(lambda: asyncio.run(bootstrap.init(settings, owner="owner", clock=SystemClock())))
    assert made.owner_token is not None
    template = Template(data, made.owner_token.reveal())
    async with (
        Installation(tmp_path / "a", template, database_url=url, replica_id="replica-a") as first,
        Installation(tmp_path / "b", template, database_url=url, replica_id="replica-b") as second,
    ):
        yield first, second
    postgres.drop_database(name)


def test_a_decision_is_looked_for_often_enough_to_take_effect_within_a_second() -> None:
    assert poll.INTERVAL_S <= 0.5


async def test_suspend_resume_and_revoke_reach_a_stream_on_the_other_replica(
    replicas: tuple[Installation, Installation],
) -> None:
    here, there = replicas
    node = await here.add_node("n-1")
    assert (await there.owner.node("n-1")).replica_id == "replica-a"

    await there.owner.set_state("n-1", "SUSPENDED", "odd readings")
    assert "odd readings" in await node.wait_refused("SUSPENDED")
    await there.owner.wait_node("n-1", lambda view: not view.online)

    await there.owner.set_state("n-1", "ACTIVE", "checked")
    await node.stop()  # it asks again by itself after 20 s; a start asks at once
    await node.start()
    (view,) = await here.owner.run("n-1")
    assert view.state == command_pb2.COMMAND_STATE_SUCCEEDED

    await there.owner.set_state("n-1", "REVOKED", "stolen")
    assert "stolen" in await node.wait_refused("REVOKED")


async def test_a_drain_reaches_a_stream_on_the_other_replica(replicas: tuple[Installation, Installation]) -> None:
    here, there = replicas
    await here.add_node("n-1")
    request = admin_pb2.DrainNodesRequest(selector=admin_pb2.Selector(patterns=["n-1"]))
    answers = [answer async for answer in there.owner.follow("DrainNodes", request)]
    assert answers[-1].done
    assert (await there.owner.node("n-1")).drain_state == "DRAINED"
