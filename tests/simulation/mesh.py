"""The mesh as it is at a moment: who reaches whom, and how long it takes. The truth, which no rule gets to see."""

from __future__ import annotations

import zlib
from collections import Counter
from itertools import pairwise

from tests.simulation.trace import Event, Plan

BASE_LOSS = 0.002
Pair = tuple[str, str]


def pair_of(a: str, b: str) -> Pair:
    return (a, b) if a < b else (b, a)


class Mesh:
    """Counts what breaks a link, for failures overlap."""

    def __init__(self, plan: Plan) -> None:
        self._seed = plan.seed
        self._place = {site.name: (site.x, site.y) for site in plan.sites}
        self.site_of = {node.node_id: node.site for node in plan.nodes}
        self._blocked = {pair_of(a, b) for a, b in plan.blocked}
        self._links_down: Counter[Pair] = Counter()
        self._nodes_down: Counter[str] = Counter()
        self._splits: list[frozenset[str]] = []
        self._slow: dict[Pair, float] = {}
        self._lossy: dict[Pair, float] = {}
        self._way_ms: dict[Pair, float] = {}

    def happen(self, event: Event) -> None:
        match event.what:
            case "link_down" | "link_up":
                self._links_down[pair_of(*event.who)] += 1 if event.what == "link_down" else -1
            case "node_down" | "node_up":
                self._nodes_down[event.who[0]] += 1 if event.what == "node_down" else -1
            case "split":
                self._splits.append(frozenset(event.who))
            case "join":
                self._splits.remove(frozenset(event.who))
            case "slow":
                self._slow[pair_of(*event.who)] = event.value
            case "lossy":
                self._lossy[pair_of(*event.who)] = event.value
            case other:
                raise ValueError(f"nothing is called {other}: see trace.Event")

    def node_up(self, node_id: str) -> bool:
        return self._nodes_down[node_id] == 0

    def link_up(self, a: str, b: str) -> bool:
        pair = pair_of(a, b)
        if self._links_down[pair] or self._nodes_down[a] or self._nodes_down[b] or pair in self._blocked:
            return False
        return not any((self.site_of[a] in split) != (self.site_of[b] in split) for split in self._splits)

    def path_up(self, path: tuple[str, ...]) -> bool:
        return all(self.link_up(a, b) for a, b in pairwise(path))

    def typical_rtt_us(self, path: tuple[str, ...]) -> int:
        """Without noise."""
        return round(2000 * sum(self._one_way_ms(a, b) for a, b in pairwise(path)))

    def rtt_us(self, path: tuple[str, ...], at_ms: int) -> int:
        """With noise, which is the same for whoever asks at that moment."""
        return round(self.typical_rtt_us(path) * (1 + 0.15 * self._noise(path, at_ms) ** 3)) + 200

    def loss(self, path: tuple[str, ...]) -> float:
        """Share of walks along it that get lost."""
        kept = 1 - BASE_LOSS
        for a, b in pairwise(path):
            kept *= 1 - self._lossy.get(pair_of(a, b), 0.0)
        return 1 - kept

    def is_lost(self, path: tuple[str, ...], at_ms: int) -> bool:
        return self._noise(("loss", *path), at_ms) < self.loss(path)

    def _one_way_ms(self, a: str, b: str) -> float:
        pair = pair_of(a, b)
        way_ms = self._way_ms.get(pair)
        if way_ms is None:
            (ax, ay), (bx, by) = self._place[self.site_of[a]], self._place[self.site_of[b]]
            # Some detours are long: a relay can be faster than the direct way.
            detour = 1 + 1.5 * self._noise(("detour", *pair), 0) ** 4
            way_ms = self._way_ms[pair] = (0.5 + ((ax - bx) ** 2 + (ay - by) ** 2) ** 0.5) * detour
        return way_ms * self._slow.get(pair, 1.0)

    def _noise(self, of: tuple[str, ...], at_ms: int) -> float:
        """A number of [0, 1) that depends on the seed, the thing and the moment alone."""
        text = f"{self._seed}|{at_ms}|{'|'.join(of)}".encode()
        return (zlib.crc32(text) * 2654435761 % 2**32) / 2**32
