"""What a run was like for the routes: compares the path in force with what the mesh would have allowed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.simulation.mesh import Mesh
from tests.simulation.timeline import Timeline
from tests.simulation.trace import Event, Plan

Path = tuple[str, ...]
SAMPLE_MS = 15_000


@dataclass(slots=True)
class Stretch:
    """A time during which a path in force did not work although another way did.

    Args:
        steady_ms: since when the steadiest way that worked at its end had worked.
    """

    route_id: str
    began_ms: int
    ended_ms: int = 0
    steady_ms: int = 0


@dataclass(slots=True)
class _RouteTruth:
    ways: tuple[Path, ...]
    path: Path | None = None
    good_since_ms: dict[Path, int] = field(default_factory=dict)
    bad: Stretch | None = None


class Measure:
    """Sees everything, decides nothing."""

    def __init__(self, plan: Plan, mesh: Mesh, timeline: Timeline) -> None:
        self.plan = plan
        self.stretches: list[Stretch] = []
        self.switches: list[tuple[int, str, Path | None, Path | None]] = []
        self.bad_ms = 0
        self.excess_us: list[int] = []
        self.losses: list[float] = []
        self._mesh, self._timeline = mesh, timeline
        self._truth: dict[str, _RouteTruth] = {}
        self._by_node: dict[str, set[str]] = {}
        for route in plan.routes:
            relays = [(route.source, relay.node_id, route.destination) for relay in plan.relays]
            ways = ((route.source, route.destination), *relays)
            good = {way: 0 for way in ways if mesh.path_up(way)}
            self._truth[route.route_id] = _RouteTruth(ways, None, good)
            for way in ways:
                for node_id in way:
                    self._by_node.setdefault(node_id, set()).add(route.route_id)
        timeline.after(2 * SAMPLE_MS, self._sample)

    def in_force(self, route_id: str, path: Path | None) -> None:
        truth = self._truth[route_id]
        if truth.path is not None and path != truth.path:
            self.switches.append((self._timeline.now_ms, route_id, truth.path, path))
        truth.path = path
        self._judge(route_id)

    def happened(self, event: Event) -> None:
        """After the mesh changed."""
        if event.what in ("slow", "lossy"):
            return
        split = event.what in ("split", "join")
        touched: Iterable[str] = self._truth if split else self._touched(event.who)
        for route_id in sorted(touched):
            truth = self._truth[route_id]
            for way in truth.ways:
                if not self._mesh.path_up(way):
                    truth.good_since_ms.pop(way, None)
                else:
                    truth.good_since_ms.setdefault(way, self._timeline.now_ms)
            self._judge(route_id)

    def end(self) -> None:
        for route_id, truth in self._truth.items():
            if truth.bad:
                self._close(route_id, truth)

    def _touched(self, who: tuple[str, ...]) -> set[str]:
        return set.intersection(*(self._by_node.get(node_id, set()) for node_id in who))

    def _judge(self, route_id: str) -> None:
        truth = self._truth[route_id]
        stuck = truth.path not in truth.good_since_ms and bool(truth.good_since_ms)
        if stuck and truth.bad is None:
            truth.bad = Stretch(route_id, self._timeline.now_ms)
        if truth.bad and stuck:
            truth.bad.steady_ms = min(truth.good_since_ms.values())
        elif truth.bad:
            self._close(route_id, truth)

    def _close(self, route_id: str, truth: _RouteTruth) -> None:
        assert truth.bad is not None
        truth.bad.ended_ms = self._timeline.now_ms
        self.bad_ms += truth.bad.ended_ms - truth.bad.began_ms
        self.stretches.append(truth.bad)
        truth.bad = None

    def _sample(self) -> None:
        """Loss of what is in force, and how much longer it takes than the fastest way that works."""
        for truth in self._truth.values():
            if truth.path in truth.good_since_ms and truth.path is not None:
                mine_us = self._mesh.typical_rtt_us(truth.path)
                self.losses.append(self._mesh.loss(truth.path))
                self.excess_us.append(mine_us - min(self._mesh.typical_rtt_us(way) for way in truth.good_since_ms))
        self._timeline.after(SAMPLE_MS, self._sample)
