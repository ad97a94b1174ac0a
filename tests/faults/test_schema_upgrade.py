"""A release whose schema is newer comes while the servers of this one serve.

Must hold: the schema is upgraded under live traffic; servers of both releases serve side by side, and an older one may
start again; a drain of the older hands its nodes to the newer; nothing is lost and nothing runs twice.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from fleet.clock import SystemClock
from fleet.v1 import command_pb2
from fleet_server import bootstrap
from tests.fakes import newer_schema
from tests.fakes.process import Processes
from tests.integration.installation import RunningNode, Template, assert_each_ran_once, free_ports, server_settings
from tests.integration.processes import ServerProcess
from tests.integration.traffic import more, traffic

if TYPE_CHECKING:
    from tests.fakes.postgres import PostgresServer


class LaterServer(ServerProcess):
    """A server of the release to come."""

    migrations: Path

    def program(self) -> Sequence[str | Path]:
        """The module that it runs, and what comes before the verb."""
        return ["tests.fakes.newer_schema", self.migrations]


@pytest.fixture
async def releases(
    tmp_path: Path, postgres: "PostgresServer", processes: Processes
) -> AsyncIterator[tuple[ServerProcess, LaterServer]]:
    """A running server, and one of a later release that does not run yet; neither upgraded anything."""
    name = postgres.create_database()
    url = SecretStr(postgres.url(name))
    data = tmp_path / "template"
    settings = server_settings(data, *free_ports(2), database_url=url)
    made = await asyncio.to_thread(lambda: asyncio.run(bootstrap.init(settings, owner="owner", clock=SystemClock())))
    assert made.owner_token is not None
    template = Template(data, made.owner_token.reveal())
    (tmp_path / "later").mkdir()
    later = LaterServer(tmp_path / "b", template, processes, database_url=url, heartbeat_interval_s=1)
    later.migrations = newer_schema.write_migrations(tmp_path / "later")
    async with ServerProcess(tmp_path / "a", template, processes, database_url=url, heartbeat_interval_s=1) as server:
        yield server, later
    if later.process is not None:
        await later.crash_server()
        await later.owner.close()
    postgres.drop_database(name)


async def upgrade(later: LaterServer) -> None:
    """`fleet-server db upgrade` of the later release."""
    url = later.settings.database_url.get_secret_value()
    command = [*later.program(), "db", "upgrade", "--data-dir", later.data]
    done = later._processes.fork(*command, name="upgrade", env={"FLEET_DATABASE_URL": url})
    assert await asyncio.to_thread(done.wait_exit) == 0, done.tail()
    assert f"schema revision {newer_schema.later(2)}, before: {newer_schema.head()}" in done.tail()


async def test_a_schema_is_upgraded_under_traffic_and_both_releases_serve_beside_each_other(
    releases: tuple[ServerProcess, LaterServer],
) -> None:
    older, later = releases
    node = await older.add_node("n-1", endpoints=(older.gateway, later.gateway))
    async with traffic(older) as orders:
        await more(orders, 5)
        await upgrade(later)
        await more(orders, 5)
    assert node.link.streams_opened == 1

    await later.start_server()
    await run(later, await later.add_node("n-2"))
    assert await older.stop_server() == 0  # it drains
    await node.wait_live(streams=2)
    views = [view for order in orders for view in await later.owner.outcomes(order)]
    views += await later.owner.run("n-1", count=3)
    assert {view.state for view in views} == {command_pb2.COMMAND_STATE_SUCCEEDED}
    assert [view.monotonic_seq for view in views] == list(range(1, len(views) + 1))
    assert_each_ran_once(node, [view.command_id for view in views])

    await older.start_server()  # on a schema that it does not know
    await run(older, await older.add_node("n-3"))


async def run(server: ServerProcess, node: RunningNode) -> None:
    """Commands to it run once."""
    views = await server.owner.run(node.name, count=3)
    assert {view.state for view in views} == {command_pb2.COMMAND_STATE_SUCCEEDED}
    assert_each_ran_once(node, [view.command_id for view in views])
