"""Hands streams on to replicas that hold less than their share: the executor of `replicas.balance`.

Nodes that wait for nothing are moved first; none twice within a while. They make before they break, so one that works
loses nothing either. Where each replica has endpoints of its own the goaway names those of the one that is meant;
behind one address the balancer there decides, and what it does is looked at before the next step.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.v1 import gateway_pb2
from fleet_server.observability.metrics import StreamMetrics
from fleet_server.replicas import balance
from fleet_server.replicas.balance import Balance
from fleet_server.replicas.rules import ReplicaRecord
from fleet_server.streams.registry import StreamRegistry
from fleet_server.streams.stream import Stream

log = get_logger(__name__)

SETTLE_S = 30.0
"""A step has had its time after so long, wherever its nodes are."""
MOVED_ONCE_IN_S = 600.0
"""One node."""


class Balancing:
    """Belongs to the event loop.

    Args:
        replicas: all, as the last heartbeats told.
        own_id: of this replica.
        chance: shuffles whom it concerns.
    """

    def __init__(
        self,
        *,
        registry: StreamRegistry,
        replicas: Callable[[], Sequence[ReplicaRecord]],
        own_id: str,
        clock: Clock,
        metrics: StreamMetrics,
        enabled: bool = True,
        chance: random.Random | None = None,
    ) -> None:
        self._registry = registry
        self._replicas = replicas
        self._own_id = own_id
        self._clock = clock
        self._metrics = metrics
        self._enabled = enabled
        self._chance = chance or random.Random()  # noqa: S311 - whom to move is no secret
        self._balance = Balance()
        self._told: dict[str, str] = {}  # node -> the stream that was to be left, of the step that is under way
        self._told_at_s = 0.0
        self._moved_at_s: dict[str, float] = {}

    async def run(self) -> None:
        """A round each few seconds, until cancelled."""
        while True:
            await self._clock.sleep(balance.ROUND_S)
            if self._enabled:
                self.round()

    def round(self) -> None:
        """Look at what the last step did, and take the next."""
        now_s = self._clock.monotonic()
        replicas = self._replicas()
        standing = balance.excess_of(self._own_id, replicas)
        self._metrics.balance_excess.set(0.0 if standing is None else round(standing.streams))
        if self._told:
            self._settle(now_s)  # and the next step waits for heartbeats that show what this one did
            return
        step = self._balance.step(self._own_id, replicas, now_s)
        if not step.parts:
            return
        targets = {each.replica_id: each for each in replicas}
        own = targets[self._own_id]
        wanted = [targets[name] for name, count in step.parts.items() for _ in range(count)]
        chosen = self._choose(len(wanted), now_s)
        for index, (stream, target) in enumerate(zip(chosen, wanted, strict=False)):
            self._send(stream, index * 1000 / step.per_s, 1000 / step.per_s, endpoints_of(target, own))
        self._told = {stream.node_id: stream.stream_id for stream in chosen}
        self._told_at_s = now_s
        self._moved_at_s.update(dict.fromkeys(self._told, now_s))
        self._metrics.balance_moves.inc(len(chosen))
        log.info("rebalancing", streams=len(chosen), to=dict(step.parts), held=len(self._registry))

    def _settle(self, now_s: float) -> None:
        """See whether the last step has had its effect, or its time."""
        newest = {node_id: self._registry.newest(node_id) for node_id in self._told}
        here = {node_id: stream.stream_id for node_id, stream in newest.items() if stream and not stream.ended}
        waits = any(here.get(node_id) == stream_id for node_id, stream_id in self._told.items())
        if waits and now_s - self._told_at_s < SETTLE_S:
            return
        told, stayed = len(self._told), len(here)
        self._told = {}
        self._metrics.balance_stayed.inc(stayed)
        if not self._balance.settled(told, stayed, now_s):
            say = "what sends nodes to the replicas sends them back, or keeps them here: see how it spreads connections"
            quiet_s = round(self._balance.quiet_s(now_s))
            log.warning("rebalancing_given_up", told=told, stayed=stayed, for_s=quiet_s, next=say)

    def _choose(self, count: int, now_s: float) -> list[Stream]:
        since_s = now_s - MOVED_ONCE_IN_S
        self._moved_at_s = {node_id: at_s for node_id, at_s in self._moved_at_s.items() if at_s > since_s}
        found = [
            stream
            for stream in self._registry
            if stream is self._registry.newest(stream.node_id)
            and not stream.ended
            and not stream.commands.held
            and stream.node_id not in self._moved_at_s
        ]
        self._chance.shuffle(found)
        found.sort(key=lambda stream: not stream.commands.idle)
        return found[:count]

    def _send(self, stream: Stream, after_ms: float, window_ms: float, endpoints: Sequence[str]) -> None:
        stream.goaway(
            gateway_pb2.ControlGoaway(
                reason=gateway_pb2.GOAWAY_REASON_REBALANCE,
                reconnect_after_ms=int(after_ms),
                window_ms=max(1, int(window_ms)),
                endpoints=endpoints,
                resume=True,
            )
        )


def endpoints_of(target: ReplicaRecord, own: ReplicaRecord) -> Sequence[str]:
    """What leads a node to `target` and not back to `own`; empty where one address leads to both, and something behind
    it decides."""
    return tuple(each for each in target.endpoints if each not in own.endpoints)
