"""From reports to rows and decisions: one transaction for all that came in within a moment.

Mental model
    The loop takes reports (`intake`). A flush hands all that waits about so many routes to one job of the writer: it
    leaves out what came on superseded streams and what is not believed, stores the newest of each way, keeps history of
    changes, folds and decides (`deciding`). One flush at a time; what comes beside it goes with the next one. A report
    of something that broke is flushed at once, so who asks for its snapshot behind it is answered with the decision.
    Other news, and who asks without, waits half a second for more; what says again how a way is, a fifth of the route's
    interval and 2 s at most, for a flush costs as much as many findings in it.
    What is about a route whose row somebody else holds, a sweep or another replica, goes with the next flush; what is
    decided then is told to the nodes all the same.
    While the database is away reports are kept for a while, bounded, and the newest win; whoever waits is told.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from time import perf_counter

from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.v1 import route_pb2
from fleet_server.database.refusals import Seldom
from fleet_server.database.wakeup import Bell
from fleet_server.database.writer import Transaction
from fleet_server.observability.route_metrics import RouteMetrics
from fleet_server.routes import finding_store
from fleet_server.routes.belief_rules import Doubt, doubt, finding_of, is_walk
from fleet_server.routes.deciding import MAX_ROUTES, Deciding, Held
from fleet_server.routes.intake import Intake, Told
from fleet_server.routes.model import Finding
from fleet_server.routes.parts import LEASE_KIND, RouteParts
from fleet_server.routes.record import Key, ObservationRecord

log = get_logger(__name__)

NEWS_WAIT_S = 0.5
MAX_WAIT_S = 2.0
"""Of what is no news."""
AWAY_PAUSE_S = 1.0
KEEP_MS = 60_000
"""So old a report that could not be stored is not worth it any more: the next one came long ago."""
HISTORY_EVERY_MS = 60_000
"""Of the path of a route; of other ways and connections ten times as long. Every change is kept."""
_MAX_MARKS = 200_000


@dataclass(frozen=True, slots=True)
class _Mark:
    """What this replica stored last of one kind about one subject, and how long what says the same may wait."""

    state: int
    observed_at_ms: int
    kept_at_ms: int
    may_wait_s: float


@dataclass(slots=True)
class _Believed:
    """What of a batch is stored, and what is not."""

    latest: dict[Key, ObservationRecord] = field(default_factory=dict)
    history: list[ObservationRecord] = field(default_factory=list)
    findings: dict[str, list[Finding]] = field(default_factory=dict)
    marks: dict[Key, _Mark] = field(default_factory=dict)
    doubts: Counter[str] = field(default_factory=Counter)
    busy: list[Told] = field(default_factory=list)
    foreign: tuple[str, str] | None = None  # a node that told of another one's route, and which


class Recorder:
    """Records what nodes tell of routes.

    Args:
        parts: of the room.
        deciding: decides about what was found.
        metrics: of the room.
    """

    def __init__(self, parts: RouteParts, deciding: Deciding, metrics: RouteMetrics) -> None:
        self._parts = parts
        self._deciding = deciding
        self._metrics = metrics
        self._intake = Intake(metrics.drop, self._may_wait_s, parts.clock.monotonic)
        self._bell = Bell(parts.clock)
        self._arrived = asyncio.Event()
        self._due_s = math.inf
        self._recorded: asyncio.Future[None] | None = None
        self._marks: dict[Key, _Mark] = {}
        self._seldom = Seldom(parts.clock.monotonic)
        self._one_at_a_time = asyncio.Lock()

    async def record(self, node_id: str, epoch: int, health: route_pb2.RouteHealth) -> None:
        """Take a node's report; returns once all of it that is believed is stored and decided, but for routes that
        another replica is at.

        Args:
            epoch: of the stream that it came on.

        Raises:
            Refusal: the database is away, or too busy. The report is kept for a while all the same.
        """
        self._metrics.note_refreshes(health)
        wait_s = self._intake.add(node_id, epoch, health, self._parts.now_ms())
        if wait_s is not None:
            await self._wait_recorded(min(wait_s, NEWS_WAIT_S) if health.refresh_routes else wait_s)

    async def run(self) -> None:
        """Flush until cancelled."""
        while True:
            await self._arrived.wait()
            while (wait_s := self._due_s - self._parts.clock.monotonic()) > 0:
                await self._bell.wait(wait_s)
            try:
                await self.flush()
            except Refusal as refusal:
                log.warning("route_reports_put_off", reason=refusal.reason, waiting=self._intake.count)
                await self._parts.clock.sleep(AWAY_PAUSE_S)

    async def flush(self) -> None:
        """Store and decide about all that waits now.

        Raises:
            Refusal: the database is away, or too busy; what was taken is kept.
        """
        async with self._one_at_a_time:
            self._arrived.clear()
            self._due_s = math.inf
            waiting, self._recorded = self._recorded, None
            # What there is by now: what comes beside it waits for more, and holds up nobody's answer.
            batches = deque(iter(lambda: self._intake.take(MAX_ROUTES), []))
            held: list[Told] = []
            try:
                while batches:
                    held += await self._flush(batches.popleft())
            except Refusal as refusal:
                _settle(waiting, refusal)
                self._flush_within(NEWS_WAIT_S)
                raise
            except BaseException:
                _settle(waiting, Refusal(Reason.UNAVAILABLE, "the report could not be recorded: try again"))
                raise
            finally:
                left = list(chain.from_iterable(batches))
                for told, why in ((held, "row_held"), (left, "database_away")):
                    if told:
                        self._intake.give_back(told, self._parts.now_ms() - KEEP_MS, why)
                        self._flush_within(NEWS_WAIT_S)
            _settle(waiting, None)

    def _may_wait_s(self, record: ObservationRecord) -> float:
        mark = self._marks.get(record.key)
        return mark.may_wait_s if mark is not None and mark.state == record.state else NEWS_WAIT_S

    def _flush_within(self, wait_s: float) -> None:
        due_s = self._parts.clock.monotonic() + wait_s
        if due_s < self._due_s:
            self._due_s = due_s
            self._arrived.set()
            self._bell.ring_nowait()

    async def _wait_recorded(self, wait_s: float) -> None:
        if self._recorded is None:
            self._recorded = asyncio.get_running_loop().create_future()
        recorded = self._recorded
        self._flush_within(wait_s)
        await asyncio.shield(recorded)

    async def _flush(self, batch: Sequence[Told]) -> Sequence[Told]:
        """Store a batch; what of it is about routes whose rows somebody else holds."""
        began_s = perf_counter()
        try:
            believed = await self._parts.database.write(lambda tx: self._write(tx, batch))
        except Refusal:
            self._intake.give_back(batch, self._parts.now_ms() - KEEP_MS, "database_away")
            raise
        except Exception:
            # Of no use, whoever sent it: what nodes go on telling counts.
            log.exception("route_reports_failed", observations=len(batch))
            self._metrics.drop("failed", len(batch))
            return ()
        self._metrics.batch_duration.observe(perf_counter() - began_s)
        self._metrics.observations.inc(sum(believed.doubts.values()) + len(believed.latest))
        for why, count in believed.doubts.items():
            self._metrics.drop(why, count)
        if believed.foreign is not None and (left_out := self._seldom.left_out("foreign")) is not None:
            node_id, route_id = believed.foreign
            log.warning("route_report_foreign", node_id=node_id, route_id=route_id, left_out=left_out)
        if len(self._marks) > _MAX_MARKS:
            self._marks.clear()
        self._marks |= believed.marks
        return believed.busy

    def _write(self, tx: Transaction, batch: Sequence[Told]) -> _Believed:
        believed = _Believed()
        reporters = {told.what.reporter_id for told in batch}
        epochs = self._parts.nodes.epochs(tx.conn, sorted(reporters))
        newest = [told for told in batch if epochs.get(told.what.reporter_id) == told.epoch]
        if len(newest) < len(batch):
            believed.doubts["superseded"] += len(batch) - len(newest)
        held = self._deciding.hold(tx, {told.what.route_id for told in newest})
        pool = held.pool.ids()
        for told in newest:
            self._judge(believed, held, told, pool)
        for route_id in held.routes.keys() - {route_id for route_id, _, _ in believed.latest}:
            del held.routes[route_id]  # nothing was found that could decide anything
        finding_store.save_latest(tx.conn, list(believed.latest.values()))
        finding_store.add_history(tx.conn, believed.history)
        self._deciding.settle(tx, held, believed.findings)
        self._send_leases_again(tx, held, believed)
        return believed

    def _judge(self, believed: _Believed, held: Held, told: Told, pool: frozenset[str]) -> None:
        record, key = told.what, told.key
        route = held.routes.get(record.route_id)
        if route is None and record.route_id in held.busy:
            believed.busy.append(told)
            return
        if route is None:
            believed.doubts["unknown_route"] += 1
            return
        if not route.enabled:
            believed.doubts["disabled"] += 1
            return
        view = held.views[record.route_id]
        offered = pool.intersection(held.known.get(record.route_id, ()))
        mark = believed.marks.get(key) or self._marks.get(key)
        newest_at_ms = mark.observed_at_ms if mark else 0
        why = doubt(
            told.sent,
            record.reporter_id,
            view,
            offered,
            newest_at_ms,
            record.received_at_ms,
            self._parts.policy,
        )
        if why is not None:
            believed.doubts[why.value.lower()] += 1
            if why is Doubt.NOT_ITS_ROUTE:
                believed.foreign = record.reporter_id, record.route_id
            return
        if is_walk(told.sent):
            finding = finding_of(told.sent, view, record.received_at_ms)
            believed.findings.setdefault(record.route_id, []).append(finding)
        believed.latest[key] = record
        every_ms = HISTORY_EVERY_MS * (1 if _is_of_path(record) else 10)
        kept_at_ms = mark.kept_at_ms if mark else 0
        if mark is None or mark.state != record.state or record.received_at_ms - kept_at_ms >= every_ms:
            believed.history.append(record)
            kept_at_ms = record.received_at_ms
        observed_at_ms = min(record.observed_at_ms, record.received_at_ms)
        may_wait_s = min(MAX_WAIT_S, route.probe_interval_ms / 5_000)
        believed.marks[key] = _Mark(record.state, observed_at_ms, kept_at_ms, max(NEWS_WAIT_S, may_wait_s))

    def _send_leases_again(self, tx: Transaction, held: Held, believed: _Believed) -> None:
        """A node misses a lease that holds: it may not have come."""
        missed: set[str] = set()
        for (route_id, kind, _), record in believed.latest.items():
            lease = held.leases.get(route_id)
            if kind == route_pb2.OBSERVATION_TYPE_LEASE and record.state not in _WORKS and lease is not None:
                missed |= {lease.relay_id, held.routes[route_id].source_id}
        if missed:
            topics = [f"{LEASE_KIND}:{node_id}" for node_id in sorted(missed)]
            tx.after_commit(lambda: self._parts.wakeup.spread_nowait(topics))


_WORKS = frozenset({route_pb2.ROUTE_STATE_HEALTHY, route_pb2.ROUTE_STATE_DEGRADED})


def _is_of_path(record: ObservationRecord) -> bool:
    return record.observation_type == route_pb2.OBSERVATION_TYPE_SYNTHETIC_ROUTE_HEALTH


def _settle(waiting: asyncio.Future[None] | None, error: Exception | None) -> None:
    if waiting is None or waiting.done():
        return
    if error is None:
        waiting.set_result(None)
    else:
        waiting.set_exception(error)
        waiting.exception()  # whoever waited may have gone
