"""Two replicas are restarted one after the other while an operator goes on commanding their nodes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import signal
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from fleet.v1 import admin_pb2, admin_pb2_grpc
from tests.load.context import Context
from tests.load.product.installation import Installation, Replica, prepare_replicas
from tests.load.product.light_nodes import LightFleet, light_fleet
from tests.load.product.measure import NOOP, alongside
from tests.load.product.postgres import durable_postgres
from tests.load.results import Figures

_EVERY_S = 0.05
_CALL_TIMEOUT_S = 10.0
_DRAIN_DEADLINE_S = 30
_EXIT_TIMEOUT_S = 60.0
_LAST_RESULTS_S = 30.0
_SETTLE_S = 3.0


async def rolling_restart(ctx: Context) -> Figures:
    """1,000 nodes on two replicas and 200 commands a second, each to one node; quiet for a while, then restarts."""
    nodes, per_s = ctx.scaled((1_000, 200), (60, 40))
    async with durable_postgres() as postgres, light_fleet(ctx, nodes) as fleet:
        pair = await prepare_replicas(
            ctx, "c4", nodes=nodes, database_url=postgres.url, drain_deadline_s=_DRAIN_DEADLINE_S
        )
        gateways = [replica.settings.gateway_listen for replica in pair]
        async with contextlib.AsyncExitStack() as stack:
            running = [_Restarted(replica) for replica in pair]
            for each in running:
                stack.push_async_callback(each.end)
                await each.start()
            await fleet.start(pair[0].node_folders, gateways)
            operator = _Operator(running, nodes, per_s)
            async with alongside(operator.issue()):
                await asyncio.sleep(ctx.scaled(10.0, 3.0))
                quiet_until_s = time.monotonic()
                drained_s = []
                for each in running:
                    drained_s.append(await each.restart())
                    await asyncio.sleep(_SETTLE_S)
                operator.ending = True
                await operator.idle.wait()
                ran = await _all_ran(fleet, operator)
        tally = await fleet.tally()
    gaps = {command_id: ran[command_id] - at_s for command_id, at_s in operator.issued.items() if command_id in ran}
    quiet = [gap for command_id, gap in gaps.items() if operator.issued[command_id] < quiet_until_s]
    restarting = [gap for command_id, gap in gaps.items() if operator.issued[command_id] >= quiet_until_s]
    return {
        "nodes": nodes,
        "commands": len(operator.issued),
        "lost": len(operator.issued) - len(gaps),
        "ran_twice": tally["ran_twice"],
        "gap_p50_s": statistics.median(restarting),
        "gap_p99_s": statistics.quantiles(restarting, n=100)[98],
        "gap_max_s": max(restarting),
        "quiet_gap_p99_s": statistics.quantiles(quiet, n=100)[98],
        "longest_drain_s": max(drained_s),
        "calls_repeated": operator.repeated,
        "refused_without_delay": tally["refused_OVERLOADED_without_delay"],
    }


async def _all_ran(fleet: LightFleet, operator: _Operator) -> dict[str, float]:
    """When each command ran, once all that were issued have, or time is up."""
    give_up_at_s = time.monotonic() + _LAST_RESULTS_S
    while True:
        ran: dict[str, float] = {}
        for child in fleet.children:
            ran |= await child.call("ran")
        if operator.issued.keys() <= ran.keys() or time.monotonic() > give_up_at_s:
            return ran
        await asyncio.sleep(0.5)


class _Restarted:
    """A replica, and the server that runs at the moment."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.server: Installation | None = None
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Start it, and return once it listens."""
        self.server = await self._stack.enter_async_context(self.replica.running())

    async def restart(self) -> float:
        """Drain it, as on SIGTERM, and start it again; seconds that it took to go."""
        assert self.server is not None
        started_at_s = time.monotonic()
        self.server.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(_EXIT_TIMEOUT_S):
            while self.server.ends_in_order is None:
                await asyncio.sleep(_EVERY_S)
        took_s = time.monotonic() - started_at_s
        if not self.server.ends_in_order:
            raise ChildProcessError(f"{self.replica.settings.replica_id} did not end in order when it was drained")
        await self.end()
        await self.start()
        return took_s

    async def end(self) -> None:
        """End it."""
        self.server = None
        await self._stack.aclose()


@dataclass
class _Operator:
    """Issues to one random node at a time, through each replica in turn; what is not answered is asked again."""

    replicas: Sequence[_Restarted]
    nodes: int
    per_s: int
    issued: dict[str, float] = field(default_factory=dict)
    """By command id, when it was asked for, on the monotonic clock of this machine."""
    repeated: int = 0
    ending: bool = False
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    async def issue(self) -> None:
        """Until `ending`."""
        of_tick = round(self.per_s * _EVERY_S)
        turns = itertools.cycle(range(len(self.replicas)))
        waiting: set[asyncio.Task[None]] = set()
        async with contextlib.AsyncExitStack() as stack:
            channels = []
            for each in self.replicas:
                assert each.server is not None
                credentials = grpc.ssl_channel_credentials(each.server.ca_pem)
                channel = grpc.aio.secure_channel(
                    each.replica.settings.admin_listen,
                    credentials,
                    options=[("grpc.max_reconnect_backoff_ms", 500), ("grpc.initial_reconnect_backoff_ms", 100)],
                )
                channels.append(await stack.enter_async_context(channel))
            admins = [admin_pb2_grpc.AdminStub(channel) for channel in channels]
            metadata = (("authorization", f"Bearer {self.replicas[0].replica.token}"),)
            next_at_s = time.monotonic()
            while not self.ending:
                waiting.add(asyncio.create_task(self._one_call(admins, next(turns), of_tick, metadata)))
                next_at_s += _EVERY_S
                await asyncio.sleep(max(0.0, next_at_s - time.monotonic()))
                done = {task for task in waiting if task.done()}
                waiting -= done
                for task in done:
                    task.result()
            await asyncio.gather(*waiting)
        self.idle.set()
        await asyncio.Event().wait()  # whoever runs this beside a block ends it with the block

    async def _one_call(
        self,
        admins: Sequence[admin_pb2_grpc.AdminAsyncStub],
        first: int,
        count: int,
        metadata: tuple[tuple[str, str], ...],
    ) -> None:
        chosen = random.sample(range(self.nodes), count)
        request = admin_pb2.IssueCommandsRequest(
            selector=admin_pb2.Selector(patterns=[f"node-{number:05}" for number in chosen]),
            commands=[NOOP],
            idempotency_key=random.randbytes(16).hex(),
        )
        asked_at_s = time.monotonic()
        for turn in itertools.count(first):
            try:
                answer = await admins[turn % len(admins)].IssueCommands(
                    request, metadata=metadata, timeout=_CALL_TIMEOUT_S
                )
            except grpc.aio.AioRpcError as error:
                if time.monotonic() - asked_at_s > _LAST_RESULTS_S:
                    raise
                self.repeated += 1
                await asyncio.sleep(0.01 if error.code() is grpc.StatusCode.UNAVAILABLE else _EVERY_S)
                continue
            self.issued.update((command.command_id.hex(), asked_at_s) for command in answer.issued)
            return
