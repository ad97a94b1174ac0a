"""A whole installation in one event loop: the real server on real ports, real nodes, real TLS, real files.

Nothing is faked but time, which may run faster. What needs a process that is really killed is in `processes`.
"""

import asyncio
import contextlib
import json
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from fleet import jointoken
from fleet.backoff import BackoffPolicy
from fleet.clock import Clock, SystemClock
from fleet.errors import Refusal
from fleet.v1 import admin_pb2
from fleet_node.app import Node, Parts
from fleet_node.commands.opening import ensure_journal
from fleet_node.config import Settings as NodeSettings
from fleet_node.drivers.registry import DriverRegistry
from fleet_node.enrollment.folder import StateFolder
from fleet_node.enrollment.membership import Membership
from fleet_node.enrollment.service import Applicant, EnrollmentService, Pins
from fleet_node.link.link_status import LinkState
from fleet_server import app, bootstrap
from fleet_server.config import Settings
from tests.fakes.proxy import FaultProxy
from tests.fakes.rogue import StolenTrust
from tests.integration.clock import QuickClock
from tests.integration.operator import Operator
from tests.integration.waiting import eventually

QUICK = BackoffPolicy(initial_s=0.05, maximum_s=0.3)
_STOP_TIMEOUT_S = 20.0


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        bound = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in bound:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in bound]


@dataclass(frozen=True, slots=True, repr=False)
class Template:
    """What `fleet-server init` leaves behind, made once and copied for each test that is content with SQLite."""

    data: Path
    owner_token: str

    def copy(self, to: Path) -> str:
        """A fresh installation at `to`; its owner's token."""
        shutil.copytree(self.data, to)
        return self.owner_token


def server_settings(data: Path, gateway_port: int, admin_port: int, **changes: Any) -> Settings:
    """Settings of a server that listens on loopback alone."""
    made: dict[str, Any] = {
        "data_dir": data,
        "gateway_listen": f"127.0.0.1:{gateway_port}",
        "admin_listen": f"127.0.0.1:{admin_port}",
        "metrics_listen": "off",
        "database_readers": 2,
    }
    return Settings(**(made | changes))


def make_template() -> Template:
    """Run `init` into a folder of its own."""
    data = Path(tempfile.mkdtemp(prefix="fleet-template-")) / "server"
    settings = server_settings(data, *free_ports(2))
    made = asyncio.run(bootstrap.init(settings, owner="owner", clock=SystemClock()))
    assert made.owner_token is not None
    return Template(data, made.owner_token.reveal())


class Installation:
    """A server and its nodes; an async context manager that starts the server and ends everything.

    Args:
        folder: for all files.
        template: what the server starts from.
        clock: of the server and of nodes that have none of their own.
        settings: changes to the server's settings.
    """

    def __init__(self, folder: Path, template: Template, *, clock: QuickClock | None = None, **settings: Any) -> None:
        self.folder = folder
        self.clock: QuickClock = clock or QuickClock()
        self.gateway_port, self.admin_port = free_ports(2)
        self.data = folder / "server"
        self.owner_token = template.copy(self.data)
        self.place = str(self.data)[-24:]  # no process has it: a server that crashed here is known to be gone
        self.settings = server_settings(self.data, self.gateway_port, self.admin_port, **settings)
        self.server: app.Server
        self.owner: Operator
        self.nodes: dict[str, RunningNode] = {}
        self._serving: asyncio.Task[int] | None = None
        self._proxies = contextlib.AsyncExitStack()

    @property
    def gateway(self) -> str:
        """Where nodes connect."""
        return f"127.0.0.1:{self.gateway_port}"

    @property
    def database_file(self) -> Path:
        """The SQLite file."""
        return self.data / "fleet.db"

    @property
    def ca_pem(self) -> bytes:
        """The installation's CA."""
        return (self.data / "tls" / "ca.crt").read_bytes()

    async def __aenter__(self) -> Self:
        await self.start_server()
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self.nodes.values():
            await node.stop()
        await self.owner.close()
        await self.crash_server()
        await self._proxies.aclose()

    # -- the server -------------------------------------------------------------------------------------------------
    async def start_server(self) -> None:
        """Start it on its ports and its data; returns once it is ready."""
        await self.launch()
        if not hasattr(self, "owner"):
            self.log_in()
        # A channel that found nobody waits before it tries again: it is not asked before somebody listens.
        await eventually(self._is_listening, "the server listens")
        await eventually(lambda: self.owner.ask("WhoAmI", admin_pb2.WhoAmIRequest()), "the server answers")

    def log_in(self) -> None:
        """Be the owner, who trusts the CAs that lie in the server's folder now; calls under way go on."""
        if hasattr(self, "owner"):
            self._proxies.push_async_callback(self.owner.close)
        self.owner = Operator(f"127.0.0.1:{self.admin_port}", self.ca_pem, self.owner_token)

    async def launch(self) -> None:
        """Start it, and wait for nothing."""
        certificates = bootstrap.open_tls(self.settings, self.clock)
        secrets = bootstrap.load_secrets(self.settings)
        self.server = app.Server(self.settings, secrets, certificates, self.clock, place=self.place)
        self._serving = asyncio.create_task(self.server.run())

    async def _is_listening(self) -> bool:
        if self._serving is not None and self._serving.done():
            self._serving.result()
            raise AssertionError("the server ended")
        return await self._accepts()

    async def _accepts(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.gateway_port)
        except OSError:
            return False
        writer.close()
        return True

    async def stop_server(self, deadline_s: int = 5) -> int:
        """Drain it in order, as SIGTERM does; its exit code."""
        assert self._serving is not None
        request = admin_pb2.DrainReplicaRequest(deadline_s=deadline_s, force=True)
        with contextlib.suppress(Refusal):
            async for _ in self.owner.follow("DrainReplica", request):
                break
        return await self.wait_ended()

    async def wait_ended(self) -> int:
        """Its exit code, once it was told to end and has."""
        assert self._serving is not None
        return await asyncio.wait_for(self._serving, _STOP_TIMEOUT_S)

    async def crash_server(self) -> None:
        """End it with nothing said to anybody. (Its process lives on: `processes` has the real thing.)"""
        if self._serving is None:
            return
        self._serving.cancel()
        await asyncio.wait({self._serving}, timeout=_STOP_TIMEOUT_S)
        self._serving = None

    async def operator(self, name: str, role: str) -> Operator:
        """A new operator."""
        made = await self.owner.ask("CreateOperator", admin_pb2.CreateOperatorRequest(name=name, role=role))
        return self.owner.colleague(made.token)

    def stolen(self) -> StolenTrust:
        """All that the server can sign with, as whoever took it would have it."""
        trust = self.server.trust
        assert trust.tls.leaf is not None
        return StolenTrust(
            cluster_id=trust.cluster_id,
            authority=trust.authority,
            command_key=trust._active("").signer,
            leaf=trust.tls.leaf.pair,
            bundles=(trust.bundle.signed,),
        )

    # -- nodes ------------------------------------------------------------------------------------------------------
    async def proxy(self) -> FaultProxy:
        """A faulty network in front of the gateway, closed with the installation."""
        return await self._proxies.enter_async_context(FaultProxy(("127.0.0.1", self.gateway_port)))

    async def join_token(self, **fields: Any) -> str:
        """Text of a join token that approves by itself, unless told otherwise."""
        request = admin_pb2.CreateJoinTokenRequest(**({"auto_approve": True, "max_uses": 100} | fields))
        return jointoken.encode((await self.owner.ask("CreateJoinToken", request)).token)

    async def enroll(self, name: str, token: str = "", **settings: Any) -> "RunningNode":
        """Enroll a node; it does not run yet."""
        node = RunningNode(self.folder / name, name, self.clock, **({"endpoints": (self.gateway,)} | settings))
        await node.enroll(token or await self.join_token())
        self.nodes[name] = node
        return node

    async def add_node(self, name: str, **settings: Any) -> "RunningNode":
        """Enroll a node, start it, and wait until it holds its stream."""
        node = await self.enroll(name, **settings)
        await node.start()
        return node

    async def add_nodes(self, count: int) -> list["RunningNode"]:
        """Nodes `n-1` to `n-<count>`."""
        token = await self.join_token()
        nodes = [await self.enroll(f"n-{number}", token) for number in range(1, count + 1)]
        await asyncio.gather(*(node.start() for node in nodes))
        return nodes


class RunningNode:
    """One node with its own folder, drivers and run log.

    Args:
        folder: of all its files.
        settings: changes to the node's settings.
    """

    def __init__(self, folder: Path, name: str, clock: Clock, **settings: Any) -> None:
        self.name = name
        self.clock = clock
        self.run_log = folder / "runs.jsonl"
        folder.mkdir(parents=True)
        simulated = {"log_path": str(self.run_log), **settings.pop("simulated", {})}
        self.settings = replace(
            NodeSettings(
                state_dir=folder / "state",
                name=name,
                metrics_listen="",
                telemetry_interval_s=3600.0,
                drivers_enabled=("simulated",),
                driver_tables={"simulated": simulated},
            ),
            **settings,
        )
        self.folder = StateFolder(self.settings.state_dir)
        self.membership: Membership
        self.node: Node | None = None
        self._drivers: DriverRegistry | None = None
        self._running: asyncio.Task[None] | None = None

    @property
    def node_id(self) -> str:
        """Its id in the cluster."""
        return self.membership.node_id

    def enrollment(self) -> EnrollmentService:
        """The enrolling half of its program."""
        return EnrollmentService(
            folder=self.folder,
            clock=self.clock,
            pins=Pins(),
            poll_interval_s=0.05,
            retrying=lambda *_: None,
            joining=lambda node_id: ensure_journal(self.folder.journal, node_id),
        )

    @property
    def applicant(self) -> Applicant:
        """What it says of itself when it asks to join."""
        return Applicant(self.name, {"os": "test"}, "0.1.0")

    async def enroll(self, token: str) -> None:
        """Ask, and wait for the decision."""
        service = self.enrollment()
        self.membership = await service.wait_decided(await service.apply(token, self.applicant))

    async def start(self, *, wait_live: bool = True) -> None:
        """Run it; returns once it holds its stream."""
        self.folder.lock()
        self._drivers = DriverRegistry.load(self.settings.drivers_enabled, self.settings.driver_tables)
        assert not self._drivers.problems, self._drivers.problems
        keys = self.enrollment().keys()
        parts = Parts(self.settings, self.folder, self.membership, keys, self._drivers, alone=False)
        self.node = Node(parts, clock=self.clock, backoff=QUICK)
        self._running = asyncio.create_task(self.node.run())
        if wait_live:
            await self.wait_live()

    async def wait_live(self, streams: int = 1) -> None:
        """Return once it holds a stream, and opened at least `streams` in this run."""
        await eventually(lambda: self._is_live(streams), f"{self.name} holds a stream")

    def _is_live(self, streams: int) -> bool:
        assert self.node is not None
        assert self._running is not None
        if self._running.done():
            self._running.result()
        status = self.node.link.status
        return status.state is LinkState.LIVE and status.streams_opened >= streams

    @property
    def link(self) -> Any:
        """Its link's status."""
        assert self.node is not None
        return self.node.link.status

    async def wait_refused(self, reason: str) -> str:
        """The sentence that the node shows, once it was refused for `reason`."""
        return await eventually(
            lambda: self.link.last_detail if self.link.last_refusal == reason else None, f"{self.name} is refused"
        )

    async def stop(self) -> None:
        """End it in order."""
        if self.node is None or self._running is None:
            return
        self.node.stop()
        try:
            await asyncio.wait_for(self._running, _STOP_TIMEOUT_S)
        finally:
            self.node, self._running = None, None
            assert self._drivers is not None
            await self._drivers.close()
            self.folder.unlock()

    # -- what the driver saw ----------------------------------------------------------------------------------------
    def runs(self) -> Counter[str]:
        """How often each command (hexadecimal id) was started."""
        return Counter(line["command_id"] for line in self._log_lines() if line["event"] == "start")

    def ended(self) -> int:
        """Runs that came to an end."""
        return sum(line["event"] == "end" for line in self._log_lines())

    def _log_lines(self) -> Iterator[dict[str, Any]]:
        if self.run_log.exists():
            yield from map(json.loads, self.run_log.read_text().splitlines())


def assert_each_ran_once(node: RunningNode, command_ids: list[bytes]) -> None:
    """Every command ran, none twice, and nothing else did."""
    assert node.runs() == Counter(each.hex() for each in command_ids)
