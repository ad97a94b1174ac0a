"""Where things stand in a picture of routes: nodes on a circle, those of a site together, paths as curves through it.

Lengths are in units of the picture, angles in radians from the top, clockwise.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

NODE_RADIUS = 9.0
TEXT = 13.0
"""Size of the letters."""
CHAR = TEXT * 0.58
"""Width of a usual one."""
_BETWEEN_NODES = 44.0
_BETWEEN_NODES_TURNED = 27.0  # names that lie along the radius need less room
_BETWEEN_SITES = 0.9  # of the room of a node
_LEAST_RADIUS = 175.0
_TURNED_FROM = 17  # nodes; with fewer, names can stand upright beside them
_LABEL_SPOTS = (0.5, 0.4, 0.6, 0.3, 0.7, 0.22, 0.78)


class Point(NamedTuple):
    """A place in the picture; y grows downwards."""

    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Seat:
    """A node's place.

    Args:
        angle: from the top, clockwise.
        turned: whether its name lies along the radius.
    """

    at: Point
    angle: float
    turned: bool


class Arc(NamedTuple):
    """Part of a circle that a site takes."""

    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Curve:
    """A quadratic curve from the edge of one node to the edge of another."""

    begin: Point
    bend: Point
    end: Point

    def at(self, share: float) -> Point:
        """The point after this share of it."""
        rest = 1 - share
        return Point(
            *(
                rest * rest * a + 2 * rest * share * b + share * share * c
                for a, b, c in zip(self.begin, self.bend, self.end, strict=True)
            )
        )


class Circle:
    """Nodes on a circle around (0, 0).

    Args:
        site_of: site by node id, in any order; empty for none.
        name_of: name by node id.
    """

    def __init__(self, site_of: Mapping[str, str], name_of: Mapping[str, str]) -> None:
        order = sorted(site_of, key=lambda node: (site_of[node], _natural(name_of[node]), node))
        sites = Counter(site_of.values())
        breaks = len(sites) if len(sites) > 1 else 0
        room = 2 * math.pi / max(1.0, len(order) + breaks * _BETWEEN_SITES)
        turned = len(order) >= _TURNED_FROM
        self.radius = max(_LEAST_RADIUS, (_BETWEEN_NODES_TURNED if turned else _BETWEEN_NODES) / room)
        self.seats: dict[str, Seat] = {}
        self.sites: dict[str, Arc] = {}
        at = 0.0
        for i, node in enumerate(order):
            site = site_of[node]
            if breaks and (not i or site != site_of[order[i - 1]]):
                at += _BETWEEN_SITES * room
            self.seats[node] = Seat(self.point(at, self.radius), at, turned)
            begin = self.sites[site].begin if site in self.sites else at
            self.sites[site] = Arc(begin, at)
            at += room
        self.half_room = room / 2
        widest = max((len(name_of[node]) for node in order), default=0) * CHAR
        self.outside = self.radius + NODE_RADIUS + 8 + widest
        """Radius within which every name ends."""

    @staticmethod
    def point(angle: float, radius: float) -> Point:
        """A point of a circle around the middle."""
        return Point(radius * math.sin(angle), -radius * math.cos(angle))


class Curves:
    """Curves between seats; those that share both nodes lie side by side."""

    def __init__(self, seats: Mapping[str, Seat]) -> None:
        self._seats = seats
        self._drawn: Counter[tuple[str, str]] = Counter()

    def between(self, source: str, destination: str) -> Curve:
        """The next curve from one node to another."""
        begin, end = self._seats[source].at, self._seats[destination].at
        before = self._drawn[source, destination]
        self._drawn[source, destination] += 1
        length = math.dist(begin, end) or 1.0
        aside = min(0.12 * length, 26.0) + 13.0 * before
        middle = Point((begin.x + end.x) / 2, (begin.y + end.y) / 2)
        bend = Point(
            middle.x * 0.72 - (end.y - begin.y) / length * aside * 2,
            middle.y * 0.72 + (end.x - begin.x) / length * aside * 2,
        )
        return Curve(_towards(begin, bend, NODE_RADIUS + 2), bend, _towards(end, bend, NODE_RADIUS + 5))


class Labels:
    """Small texts that do not cover each other, nor the nodes."""

    def __init__(self, taken: Iterable[Point]) -> None:
        self._boxes = [(at, NODE_RADIUS * 2, NODE_RADIUS * 2) for at in taken]

    def place(self, text: str, curves: Sequence[Curve], *, insist: bool) -> Point | None:
        """Where on one of the curves a text goes; None when there is no room and it need not be.

        Args:
            insist: put it there all the same.
        """
        width, height = len(text) * CHAR + 4, TEXT + 4
        for share in _LABEL_SPOTS:
            for curve in curves:
                at = curve.at(share)
                if not any(_overlap(at, width, height, *box) for box in self._boxes):
                    self._boxes.append((at, width, height))
                    return at
        return curves[0].at(0.5) if insist and curves else None


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts press-2 before press-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]{1,18})", name)]


def _towards(begin: Point, end: Point, length: float) -> Point:
    whole = math.dist(begin, end) or 1.0
    return Point(begin.x + (end.x - begin.x) * length / whole, begin.y + (end.y - begin.y) * length / whole)


def _overlap(a: Point, a_width: float, a_height: float, b: Point, b_width: float, b_height: float) -> bool:
    return abs(a.x - b.x) * 2 < a_width + b_width and abs(a.y - b.y) * 2 < a_height + b_height
