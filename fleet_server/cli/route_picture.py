"""A picture of routes as SVG: nodes by site on a circle, the effective paths as arrows in the colour of their state.

It reads on light and on dark: its colours follow what the viewer prefers. States differ by their strokes, too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import drawsvg

from fleet_server.cli.route_layout import CHAR, NODE_RADIUS, TEXT, Circle, Curve, Curves, Labels, Point, Seat
from fleet_server.cli.terminal import counted, excerpt, printable

DISABLED = "DISABLED"
_STROKES = {  # colour, width and dashes of each state, the worst last: it is drawn over the others
    "UNKNOWN": ("#8a919c", 1.5, "2 4"),
    "HEALTHY": ("#2e9e5b", 2.0, ""),
    "DEGRADED": ("#d08700", 2.4, "9 4"),
    "DRIFT": ("#b14fc5", 2.6, "9 4 2 4"),
    "UNREACHABLE": ("#dc3b3b", 2.8, "3 4"),
}
_MOST_NAME = 24
_MARGIN = 26.0
_LEGEND_ROW = 22.0
_HEAD = 58.0
_CROWDED_FROM = 40
"""Paths; of more than these, the ones that are well stand back, and only figures that matter are written."""
_QUIET = ("HEALTHY", "UNKNOWN")
_CSS = """
svg { color-scheme: light dark; font-family: system-ui, sans-serif; }
.back { fill: #ffffff; } .ink { fill: #24292f; } .faint { fill: #667080; }
.rim { stroke: #24292f; } .site { stroke: #b6bcc6; } .halo { stroke: #ffffff; }
@media (prefers-color-scheme: dark) {
.back { fill: #14171c; } .ink { fill: #e6e8eb; } .faint { fill: #98a1ae; }
.rim { stroke: #e6e8eb; } .site { stroke: #4a525e; } .halo { stroke: #14171c; }
}
"""


@dataclass(frozen=True, slots=True)
class PictureNode:
    """A node of the picture.

    Args:
        site: empty for none.
        relay: whether it is in the pool of relays.
    """

    node_id: str
    name: str
    site: str
    online: bool
    relay: bool


@dataclass(frozen=True, slots=True)
class PicturePath:
    """An effective path of the picture.

    Args:
        hops: node ids from source to destination.
        state: as `routes list` shows it; a disabled one is counted, not drawn.
        label: what stands on it, such as its round trip; empty for nothing.
        title: what a pointer over it is told.
    """

    name: str
    hops: tuple[str, ...]
    state: str
    label: str
    title: str


def draw(nodes: Sequence[PictureNode], paths: Sequence[PicturePath], title: str) -> str:
    """The picture as the text of an SVG file.

    Args:
        nodes: every node of `paths`, and whichever else is to be shown.
        title: stands at its head.
    """
    return _Picture(nodes, paths).svg(title)


class _Picture:
    def __init__(self, nodes: Sequence[PictureNode], paths: Sequence[PicturePath]) -> None:
        self._nodes = {node.node_id: node for node in nodes}
        self._shown = sorted(
            (path for path in paths if path.state != DISABLED), key=lambda path: [*_STROKES].index(_known(path.state))
        )
        self._disabled = len(paths) - len(self._shown)
        names = {node.node_id: _name(node) for node in nodes}
        self._circle = Circle({node.node_id: node.site for node in nodes}, names)
        self._arrows = {state: self._arrow(colour) for state, (colour, _, _) in _STROKES.items()}

    def svg(self, title: str) -> str:
        legend = self._legend()
        many_sites = len(self._circle.sites) > 1
        sites = max((len(site) for site in self._circle.sites), default=0) * CHAR + 24 if many_sites else 0
        reach_y = self._circle.outside + (34 if many_sites else 0) + _MARGIN
        reach_x = max(self._circle.outside + sites + _MARGIN, 300.0)
        height = 2 * reach_y + _HEAD + len(legend) * _LEGEND_ROW + _MARGIN
        top = -reach_y - _HEAD
        picture = drawsvg.Drawing(round(2 * reach_x), round(height), origin=(round(-reach_x), round(top)))
        picture.append_css(_CSS)
        picture.append_title(printable(title))
        picture.append(drawsvg.Rectangle(-reach_x, top, 2 * reach_x, height, class_="back"))
        left = -reach_x + _MARGIN
        picture.append(_text(title, TEXT + 5, left, top + 34, bold=True))
        if many_sites:
            self._draw_sites(picture)
        labels = self._draw_paths(picture)
        for node_id, seat in self._circle.seats.items():
            picture.append(self._node(self._nodes[node_id], seat))
        for label in labels:
            picture.append(label)
        for i, row in enumerate(legend):
            for part in row:
                part_at = drawsvg.Group(transform=f"translate({left:.1f} {reach_y + 8 + i * _LEGEND_ROW:.1f})")
                part_at.append(part)
                picture.append(part_at)
        return str(picture.as_svg())

    # -- paths ------------------------------------------------------------------------------------------------------
    def _draw_paths(self, picture: drawsvg.Drawing) -> list[drawsvg.DrawingElement]:
        curves = Curves(self._circle.seats)
        crowded = len(self._shown) > _CROWDED_FROM
        drawn: list[tuple[PicturePath, list[Curve]]] = []
        for path in self._shown:
            colour, width, dashes = _STROKES[_known(path.state)]
            legs = [curves.between(a, b) for a, b in zip(path.hops, path.hops[1:], strict=False)]
            group = drawsvg.Group(fill="none", stroke=colour, stroke_width=width, stroke_dasharray=dashes or "none")
            group.append_title(printable(path.title))
            if crowded and path.state in _QUIET:
                group.args["stroke-opacity"] = 0.5
            for leg in legs:
                line = drawsvg.Path()
                if leg is legs[-1]:  # at a relay it goes on
                    line.args["marker-end"] = self._arrows[_known(path.state)]
                group.append(line.M(*_rounded(leg.begin)).Q(*_rounded(leg.bend), *_rounded(leg.end)))
            picture.append(group)
            drawn.append((path, legs))
        return self._label(drawn, crowded=crowded)

    def _label(
        self, drawn: Sequence[tuple[PicturePath, list[Curve]]], *, crowded: bool
    ) -> list[drawsvg.DrawingElement]:
        labels = Labels(seat.at for seat in self._circle.seats.values())
        shown: list[drawsvg.DrawingElement] = []
        for path, legs in reversed(drawn):  # the worst first: it finds room
            if not path.label or (crowded and path.state != "DEGRADED"):
                continue
            at = labels.place(path.label, legs, insist=path.state not in _QUIET)
            if at is not None:
                # Under its letters lies a broad stroke in the colour of the ground: a line does not run through them.
                halo = _text(path.label, TEXT - 1, at.x, at.y, middle=True, class_="ink halo", stroke_width=4)
                halo.args["paint-order"] = "stroke"
                halo.args["stroke-linejoin"] = "round"
                shown.append(halo)
        return shown

    @staticmethod
    def _arrow(colour: str) -> drawsvg.Marker:
        arrow = drawsvg.Marker(-8, -4, 1, 4, scale=1, orient="auto", markerUnits="userSpaceOnUse")
        arrow.args["markerWidth"], arrow.args["markerHeight"] = 11, 11
        arrow.append(drawsvg.Lines(-8, -3.6, 0, 0, -8, 3.6, close=True, fill=colour, stroke="none"))
        return arrow

    # -- nodes ------------------------------------------------------------------------------------------------------
    def _node(self, node: PictureNode, seat: Seat) -> drawsvg.Group:
        group = _symbol(seat.at, online=node.online, relay=node.relay)
        words = ["relay"] if node.relay else []
        words += [] if node.online else ["offline"]
        group.append_title(printable(" ".join([node.name, *(f"({word})" for word in words)])))
        out = self._circle.point(seat.angle, self._circle.radius + NODE_RADIUS + 8)
        right = math.sin(seat.angle) > 1e-6
        class_ = "ink" if node.online else "faint"
        if seat.turned:
            turn = math.degrees(seat.angle) - 90 if right or seat.angle < 1e-6 else math.degrees(seat.angle) + 90
            name = _text(_name(node), TEXT, out.x, out.y, class_=class_, end=not (right or seat.angle < 1e-6))
            name.args["transform"] = f"rotate({turn:.2f} {out.x:.2f} {out.y:.2f})"
        elif abs(math.sin(seat.angle)) < 0.35:
            above = math.cos(seat.angle) > 0
            name = _text(_name(node), TEXT, out.x, out.y + (-6 if above else 6), class_=class_, middle=True)
        else:
            name = _text(_name(node), TEXT, out.x, out.y, class_=class_, end=not right)
        group.append(name)
        return group

    def _draw_sites(self, picture: drawsvg.Drawing) -> None:
        radius = self._circle.outside + 8
        for site, arc in self._circle.sites.items():
            begin, end = arc.begin - self._circle.half_room * 0.8, arc.end + self._circle.half_room * 0.8
            a, b = self._circle.point(begin, radius), self._circle.point(end, radius)
            line = drawsvg.Path(fill="none", class_="site", stroke_width=3, stroke_linecap="round")
            large = int(end - begin > math.pi)
            line.M(*_rounded(a)).A(round(radius, 1), round(radius, 1), 0, large, 1, *_rounded(b))
            picture.append(line)
            angle = (begin + end) / 2
            at = self._circle.point(angle, radius + 18)
            beside = abs(math.sin(angle)) > 0.35
            text = site or "no site"
            ends = beside and math.sin(angle) < 0
            picture.append(_text(text, TEXT, at.x, at.y, class_="faint", end=ends, middle=not beside, bold=True))

    # -- legend -----------------------------------------------------------------------------------------------------
    def _legend(self) -> list[list[drawsvg.Group]]:
        counts = Counter(_known(path.state) for path in self._shown)
        entries = [(self._sample(state), f"{counts[state]} {state}") for state in reversed(_STROKES) if counts[state]]
        entries.append((_symbol(Point(17, 0), online=True, relay=False), "node"))
        if any(node.relay for node in self._nodes.values()):
            entries.append((_symbol(Point(17, 0), online=True, relay=True), "in the relay pool"))
        if any(not node.online for node in self._nodes.values()):
            entries.append((_symbol(Point(17, 0), online=False, relay=False), "offline"))
        if self._disabled:
            entries.append((drawsvg.Group(), f"not drawn: {counted(self._disabled, 'route')} disabled"))
        rows: list[list[drawsvg.Group]] = []
        for i, (sample, text) in enumerate(entries):
            entry = drawsvg.Group(transform=f"translate({i % 3 * 190} 0)")
            entry.append(sample)
            entry.append(_text(text, TEXT, 42, 0))
            if i % 3 == 0:
                rows.append([])
            rows[-1].append(entry)
        return rows

    def _sample(self, state: str) -> drawsvg.Group:
        colour, width, dashes = _STROKES[state]
        group = drawsvg.Group(fill="none", stroke=colour, stroke_width=width, stroke_dasharray=dashes or "none")
        group.append(drawsvg.Line(0, 0, 34, 0, marker_end=self._arrows[state]))
        return group


def _symbol(at: Point, *, online: bool, relay: bool) -> drawsvg.Group:
    """A disc; with a ring around it for a relay, and empty for a node that is offline."""
    group = drawsvg.Group()
    inner = NODE_RADIUS - (4 if relay else 2)
    if relay:
        group.append(drawsvg.Circle(*_rounded(at), NODE_RADIUS, class_="back rim", stroke_width=2))
    class_ = "ink rim" if online else "back rim"
    group.append(drawsvg.Circle(*_rounded(at), inner, class_=class_, stroke_width=1.5))
    return group


def _text(
    text: str,
    size: float,
    x: float,
    y: float,
    *,
    class_: str = "ink",
    middle: bool = False,
    end: bool = False,
    bold: bool = False,
    **attributes: float,
) -> drawsvg.Text:
    anchor = "middle" if middle else "end" if end else "start"
    made = drawsvg.Text(
        printable(text), size, round(x, 1), round(y, 1), class_=class_, text_anchor=anchor, **attributes
    )
    made.args["dominant-baseline"] = "central"
    if bold:
        made.args["font-weight"] = 600
    return made


def _name(node: PictureNode) -> str:
    return excerpt(node.name, _MOST_NAME)


def _known(state: str) -> str:
    """A state that the picture has a stroke for; one of a newer server is drawn as unknown."""
    return state if state in _STROKES else "UNKNOWN"


def _rounded(at: Point) -> tuple[float, float]:
    return round(at.x, 1), round(at.y, 1)
