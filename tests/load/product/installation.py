"""A real `fleet-server` process for one row, with nodes that are members already.

Nodes are made in the database by the product's own rooms before the server starts: enrolling thousands over the wire
would measure enrollment, which is limited per address on purpose.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
from pydantic import SecretStr

from fleet.clock import SystemClock
from fleet.identity import NodeKeys, store_node_keys
from fleet.secrets import Secret
from fleet.v1 import admin_pb2, admin_pb2_grpc
from fleet_node.enrollment.folder import StateFolder
from fleet_node.enrollment.membership import BundleFile, Membership, save_membership
from fleet_server import bootstrap
from fleet_server.app import Server
from fleet_server.config import Settings
from tests.fakes.watch import Watch
from tests.load.child import MAX_LIFETIME_S
from tests.load.context import Context

_START_TIMEOUT_S = 30.0
_END_TIMEOUT_S = 15.0
_SECOND_SIGNAL_S = 3.0
_MEMBERS_AT_ONCE = 200


class Presence:
    """Which nodes are online, as the server tells an operator who watches."""

    def __init__(self) -> None:
        self._online: dict[str, bool] = {}
        self._watch = Watch()

    async def follow(self, changes: AsyncIterable[admin_pb2.WatchNodesResponse]) -> None:
        """Take over what the server tells."""
        async for change in changes:
            self._online.update({node.node_id: node.online for node in change.nodes})
            self._watch.changed()

    async def wait_online(self, timeout_s: float) -> None:
        """Return once every node is online; TimeoutError after `timeout_s`."""
        await self._wait(True, timeout_s)

    async def wait_offline(self, timeout_s: float) -> None:
        """Return once every node is offline; TimeoutError after `timeout_s`."""
        await self._wait(False, timeout_s)

    async def _wait(self, online: bool, timeout_s: float) -> None:
        await self._watch.wait_until(
            lambda: bool(self._online) and all(each == online for each in self._online.values()),
            lambda: f"{sum(self._online.values())} of {len(self._online)} nodes are online",
            timeout_s,
        )


@dataclass
class Installation:
    """A running server and what one needs to talk to it."""

    folder: Path
    settings: Settings
    token: str
    ca_pem: bytes
    node_folders: list[str]
    process: psutil.Process
    program: asyncio.subprocess.Process

    @property
    def ends_in_order(self) -> bool | None:
        """Whether the server ended with 0; None while it runs."""
        code = self.program.returncode
        return None if code is None else code == 0

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Credentials of the owner."""
        return (("authorization", f"Bearer {self.token}"),)

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[admin_pb2_grpc.AdminAsyncStub]:
        """A client of the admin service."""
        credentials = grpc.ssl_channel_credentials(self.ca_pem)
        async with grpc.aio.secure_channel(self.settings.admin_listen, credentials) as channel:
            yield admin_pb2_grpc.AdminStub(channel)

    def cpu_s(self) -> float:
        """CPU seconds of the server, all its threads."""
        times = self.process.cpu_times()
        return times.user + times.system

    def rss_bytes(self) -> int:
        """Resident memory of the server."""
        return self.process.memory_info().rss

    @asynccontextmanager
    async def presence(self) -> AsyncIterator[Presence]:
        """Follow which nodes are online, for the length of the block."""
        presence = Presence()
        async with self.admin() as admin:
            following = asyncio.create_task(
                presence.follow(admin.WatchNodes(admin_pb2.WatchNodesRequest(), metadata=self.metadata))
            )
            try:
                yield presence
            finally:
                following.cancel()
                await asyncio.wait({following})


@asynccontextmanager
async def installation(ctx: Context, name: str, *, nodes: int, **overrides: object) -> AsyncIterator[Installation]:
    """A server with `nodes` members, for the length of the block."""
    settings = _settings(ctx.folder / name, overrides)
    async with _running(settings, *await _prepared(settings, nodes)) as server:
        yield server


@dataclass(frozen=True, slots=True)
class Replica:
    """A server that can be started, again and again, on ports of its own."""

    settings: Settings
    token: str
    node_folders: list[str]

    def running(self) -> AbstractAsyncContextManager[Installation]:
        """The server, for the length of the block."""
        return _running(self.settings, self.token, self.node_folders)


async def prepare_replicas(
    ctx: Context, name: str, *, nodes: int, database_url: str, **overrides: object
) -> tuple[Replica, Replica]:
    """Two servers of one installation with `nodes` members, on one empty PostgreSQL database; none is started."""
    given = {**overrides, "database_url": SecretStr(database_url)}
    first, second = (
        _settings(ctx.folder / f"{name}-{which}", {**given, "replica_id": f"replica-{which}"}) for which in ("a", "b")
    )
    token, folders = await _prepared(first, nodes)
    shutil.copytree(first.data_dir, second.data_dir)  # the secrets that replicas share
    return Replica(first, token, folders), Replica(second, token, folders)


@asynccontextmanager
async def replicas(
    ctx: Context, name: str, *, nodes: int, database_url: str
) -> AsyncIterator[tuple[Installation, Installation]]:
    """The two of them, running."""
    first, second = await prepare_replicas(ctx, name, nodes=nodes, database_url=database_url)
    async with first.running() as one, second.running() as another:
        yield one, another


async def _prepared(settings: Settings, nodes: int) -> tuple[str, list[str]]:
    """A new installation with members: its owner's token, and the nodes' state folders."""
    made = await bootstrap.init(settings, owner="owner", clock=SystemClock())
    assert made.owner_token is not None
    return made.owner_token.reveal(), await make_members(settings, settings.data_dir.parent / "nodes", nodes)


@asynccontextmanager
async def _running(settings: Settings, token: str, node_folders: list[str]) -> AsyncIterator[Installation]:
    folder = settings.data_dir.parent
    log_path = folder / "server.log"
    with log_path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *bounded([sys.executable, "-m", "fleet_server", "run", *_flags(settings)]),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={
                **os.environ,
                "GRPC_VERBOSITY": "NONE",
                "FLEET_DATABASE_URL": settings.database_url.get_secret_value(),
            },
        )
    try:
        await _wait_listening(settings, process, log_path)
        yield Installation(
            folder=folder,
            settings=settings,
            token=token,
            ca_pem=(settings.data_dir / "tls" / "ca.crt").read_bytes(),
            node_folders=node_folders,
            process=psutil.Process(process.pid),
            program=process,
        )
    finally:
        await end_program(process)


def _settings(folder: Path, overrides: dict[str, object]) -> Settings:
    ports = _free_ports(3)
    values: dict[str, object] = {
        "data_dir": folder / "server",
        "gateway_listen": f"127.0.0.1:{ports[0]}",
        "admin_listen": f"127.0.0.1:{ports[1]}",
        "metrics_listen": f"127.0.0.1:{ports[2]}",
        "log_level": "warning",
    }
    folder.mkdir(mode=0o700, parents=True)
    return Settings(**{**values, **overrides})  # type: ignore[arg-type]


def _flags(settings: Settings) -> Sequence[str]:
    names = (
        "gateway_listen",
        "admin_listen",
        "metrics_listen",
        "log_level",
        "heartbeat_interval_s",
        "drain_deadline_s",
        "max_streams",
        "rebalance",
    )
    flags = [f"--set={name}={getattr(settings, name)}" for name in names]
    if settings.replica_id:
        flags.append(f"--set=replica_id={settings.replica_id}")
    return ["--data-dir", str(settings.data_dir), *flags]


async def make_members(settings: Settings, folder: Path, count: int) -> list[str]:
    """Make `count` members of an installation whose server does not run, by its own rooms; their state folders."""
    server = Server(settings, bootstrap.load_secrets(settings), bootstrap.open_tls(settings, SystemClock()))
    server.database.start()
    try:
        await server.trust.load()
        server.build_rooms()
        paths: list[str] = []
        for start in range(0, count, _MEMBERS_AT_ONCE):
            batch = range(start, min(start + _MEMBERS_AT_ONCE, count))
            paths += await asyncio.gather(*(_make_member(server, folder / f"n{index:05}", index) for index in batch))
        return paths
    finally:
        await server.database.close()


async def _make_member(server: Server, path: Path, index: int) -> str:
    keys = NodeKeys.generate()
    node, api_key = await server.database.write(
        lambda tx: (
            node := server.nodes.create(
                tx,
                cluster_id=server.trust.cluster_id,
                name=f"node-{index:05}",
                site="",
                identity_key=keys.identity.public_key,
                sealing_key=keys.sealing_public,
                labels={},
            ),
            server.sessions.rotations.issue_api_key(tx, node.node_id),
        )
    )
    folder = StateFolder(path)
    store_node_keys(folder.path, keys)
    membership = Membership(
        cluster_id=server.trust.cluster_id,
        node_id=node.node_id,
        name=node.name,
        site="",
        endpoints=server.settings.advertised_endpoints(),
        tls_ca_der=server.certificates.ca_der,
        authority_key=server.trust.authority.public_key,
        owner_pin=b"",
        api_key=Secret(api_key),
        telemetry_interval_s=3600.0,
        max_in_flight=32,
    )
    BundleFile(folder.bundle, cluster_id=membership.cluster_id, authority_key=membership.authority_key).save(
        server.trust.bundle
    )
    save_membership(folder.membership, membership)
    return str(path)


async def _wait_listening(settings: Settings, process: asyncio.subprocess.Process, log: Path) -> None:
    host, port = settings.gateway_listen.split(":")
    async with asyncio.timeout(_START_TIMEOUT_S):
        while True:
            if process.returncode is not None:
                raise ChildProcessError(f"fleet-server ended with {process.returncode}: {log.read_text()[-2000:]}")
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return


def bounded(argv: Sequence[str]) -> list[str]:
    """The program, started so that it ends by itself should this process be killed. An alarm survives exec."""
    launch = f"import os, signal, sys; signal.alarm({MAX_LIFETIME_S}); os.execv(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-ISc", launch, *argv]


async def end_program(process: asyncio.subprocess.Process) -> None:
    """SIGTERM; a second one, as nothing is to be drained; SIGKILL when it still runs after 15 s."""
    if process.returncode is not None:
        return
    try:
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SECOND_SIGNAL_S):
                    await process.wait()
                    return
        async with asyncio.timeout(_END_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
    except BaseException:
        process.kill()
        raise


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
