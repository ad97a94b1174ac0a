"""The world of a run: PostgreSQL, replicas, processes full of nodes, single nodes, and a faulty network between all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from fleet.clock import SystemClock
from fleet_node.commands.opening import ensure_journal
from fleet_node.enrollment.folder import StateFolder
from fleet_node.enrollment.membership import Membership, load_membership
from fleet_server import bootstrap
from tests.chaos.database import MortalPostgres
from tests.chaos.node_group import DRIVERS, Spec, driver_tables
from tests.chaos.programs import ROOT, Program, plugin_folder
from tests.chaos.schedule import Shape
from tests.fakes.process import Processes
from tests.fakes.proxy import FaultProxy
from tests.integration.installation import free_ports, server_settings
from tests.load.product.installation import make_members

_REPLICA_SETTINGS = {
    "heartbeat_interval_s": "3",
    "drain_deadline_s": "6",
    "log_level": "info",
    "log_format": "json",
    "metrics_listen": "off",
}
_START_AT_ONCE = 2
"""Processes of nodes that start side by side: each takes a core while its nodes begin."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is.

    Args:
        replicas: server processes.
        groups: processes of many nodes.
        group_nodes: nodes in each of them.
        nodes: processes of one node.
    """

    replicas: int = 3
    groups: int = 4
    group_nodes: int = 48
    nodes: int = 8

    @classmethod
    def of(cls, nodes: int) -> Size:
        """About `nodes` nodes in all, most of them in groups of at most 50."""
        single = min(8, max(2, nodes // 10))
        groups = max(2, -(-(nodes - single) // 50))
        return cls(groups=groups, group_nodes=max(1, (nodes - single) // groups), nodes=single)

    @property
    def members(self) -> int:
        """Nodes in all."""
        return self.groups * self.group_nodes + self.nodes

    def shape(self) -> Shape:
        """What of it can be broken."""
        tens = range((self.members + 9) // 10)
        return Shape(
            replicas=[f"replica-{number}" for number in range(1, self.replicas + 1)],
            groups=[f"group-{number}" for number in range(1, self.groups + 1)],
            nodes=[f"single-{number}" for number in range(1, self.nodes + 1)],
            patterns=[f"node-{ten:04}?" for ten in tens],
        )


@dataclass
class World:
    """Everything that runs. Made by `world`."""

    folder: Path
    size: Size
    shape: Shape
    database: MortalPostgres
    token: str = ""
    ca_pem: bytes = b""
    admins: list[str] = field(default_factory=list)
    node_folders: list[Path] = field(default_factory=list)
    replicas: dict[str, Program] = field(default_factory=dict)
    groups: dict[str, Program] = field(default_factory=dict)
    singles: dict[str, Program] = field(default_factory=dict)
    links: dict[str, FaultProxy] = field(default_factory=dict)

    @property
    def node_programs(self) -> list[Program]:
        """Whatever runs nodes."""
        return [*self.groups.values(), *self.singles.values()]

    @property
    def programs(self) -> list[Program]:
        """Everything that was started, the database aside."""
        return [*self.replicas.values(), *self.node_programs]

    def memberships(self) -> dict[str, tuple[Path, Membership]]:
        """State folder and membership of each node, by its id."""
        found = ((path, load_membership(StateFolder(path).membership)) for path in self.node_folders)
        return {membership.node_id: (path, membership) for path, membership in found if membership is not None}

    async def heal(self) -> list[str]:
        """End every fault of the network and of programs; returns once all is up again.

        Returns:
            What did not come up, in words.
        """
        for link in self.links.values():
            link.heal()
        for program in self.programs:
            program.thaw()
        for program in self.singles.values():
            await program.kill()  # in a new process the minute is over that the old one may wait before it comes back
        for program in self.programs:
            program.start()
        results = await asyncio.gather(*(program.wait_ready() for program in self.programs), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, TimeoutError):
                raise result
        return [str(result) for result in results if result is not None]


@contextlib.asynccontextmanager
async def world(folder: Path, size: Size, *, lifetime_s: int) -> AsyncIterator[World]:
    """Build and start everything; end everything, whatever happened.

    Args:
        folder: for all files.
        size: how much.
        lifetime_s: no process outlives it.
    """
    logs = folder / "logs"
    logs.mkdir(parents=True)
    processes = Processes(logs)
    database = await asyncio.to_thread(MortalPostgres)
    built = World(folder, size, size.shape(), database)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(database.stop)
        stack.callback(processes.end_all)
        await _open_links(built, stack)
        await _make_installation(built)
        _make_replicas(built, processes, lifetime_s)
        _make_nodes(built, processes, lifetime_s)
        stack.push_async_callback(_close, built)
        await _start(built.replicas.values(), len(built.replicas))
        await _start(built.node_programs, _START_AT_ONCE)
        yield built


async def _close(built: World) -> None:
    for program in built.programs:
        await program.close()


async def _open_links(built: World, stack: contextlib.AsyncExitStack) -> None:
    for replica in built.shape.replicas:
        for site in [*built.shape.sites, "database"]:
            # Where it leads is known once the replica has its ports.
            target = built.database.socket_path
            built.links[f"{site}~{replica}"] = await stack.enter_async_context(FaultProxy(target))


async def _make_installation(built: World) -> None:
    """Members stand in the database before any replica starts: enrolling is not what is broken here."""
    first = built.folder / built.shape.replicas[0]
    settings = server_settings(first, *free_ports(2), database_url=SecretStr(built.database.url(built.database.name)))
    made = await bootstrap.init(settings, owner="owner", clock=SystemClock())
    assert made.owner_token is not None
    built.token = made.owner_token.reveal()
    built.ca_pem = made.tls_ca_file.read_bytes()
    folders = await make_members(settings, built.folder / "nodes", built.size.members)
    built.node_folders = [Path(path) for path in folders]
    for node_id, (path, _) in built.memberships().items():
        ensure_journal(StateFolder(path).journal, node_id)
    for other in built.shape.replicas[1:]:
        shutil.copytree(first, built.folder / other)


def _make_replicas(built: World, processes: Processes, lifetime_s: int) -> None:
    for replica in built.shape.replicas:
        gateway, admin = free_ports(2)
        built.admins.append(f"127.0.0.1:{admin}")
        for site in built.shape.sites:
            built.links[f"{site}~{replica}"].target = ("127.0.0.1", gateway)
        values = {
            **_REPLICA_SETTINGS,
            "gateway_listen": f"127.0.0.1:{gateway}",
            "admin_listen": f"127.0.0.1:{admin}",
            "replica_id": replica,
        }
        link = built.links[f"database~{replica}"]
        built.replicas[replica] = Program(
            processes,
            replica,
            ["fleet_server", "run", "--data-dir", built.folder / replica]
            + [f"--set={name}={value}" for name, value in values.items()],
            {"FLEET_DATABASE_URL": built.database.url(built.database.name, address=(link.host, link.port))},
            ready='"event": "ready"',
            lifetime_s=lifetime_s,
        )


def _make_nodes(built: World, processes: Processes, lifetime_s: int) -> None:
    plugins = plugin_folder(built.folder / "plugins")
    env = {"PYTHONPATH": os.pathsep.join([str(plugins), str(ROOT)])}
    folders = iter(built.node_folders)
    for group in built.shape.groups:
        own = [str(next(folders)) for _ in range(built.size.group_nodes)]
        spec = Spec(own, _endpoints(built, group)).write(built.folder / f"{group}.json")
        argv = ["tests.chaos.node_group", spec]
        built.groups[group] = Program(processes, group, argv, env, ready="nodes_started", lifetime_s=lifetime_s)
    for name in built.shape.nodes:
        config = built.folder / f"{name}.toml"
        config.write_text(_config(next(folders), _endpoints(built, "nodes")))
        argv = ["fleet_node", "run", "--config", config]
        built.singles[name] = Program(processes, name, argv, env, ready="stream_welcomed", lifetime_s=lifetime_s)


def _endpoints(built: World, site: str) -> list[str]:
    return [built.links[f"{site}~{replica}"].address for replica in built.shape.replicas]


def _config(folder: Path, endpoints: list[str]) -> str:
    lines = [
        f"state_dir = {json.dumps(str(folder))}",
        f"endpoints = {json.dumps(endpoints)}",
        'metrics_listen = ""',
        "telemetry_interval_s = 10.0",
        "concurrency = 8",
        "[drivers]",
        f"enabled = {json.dumps(DRIVERS)}",
    ]
    for name, table in driver_tables(folder).items():
        lines += [f"[drivers.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


async def _start(programs: Iterable[Program], at_once: int) -> None:
    turns = asyncio.Semaphore(at_once)

    async def one(program: Program) -> None:
        async with turns:
            program.start()
            await program.wait_ready()

    await asyncio.gather(*(one(each) for each in programs))
