"""Walks the ways of every route whose source this node is, and says what it finds.

Mental model
    The rules say what is due and what a result means; this loop sleeps until the next of it, starts walks as tasks, and
    hands over what they report. It sleeps for ever while there is nothing to do, and is woken by whoever changes that:
    a snapshot, a lease, a walk that came back, a stream that opened or ended.
    A path whose lease has ended is not walked: server time says when that is, and the loop looks at that moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Protocol

from fleet.clock import Clock
from fleet.logs import get_logger
from fleet_node.observability.metrics import RouteMetrics
from fleet_node.routes.feedback_rules import Feedback, Refresh
from fleet_node.routes.health_rules import Finding, ObservationType, RouteState
from fleet_node.routes.in_force import InForce
from fleet_node.routes.outbox import Outbox, gather_ms
from fleet_node.routes.rules import DIRECT, Applied, Chance, EffectivePath, Policy
from fleet_node.routes.schedule_rules import LEASE_EXPIRED, NEVER_MS, Report, RouteWalks, Walk
from fleet_node.routes.walk_rules import WalkResult, WalkState

log = get_logger(__name__)

MAX_WALKS = 256
"""Under way at one time; more wait their turn. All that a source may have over one relay that hangs are found out
within three intervals."""
MAX_SLEEP_S = 5.0
"""So often at least: server time may be put forward, and the identity key replaced."""
LOOK_AT_LEASES_MS = 5_000


class Caller(Protocol):
    """Walks paths."""

    async def walk(self, route_id: str, generation: int, path: tuple[str, ...], timeout_s: float) -> WalkResult:
        """Walk a path whose source this node is; what goes wrong is part of the result, nothing is raised."""
        ...


class Prober:
    """See the module's mental model. Belongs to the event loop.

    Args:
        in_force: routes and leases.
        caller: walks.
        outbox: takes what is to be said.
        chance: for jitter.
    """

    def __init__(
        self, in_force: InForce, caller: Caller, outbox: Outbox, *, clock: Clock, metrics: RouteMetrics, chance: Chance
    ) -> None:
        self._in_force = in_force
        self._caller = caller
        self._outbox = outbox
        self._clock = clock
        self._metrics = metrics
        self._chance = chance
        self._policy = Policy()
        self.feedback = Feedback(self._policy, chance)
        self._walks: dict[str, RouteWalks] = {}
        self._next_ms: dict[str, int] = {}  # when each of them has something to start
        self._leases_at_ms = 0  # when to look at leases again
        self._uncovered: set[str] = set()
        self._bad: set[str] = set()
        self._connected = False
        self._version = 0
        self._wake = asyncio.Event()
        self._places = asyncio.Semaphore(MAX_WALKS)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until it is cancelled; walks under way end then."""
        try:
            while True:
                self._wake.clear()
                self._turn()
                await self._wait(self._idle_s())
        finally:
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    # -- what changes -------------------------------------------------------------------------------------------------
    def apply(self, applied: Applied, policy: Policy, version: int) -> None:
        """A snapshot is in force.

        Args:
            applied: what it made of the routes.
            policy: how to judge walks and when to ask.
            version: of it.
        """
        now_ms = self._now_ms()
        if policy != self._policy:
            self._policy = self.feedback.policy = policy
            self._walks.clear()  # what was found is judged by other limits now
        own = {route_id: route for route_id, route in applied.routes.items() if self._is_source(route)}
        for route_id, route in own.items():
            if route_id not in self._walks:
                self._walks[route_id] = RouteWalks(route, policy, now_ms, self._chance)
            elif self._walks[route_id].route != route:
                self._walks[route_id].replace(route, now_ms)
        self._walks = {route_id: walks for route_id, walks in self._walks.items() if route_id in own}
        self._next_ms = {route_id: walks.next_ms for route_id, walks in self._walks.items()}
        self._landed(self.feedback.answered(version, applied.routes, now_ms))
        for route_id in applied.replaced:
            self.feedback.clear(route_id)
        self.feedback.keep(own)
        self._outbox.forget(applied.withdrawn)
        self._uncovered &= applied.routes.keys()
        self._bad &= own.keys()
        self._version = version
        self.leases_changed()

    def leases_changed(self) -> None:
        """A lease came, ended early, or belongs to another path now."""
        self._leases_at_ms = 0
        self.wake()

    def refused(self, version: int) -> None:
        """An answer of the server was not taken."""
        self._landed(self.feedback.refused(version, self._now_ms()))
        self.wake()

    def connected(self) -> None:
        """A stream takes what is said: routes that do not do are asked for at once."""
        self._connected = True
        self.feedback.disconnected()  # what the stream before was asked it does not answer any more
        self._outbox.forget_asks()
        self._outbox.release()
        for walks in self._walks.values():
            walks.say_again()  # what the stream before took may have been lost with it
        self._ask(walks.route for walks in self._walks.values() if self._is_bad(walks))
        self.wake()

    def disconnected(self) -> None:
        """There is no stream."""
        self._connected = False
        self.feedback.disconnected()
        self._outbox.forget_asks()

    def wake(self) -> None:
        """Something changed: look again."""
        self._wake.set()

    # -- what people see ----------------------------------------------------------------------------------------------
    def state_of(self, route_id: str) -> tuple[RouteState, int, int]:
        """State of the path in force, the last round trip in microseconds, lost walks per thousand; UNSPECIFIED where
        nothing is known, or another node is the source."""
        walks = self._walks.get(route_id)
        if walks is None:
            return RouteState.UNSPECIFIED, 0, 0
        last = walks.health.last
        if walks.lease_lost:
            return RouteState.UNREACHABLE, 0, walks.health.loss_permille
        rtt_us = last.rtt_us if last is not None and last.state is WalkState.ANSWERED else 0
        return walks.health.state, rtt_us, walks.health.loss_permille

    def show(self) -> None:
        """Bring the count of routes by state up to date."""
        counts = dict.fromkeys(RouteState, 0)
        for route_id in self._walks:
            counts[self.state_of(route_id)[0]] += 1
        for state, count in counts.items():
            self._metrics.routes.labels(str(state)).set(count)

    # -- one turn -----------------------------------------------------------------------------------------------------
    def _turn(self) -> None:
        now_ms = self._now_ms()
        self._in_force.note_key()
        self._landed(self.feedback.expire(now_ms))
        if now_ms >= self._leases_at_ms:
            self._look_at_leases(now_ms)
        if now_ms >= self._outbox.due_ms:
            self._outbox.release()
        for route_id in [route_id for route_id, at in self._next_ms.items() if at <= now_ms]:
            walks = self._walks[route_id]
            for walk in walks.due(now_ms):
                task = asyncio.create_task(self._walk(walk))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            self._next_ms[route_id] = walks.next_ms

    def _idle_s(self) -> float:
        timeout_ms = self.feedback.timeout_ms
        due_ms = min(
            self._leases_at_ms,
            self._outbox.due_ms,
            min(self._next_ms.values(), default=NEVER_MS),
            timeout_ms if timeout_ms is not None else NEVER_MS,
        )
        return max(0, due_ms - self._now_ms()) / 1000

    async def _wait(self, idle_s: float) -> None:
        sleeping = asyncio.ensure_future(self._clock.sleep(min(idle_s, MAX_SLEEP_S)))
        woken = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait({sleeping, woken}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            woken.cancel()

    async def _walk(self, walk: Walk) -> None:
        async with self._places:
            result = await self._caller.walk(walk.route_id, walk.generation, walk.path, walk.timeout_ms / 1000)
        self._metrics.walks.labels(str(result.state)).inc()
        if result.state is WalkState.ANSWERED:
            self._metrics.walk_rtt.observe(result.rtt_us / 1e6)
        walks = self._walks.get(walk.route_id)
        if walks is not None:
            self._say(walks, walks.finished(walk, result, self._now_ms()))
            if self._next_ms[walk.route_id] > walks.next_ms:
                self.wake()
            self._next_ms[walk.route_id] = walks.next_ms

    def _look_at_leases(self, now_ms: int) -> None:
        """Withdraw paths whose lease has ended, and take up those that have one again; as their source or relay."""
        for route_id, route in self._in_force.routes.items():
            if route.relay_id == DIRECT or self._in_force.node_id not in route.path[:-1]:
                continue
            covered, walks = self._in_force.may_use(route), self._walks.get(route_id)
            if walks is not None:
                self._say(walks, walks.lease_changed(covered, now_ms))
                self._next_ms[route_id] = walks.next_ms
            elif not covered and route_id not in self._uncovered:
                self._outbox.put([_lease_finding(route, covered, now_ms)])
            if covered and route_id in self._uncovered:
                self.feedback.clear(route_id)
                self._outbox.put([_lease_finding(route, covered, now_ms)])
            (self._uncovered.discard if covered else self._uncovered.add)(route_id)
        end_ms = self._in_force.next_lease_end_ms()
        self._leases_at_ms = NEVER_MS if end_ms is None else now_ms + min(end_ms, LOOK_AT_LEASES_MS)

    def _say(self, walks: RouteWalks, report: Report | None) -> None:
        if report is None:
            return
        due_ms = self._outbox.due_ms
        self._outbox.put(report.findings, wait_until_ms=self._now_ms() + gather_ms(walks.route))
        if self._outbox.due_ms < due_ms:
            self.wake()
        if report.healed:
            self.feedback.clear(report.route_id)
        if report.ask:
            self._ask([walks.route])
        self._tell(walks)

    def _ask(self, routes: Iterable[EffectivePath]) -> None:
        if not self._connected:
            return
        asked = self.feedback.ask(routes, self._version, self._now_ms())
        held_back = self.feedback.take_held_back()
        self._metrics.refreshes_asked.inc(len(asked))
        self._metrics.refreshes_held_back.inc(held_back)
        if held_back:
            self._outbox.note((), held_back)
        if asked:
            self._outbox.ask(asked)
            self.wake()  # it may have to be given up earlier than anything else is due

    def _landed(self, refreshes: Sequence[Refresh]) -> None:
        for refresh in refreshes:
            self._metrics.refreshes.labels(str(refresh.outcome)).inc()
        if refreshes:
            self._outbox.note(refreshes, 0)

    def _tell(self, walks: RouteWalks) -> None:
        """Log a route once when it goes bad and once when it is good again."""
        route, bad = walks.route, self._is_bad(walks)
        if bad == (route.route_id in self._bad):
            return
        (self._bad.add if bad else self._bad.discard)(route.route_id)
        last = walks.health.last
        log.warning(
            "route_bad" if bad else "route_good",
            route_id=route.route_id,
            generation=route.generation,
            path=route.path,
            state=str(self.state_of(route.route_id)[0]),
            failure=LEASE_EXPIRED if walks.lease_lost else last.failure if last is not None else "",
        )

    def _is_bad(self, walks: RouteWalks) -> bool:
        return walks.lease_lost or walks.health.state.bad

    def _is_source(self, route: EffectivePath) -> bool:
        return route.path[0] == self._in_force.node_id

    def _now_ms(self) -> int:
        return int(self._clock.monotonic() * 1000)


def _lease_finding(route: EffectivePath, covered: bool, now_ms: int) -> Finding:
    return Finding(
        route.route_id,
        route.generation,
        ObservationType.LEASE,
        RouteState.HEALTHY if covered else RouteState.UNREACHABLE,
        route.path,
        at_ms=now_ms,
        failure="" if covered else LEASE_EXPIRED,
        failed_hop=0 if covered else 1,
    )
