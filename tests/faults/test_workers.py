"""`fleet-server run --workers 2` on PostgreSQL, as processes that are killed, frozen, replaced and stopped."""

import asyncio
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fakes.process import Processes
from tests.fakes.service_manager import service_manager
from tests.integration.waiting import eventually
from tests.integration.workers import Workers, is_running, kill, on_postgres

if TYPE_CHECKING:
    from tests.fakes.postgres import PostgresServer


async def assert_all_run(workers: Workers) -> None:
    """Each node holds a stream, and runs what it is sent."""
    for name in workers.nodes:
        await workers.owner.wait_node(name, lambda view: view.online)
    before = {node: sum(node.runs().values()) for node in workers.nodes.values()}
    await workers.owner.issue("*")
    await eventually(
        lambda: all(sum(node.runs().values()) == ran + 1 for node, ran in before.items()), "each node has run it"
    )


async def test_workers_share_the_ports_and_are_replaced_one_by_one(
    tmp_path: Path, postgres: "PostgresServer", processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with service_manager(tmp_path) as told:
        monkeypatch.setenv("NOTIFY_SOCKET", told.address)
        monkeypatch.setenv("WATCHDOG_USEC", "60000000")
        async with (
            on_postgres(postgres) as (template, url),
            Workers(tmp_path, template, processes, database_url=url) as workers,
        ):
            assert workers.process is not None
            await asyncio.to_thread(told.wait, "READY=1")
            assert await workers.states() == {"1": "READY", "2": "READY"}
            assert (await workers.get("/readyz")).startswith("200 2 of 2 workers ready; 1: ready: 0 streams")
            for number in (1, 2):
                assert "fleet_server_streams_open" in await workers.get("/metrics", workers.probe_port + number)
            await workers.add_nodes(4)
            await assert_all_run(workers)

            (first,) = workers.pids(1)
            kill(first)
            await eventually(lambda: len(workers.pids(1)) == 2, "it is started again")
            await workers.wait_serving()
            await assert_all_run(workers)

            before = [workers.pids(number)[-1] for number in (1, 2)]
            workers.process.signal(signal.SIGHUP)
            await asyncio.to_thread(told.wait, "RELOADING=1")
            await asyncio.to_thread(told.wait, "READY=1", 2)
            assert not [pid for pid in before if is_running(pid)]
            assert await eventually(workers.states, "an operator is answered") == {"1": "READY", "2": "READY"}
            await assert_all_run(workers)

            rss_kib = int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{workers.process.pid}/status").read_text())[0])
            assert rss_kib < 40 * 1024, "the supervisor is light"
            assert await workers.stop_server() == 0
            assert "WATCHDOG=1" in told.lines
            assert "STOPPING=1" in told.lines
            assert not [pid for number in (1, 2) for pid in workers.pids(number) if is_running(pid)]


async def test_workers_end_without_their_supervisor_and_a_second_signal_shortens_the_drain_of_all(
    tmp_path: Path, postgres: "PostgresServer", processes: Processes
) -> None:
    async with (
        on_postgres(postgres) as (template, url),
        Workers(tmp_path, template, processes, database_url=url, drain_deadline_s=600) as workers,
    ):
        assert workers.process is not None
        left = [pid for number in (1, 2) for pid in workers.pids(number)]
        await workers.crash_server()
        await eventually(lambda: not [pid for pid in left if is_running(pid)], "no worker is left")

        await workers.start_server()  # finds ports, names and locks free
        proxy = await workers.proxy()
        await workers.add_node("n-1", endpoints=(proxy.address,))
        proxy.deafen()  # its stream stays until somebody ends it
        workers.process.terminate()
        await asyncio.to_thread(workers.process.wait_line, '"event": "draining"')
        workers.process.terminate()
        assert await asyncio.to_thread(workers.process.wait_exit) == 0
