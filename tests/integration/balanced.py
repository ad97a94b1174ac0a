"""Two replicas on one PostgreSQL, and a HAProxy with a shipped config through which nodes and operators come."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from fleet.clock import SystemClock
from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2
from fleet_server import bootstrap
from tests.fakes.haproxy import CONFIGS, HaProxy, adapted
from tests.fakes.process import Processes
from tests.integration.clock import QuickClock
from tests.integration.installation import Installation, RunningNode, Template, free_ports, server_settings
from tests.integration.operator import Operator
from tests.integration.waiting import eventually

if TYPE_CHECKING:
    from tests.fakes.postgres import PostgresServer

_PAUSE_S = 0.02  # paces what is issued, so that other things get their turn on the one loop; nothing waits for it
_ALL = 500
_ENOUGH = 8
_AWAY = frozenset({Reason.UNAVAILABLE, Reason.DRAINING})


@dataclass(slots=True)
class Balanced:
    """Replicas, balancer, and an operator who knows the balancer alone.

    Args:
        replicas: in the order of the balancer's config.
        metrics_ports: of the replicas, where the balancer asks for their health.
        gateway: where nodes connect.
        admin: where operators connect.
    """

    folder: Path
    processes: Processes
    replicas: tuple[Installation, ...]
    metrics_ports: tuple[int, ...]
    gateway: str
    admin: str
    owner: Operator
    balancer: HaProxy | None = None
    orders: list[str] = field(default_factory=list)

    def configured(
        self,
        name: str,
        listens: dict[str, str] | None = None,
        gateways: Sequence[str] | None = None,
        **timeouts: str,
    ) -> str:
        """A shipped config, for these replicas.

        Args:
            listens: where it listens, if not where the operator and nodes come.
            gateways: where it meets the replicas' gateways, if not straight.
        """
        servers: dict[str, str] = {}
        for number, (replica, port) in enumerate(zip(self.replicas, self.metrics_ports, strict=True)):
            servers[f"fleet-{number}"] = str(port)
            servers[f"fleet-{number}:7443"] = gateways[number] if gateways else replica.gateway
            servers[f"fleet-{number}:7444"] = f"127.0.0.1:{replica.admin_port}"
        listens = listens or {"7443": self.gateway, "7444": self.admin}
        return adapted((CONFIGS / name).read_text(), servers, listens, timeouts)

    async def start_balancer(self, config: str) -> HaProxy:
        """Start it; returns once it sends to every replica."""
        balancer = HaProxy(self.processes, self.folder / "lb", config)
        await asyncio.to_thread(balancer.start)
        await self.wait_statuses(balancer, *("UP" for _ in self.replicas))
        self.balancer = balancer
        return balancer

    async def wait_statuses(self, balancer: HaProxy, *statuses: str) -> None:
        """Return once it says that of the gateways of the replicas, in order."""
        await eventually(
            lambda: list(balancer.statuses("gateway").values()) == list(statuses), f"its replicas are {statuses}"
        )

    async def add_node(self, name: str, **settings: Any) -> RunningNode:
        """Enroll a node through the balancer, start it, and wait until it holds its stream."""
        first = self.replicas[0]
        token = await first.join_token()
        node = await first.enroll(name, token, **({"endpoints": (self.gateway,)} | settings))
        await node.start()
        return node

    async def one_node_on_each(self) -> dict[str, RunningNode]:
        """A node of each replica, by the replica's id: the balancer sends the next one where fewest are, about."""
        held: dict[str, RunningNode] = {}
        for number in range(_ENOUGH):
            node = await self.add_node(f"n-{number}")
            held.setdefault((await self.owner.node(node.name)).replica_id, node)
            if len(held) == len(self.replicas):
                return held
        raise AssertionError(f"{_ENOUGH} nodes went to {list(held)} alone")

    async def issue(self, nodes: str = "*", count: int = 4) -> None:
        """Issue through the balancer, as a client that is sure of it: the same again until it was answered."""
        key = uuid.uuid4().hex

        async def once() -> bool:
            try:
                answer = await self.owner.issue(nodes, count=count, idempotency_key=key)
            except Refusal as refusal:
                if refusal.reason not in _AWAY:
                    raise
                return False
            self.orders.append(answer.issue_id)
            return True

        await eventually(once, "an order is taken")

    @contextlib.asynccontextmanager
    async def traffic(self, nodes: str = "*") -> AsyncIterator[None]:
        """Commands to nodes all the while; `orders` has what was taken."""
        done = asyncio.Event()

        async def issuing() -> None:
            while not done.is_set():
                await self.issue(nodes)
                await asyncio.sleep(_PAUSE_S)

        task = asyncio.create_task(issuing())
        try:
            yield
        finally:
            done.set()
            await task

    async def more(self, count: int = 3) -> None:
        """Return once so many orders were taken after now."""
        wanted = len(self.orders) + count
        await eventually(lambda: len(self.orders) >= wanted, f"{count} more orders")

    async def run(self, nodes: str = "*") -> list[admin_pb2.CommandView]:
        """Issue through the balancer, and wait for every outcome."""
        await self.issue(nodes, count=1)
        return await self._outcomes(self.orders.pop())

    async def outcomes(self) -> list[admin_pb2.CommandView]:
        """Every command of every order, once all are final."""
        return [view for order in self.orders for view in await self._outcomes(order)]

    async def _outcomes(self, order: str) -> list[admin_pb2.CommandView]:
        async def none_open() -> bool:
            request = admin_pb2.ListCommandsRequest(issue_id=order, open_only=True)
            return not (await self.owner.ask("ListCommands", request)).commands

        await eventually(none_open, "every command is final")
        request = admin_pb2.ListCommandsRequest(issue_id=order, page=admin_pb2.Page(size=_ALL))
        return list((await self.owner.ask("ListCommands", request)).commands)


@contextlib.asynccontextmanager
async def balanced(
    folder: Path,
    postgres: "PostgresServer",
    processes: Processes,
    *changes: dict[str, Any],
    clock: QuickClock | None = None,
    **settings: Any,
) -> AsyncIterator[Balanced]:
    """Two running replicas, and no balancer yet.

    Args:
        changes: settings of one replica alone, in order.
    """
    name = postgres.create_database()
    gateway_port, admin_port, *metrics_ports = free_ports(4)
    gateway, admin = f"127.0.0.1:{gateway_port}", f"127.0.0.1:{admin_port}"
    url = SecretStr(postgres.url(name))
    common = {"database_url": url, "gateway_endpoints": (gateway,), **settings}
    data = folder / "template"
    first = server_settings(data, *free_ports(2), **common)
    made = await asyncio.to_thread(lambda: asyncio.run(bootstrap.init(first, owner="owner", clock=SystemClock())))
    assert made.owner_token is not None
    template = Template(data, made.owner_token.reveal())
    async with contextlib.AsyncExitStack() as stack:
        replicas: list[Installation] = []
        for number, metrics_port in enumerate(metrics_ports):
            own = changes[number] if number < len(changes) else {}
            replica = Installation(
                folder / f"fleet-{number}",
                template,
                clock=clock,
                replica_id=f"fleet-{number}",
                metrics_listen=f"127.0.0.1:{metrics_port}",
                **common,
                **own,
            )
            replicas.append(await stack.enter_async_context(replica))
        owner = Operator(admin, replicas[0].ca_pem, template.owner_token)
        stack.push_async_callback(owner.close)
        yield Balanced(folder, processes, tuple(replicas), tuple(metrics_ports), gateway, admin, owner)
    postgres.drop_database(name)
