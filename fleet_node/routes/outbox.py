"""What the node has to say of its routes, until a stream takes it: findings, asks, and what came of asks.

With a stream what is news goes out at once; what says again that a path works waits a moment for others, for a frame
costs the server as much as several findings. Without one, findings are kept within bounds: of each route, type and path
the latest, and each change of state with the moment at which it showed (docs/protocol.md, "Route health"). What a
stream took is gone: nothing of it is acknowledged, and the next finding says how things stand by then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from fleet.v1 import route_pb2
from fleet_node.routes.feedback_rules import Refresh
from fleet_node.routes.health_rules import Finding, RouteState
from fleet_node.routes.rules import EffectivePath
from fleet_node.routes.schedule_rules import NEVER_MS

MAX_PER_FRAME = 512
MAX_CHANGES = 16
"""Of one route, type and path."""
MAX_KEPT = 4096
"""Of all."""
MAX_GATHER_MS = 8_000
_MAX_UINT32 = 2**32 - 1
_WORKS = frozenset({RouteState.HEALTHY, RouteState.DEGRADED})

Key = tuple[str, str, tuple[str, ...]]


class Outbox:
    """See the module.

    Args:
        server_ms: server time of a moment in the milliseconds that findings count in.
        ready: called whenever there is something to take.
    """

    def __init__(self, server_ms: Callable[[int], int], ready: Callable[[], None]) -> None:
        self.dropped = 0
        """Findings that were dropped for want of room."""
        self.due_ms = NEVER_MS
        """When `release` is to be called, for what waits."""
        self._server_ms = server_ms
        self._ready = ready
        self._findings: dict[Key, deque[Finding]] = {}
        self._said: dict[Key, RouteState] = {}
        self._released = False
        self._kept = 0
        self._asks: dict[str, None] = {}
        self._refreshes: deque[Refresh] = deque(maxlen=MAX_PER_FRAME)
        self._held_back = 0

    def put(self, findings: Iterable[Finding], *, wait_until_ms: int = 0) -> None:
        """Keep findings; the latest that is alike gives way. Those that found nothing yet are passed over.

        Args:
            wait_until_ms: how long those that are no news may wait for others, in the milliseconds of findings; 0: not
                at all.
        """
        news = not wait_until_ms
        for finding in findings:
            if finding.state is not RouteState.UNSPECIFIED:
                news |= finding.state not in _WORKS or self._said.get(_key(finding)) is not finding.state
                self._put(finding)
        if news:
            self.release()
        else:
            self.due_ms = min(self.due_ms, wait_until_ms)

    def release(self) -> None:
        """Nothing waits any longer."""
        self.due_ms, self._released = NEVER_MS, True
        self._ready()

    def ask(self, route_ids: Iterable[str]) -> None:
        """Ask for the snapshot on behalf of routes, in the frame that says what was found of them, or behind it."""
        self._asks.update(dict.fromkeys(route_ids))
        self.release()

    def note(self, refreshes: Iterable[Refresh], held_back: int) -> None:
        """What came of asks, and how many were held back since the last call."""
        self._refreshes.extend(refreshes)
        self._held_back = min(self._held_back + held_back, _MAX_UINT32)
        self.release()

    def forget_asks(self) -> None:
        """No stream will answer what has not gone out."""
        self._asks.clear()

    def forget(self, route_ids: Iterable[str]) -> None:
        """Routes that are this node's no more: nobody would believe it."""
        gone = set(route_ids)
        for key in [key for key in self._findings if key[0] in gone]:
            self._kept -= len(self._findings.pop(key))
        self._said = {key: state for key, state in self._said.items() if key[0] not in gone}

    def next(self) -> route_pb2.RouteHealth | None:
        """The next frame; None when there is nothing that alone is worth one."""
        if not self._released:
            return None
        findings = self._take_findings()
        self._released = bool(self._findings)
        asks = [] if self._findings else list(self._asks)[:MAX_PER_FRAME]
        if not (findings or asks or self._refreshes):
            return None
        for route_id in asks:
            del self._asks[route_id]
        refreshes, held_back = [*self._refreshes], self._held_back
        self._refreshes.clear()
        self._held_back = 0
        return route_pb2.RouteHealth(
            observations=map(self._observation, findings),
            refresh_routes=asks,
            refreshes=map(_refresh, refreshes),
            refreshes_held_back=held_back,
        )

    def _put(self, finding: Finding) -> None:
        key = _key(finding)
        kept = self._findings.setdefault(key, deque())
        if len(kept) >= 2 and kept[-1].state == kept[-2].state == finding.state:
            kept.pop()
            self._kept -= 1
        elif len(kept) >= MAX_CHANGES:
            kept.popleft()
            self._drop()
        kept.append(finding)
        self._kept += 1
        if self._kept > MAX_KEPT:
            oldest = next(iter(self._findings))
            self._findings[oldest].popleft()
            if not self._findings[oldest]:
                del self._findings[oldest]
            self._drop()

    def _drop(self) -> None:
        self._kept -= 1
        self.dropped += 1

    def _take_findings(self) -> list[Finding]:
        taken: list[Finding] = []
        while self._findings and len(taken) < MAX_PER_FRAME:
            key = next(iter(self._findings))
            kept = self._findings[key]
            while kept and len(taken) < MAX_PER_FRAME:
                taken.append(kept.popleft())
                self._said[key] = taken[-1].state
            if not kept:
                del self._findings[key]
        self._kept -= len(taken)
        while len(self._said) > MAX_KEPT:
            del self._said[next(iter(self._said))]
        return taken

    def _observation(self, finding: Finding) -> route_pb2.RouteObservation:
        return route_pb2.RouteObservation(
            route_id=finding.route_id,
            generation=finding.generation,
            observation_type=route_pb2.ObservationType.Value(f"OBSERVATION_TYPE_{finding.type}"),
            state=route_pb2.RouteState.Value(f"ROUTE_STATE_{finding.state}"),
            expected_hops=finding.path,
            observed_hops=finding.observed,
            rtt_us=min(finding.rtt_us, _MAX_UINT32),
            loss_permille=finding.loss_permille,
            observed_at_ms=self._server_ms(finding.at_ms),
            blamed_node_id=finding.blamed,
            failure=finding.failure,
            failed_hop=finding.failed_hop,
        )


def gather_ms(route: EffectivePath) -> int:
    """How long findings of a route that are no news wait for others: three quarters of its interval, 8 s at most."""
    return min(MAX_GATHER_MS, route.probe_interval_ms * 3 // 4)


def _key(finding: Finding) -> Key:
    return finding.route_id, finding.type, finding.path


def _refresh(refresh: Refresh) -> route_pb2.RefreshReport:
    return route_pb2.RefreshReport(
        route_id=refresh.route_id,
        relay_node_id=refresh.relay_id,
        outcome=route_pb2.RefreshOutcome.Value(f"REFRESH_OUTCOME_{refresh.outcome}"),
        config_version=refresh.config_version,
        elapsed_ms=min(refresh.elapsed_ms, _MAX_UINT32),
    )
