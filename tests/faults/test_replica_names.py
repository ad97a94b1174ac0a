"""A copied data folder, or one replica id given twice: two processes of one name on one PostgreSQL."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fleet_server.replicas.fence import NameTakenError
from tests.fakes.process import Processes
from tests.integration.clock import QuickClock
from tests.integration.installation import Installation
from tests.integration.processes import ServerProcess
from tests.integration.workers import on_postgres

if TYPE_CHECKING:
    from tests.fakes.postgres import PostgresServer


class Named(ServerProcess):
    """A server process called r1."""

    def options(self) -> Sequence[str]:
        """Further options of `run`."""
        return ["--set", "replica_id=r1"]


async def test_the_second_of_a_name_is_refused_and_one_that_was_thought_dead_stops_when_it_comes_back(
    tmp_path: Path, postgres: "PostgresServer", processes: Processes
) -> None:
    async with (
        on_postgres(postgres) as (template, url),
        Named(tmp_path / "a", template, processes, database_url=url) as first,
    ):
        second = Installation(tmp_path / "b", template, database_url=url, replica_id="r1")
        node = await first.enroll("n-1", endpoints=(first.gateway, second.gateway))
        await node.start()
        with pytest.raises(NameTakenError, match="another process serves as replica r1"):
            await second.start_server()
        assert (await first.owner.node("n-1")).online, "the one that lives was left alone"

        assert first.process is not None
        first.process.freeze()
        second.clock = QuickClock(speed=10)  # six seconds without a beat pass quickly on its clock
        async with second:
            first.process.thaw()
            assert await asyncio.to_thread(first.process.wait_exit) == 3
            assert any("replica_replaced" in line for line in first.process.lines)
            await node.wait_live(streams=2)
            assert (await second.owner.wait_node("n-1", lambda view: view.online)).replica_id == "r1"
            kinds = [row.kind for row in await second.owner.audit()]
            assert kinds.count("replica.started") == 2
            assert "audit.tampered" not in kinds
            await node.stop()
