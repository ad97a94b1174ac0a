"""What the programs take of the machine that they run on: the node daemon, and fleetctl."""

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from fleet_node.commands.opening import ensure_journal
from fleet_node.enrollment.folder import StateFolder
from fleet_node.enrollment.membership import load_membership
from tests.load.bare.machine import program_start_s
from tests.load.context import Context
from tests.load.product.installation import Installation, bounded, end_program, installation
from tests.load.results import Figures

_BIN = Path(sys.executable).parent
_ONLINE_TIMEOUT_S = 30.0
_TELEMETRY_INTERVAL_S = 10


async def node_daemon(ctx: Context) -> Figures:
    """A real `fleet-node run` with the host driver: start until the server shows it online, memory, CPU at rest."""
    async with installation(ctx, "a7", nodes=1) as server:
        _make_journal(server.node_folders[0])
        starts_s = []
        for _ in range(ctx.scaled(5, 1)):
            async with _daemon(server) as (_, start_s):
                starts_s.append(start_s)
        async with _daemon(server) as (process, _):
            await asyncio.sleep(ctx.scaled(5.0, 2.0))
            span_s = ctx.scaled(3.0, 0.5) * _TELEMETRY_INTERVAL_S
            before_s = _cpu_s(process)
            await asyncio.sleep(span_s)
            return {
                "start_to_stream_s": statistics.median(starts_s),
                "rss_mib": process.memory_info().rss / 1024**2,
                "idle_cpu_percent": (_cpu_s(process) - before_s) / span_s * 100,
            }


async def fleetctl(ctx: Context) -> Figures:
    """Wall time of `fleetctl --help`, and of `fleetctl nodes list` of all nodes, start to exit."""
    times, nodes = ctx.scaled((9, 1_000), (3, 200))
    program = str(_BIN / "fleetctl")
    help_s = await program_start_s([program, "--help"], times)
    async with installation(ctx, "a8", nodes=nodes) as server:
        token_path = server.folder / "owner.token"
        token_path.touch(mode=0o600)
        token_path.write_text(server.token)
        environment = {
            **os.environ,
            "FLEETCTL_PROFILE": str(server.folder / "profile.toml"),
            "FLEETCTL_SERVER": server.settings.admin_listen,
            "FLEETCTL_CA_FILE": str(server.settings.data_dir / "tls" / "ca.crt"),
            "FLEETCTL_TOKEN_FILE": str(token_path),
        }
        list_s = await program_start_s([program, "nodes", "list"], times, environment)
    return {"help_s": help_s, "nodes_list_s": list_s, "nodes": nodes}


def _make_journal(state_folder: str) -> None:
    """As enrollment would have: a node whose journal is missing does not start."""
    folder = StateFolder(Path(state_folder))
    membership = load_membership(folder.membership)
    assert membership is not None
    ensure_journal(folder.journal, membership.node_id)


@asynccontextmanager
async def _daemon(server: Installation) -> AsyncIterator[tuple[psutil.Process, float]]:
    """The daemon's process for the length of the block, and the seconds from its start to its stream."""
    async with server.presence() as presence:
        await presence.wait_offline(_ONLINE_TIMEOUT_S)
        log_path = server.folder / "node.log"
        with log_path.open("wb") as log:
            started_at_s = time.perf_counter()
            process = await asyncio.create_subprocess_exec(
                *bounded([str(_BIN / "fleet-node"), "run", "--state-dir", server.node_folders[0]]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "FLEET_NODE_TELEMETRY_INTERVAL_S": str(_TELEMETRY_INTERVAL_S),
                    "FLEET_NODE_METRICS_LISTEN": "127.0.0.1:0",
                },
            )
        try:
            await presence.wait_online(_ONLINE_TIMEOUT_S)
            yield psutil.Process(process.pid), time.perf_counter() - started_at_s
        except TimeoutError:
            raise ChildProcessError(f"fleet-node did not come online: {log_path.read_text()[-2000:]}") from None
        finally:
            await end_program(process)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
