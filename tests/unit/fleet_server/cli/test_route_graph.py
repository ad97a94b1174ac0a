"""fleetctl routes graph: a picture that is well-formed, shows every path, and covers nothing with something else."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fleet.v1 import admin_pb2, admin_route_pb2
from fleet_server.cli.route_layout import NODE_RADIUS, Circle, Curves, Labels
from fleet_server.cli.route_picture import PictureNode, PicturePath, draw
from tests.unit.fleet_server.cli.conftest import Fleetctl
from tests.unit.fleet_server.cli.made import node
from tests.unit.fleet_server.cli.made_routes import RELAY_ID, relay, relayed, route

SVG = "{http://www.w3.org/2000/svg}"


def circle(count: int, sites: int = 3) -> Circle:
    names = {f"n{i}": f"press-{i}" for i in range(count)}
    return Circle({node_id: f"site-{i % sites}" for i, node_id in enumerate(names)}, names)


@pytest.mark.parametrize("count", [1, 2, 5, 16, 17, 50, 200])
def test_nodes_keep_their_distance_and_those_of_a_site_sit_together(count: int) -> None:
    seats = circle(count).seats
    spots = [seat.at for seat in seats.values()]
    for i, spot in enumerate(spots):
        assert all(math.dist(spot, other) > 2 * NODE_RADIUS + 4 for other in spots[:i])
    order = [int(name[1:]) % 3 for name in seats]
    assert sum(a != b for a, b in pairwise(order)) == min(count, 3) - 1


def test_names_with_numbers_are_in_the_order_of_the_numbers() -> None:
    names = {"a": "press-10", "b": "press-9", "c": "oven"}
    assert [*Circle(dict.fromkeys(names, ""), names).seats] == ["c", "b", "a"]


def test_there_and_back_and_twice_are_different_curves() -> None:
    curves = Curves(circle(5).seats)
    bends = {curves.between(*ends).bend for ends in (("n0", "n2"), ("n2", "n0"), ("n0", "n2"))}
    assert len(bends) == 3


def test_labels_do_not_cover_each_other() -> None:
    made = circle(5)
    curves, labels = Curves(made.seats), Labels(seat.at for seat in made.seats.values())
    curve = curves.between("n0", "n2")
    places = [labels.place("18ms", [curve], insist=False) for _ in range(30)]
    placed = [at for at in places if at]
    assert 1 < len(placed) < 30
    assert len({*placed}) == len(placed)
    assert labels.place("18ms", [curve], insist=True) is not None


@pytest.mark.parametrize("state", ["HEALTHY", "DEGRADED", "DRIFT", "UNREACHABLE", "UNKNOWN", "OF_A_NEWER_SERVER"])
def test_every_state_has_a_stroke_and_stands_in_the_legend(state: str) -> None:
    nodes = [PictureNode(name, name, "", online=True, relay=name == "r") for name in "arb"]
    text = draw(nodes, [PicturePath("x", ("a", "r", "b"), state, "18ms", "x: a → r → b")], "1 route")
    root = ElementTree.fromstring(text)  # noqa: S314 (it was made here)
    texts = [each.text for each in root.iter(f"{SVG}text")]
    assert f"1 {'UNKNOWN' if state.startswith('OF') else state}" in texts
    assert [each.text for each in root.iter(f"{SVG}title")].count("x: a → r → b") == 1
    assert "in the relay pool" in texts
    assert {"a", "r", "b"} <= {*texts}


def test_no_name_can_break_out_of_the_picture() -> None:
    evil = '</text><script>"&\x00\x1b'
    nodes = [
        PictureNode("a", evil, evil, online=False, relay=False),
        PictureNode("b", "b", "", online=True, relay=False),
    ]
    text = draw(nodes, [PicturePath(evil, ("a", "b"), "DRIFT", evil, evil)], evil)
    root = ElementTree.fromstring(text)  # noqa: S314 (it was made here)
    assert list(root.iter(f"{SVG}script")) == []


def answer(ctl: Fleetctl) -> None:
    off = route(3, enabled=False)
    ctl.fake.answers["ListRoutes"] = admin_route_pb2.ListRoutesResponse(routes=[route(1), relayed(2), off])
    ctl.fake.answers["ListRelays"] = admin_route_pb2.ListRelaysResponse(
        relays=[relay(), relay(node_id="n_9", name="spare")]
    )
    nodes = [node(1, site="berlin"), node(2, online=False), node(9, node_id=RELAY_ID, name="relay-a")]
    ctl.fake.answers["ListNodes"] = admin_pb2.ListNodesResponse(nodes=nodes)


def test_a_picture_is_written(ctl: Fleetctl, tmp_path: Path) -> None:
    answer(ctl)
    path = tmp_path / "routes.svg"
    result = ctl.run("routes", "graph", "--output-file", str(path))
    assert result.exit_code == 0, result.output
    assert "3 routes between 6 nodes" in result.stdout
    text = path.read_text()
    for part in (
        "press-1-to-oven: press-1 → oven, HEALTHY, 18ms",
        "relay-a (relay)",
        "press-2 (offline)",
        "spare",
        "1 route disabled",
    ):
        assert part in text, part
    told = json.loads(ctl.run("routes", "graph", "press-1", "--output-file", str(path), "-o", "json").stdout)
    assert told == {"file": str(path), "routes": 3, "nodes": 5}, "of a part, only relays that are in use"


def test_what_cannot_be_drawn_or_written_is_said(ctl: Fleetctl, tmp_path: Path) -> None:
    answer(ctl)
    assert ctl.run("routes", "graph", "--output-file", "x.png").exit_code == 2
    away = ctl.run("routes", "graph", "--output-file", str(tmp_path / "no" / "x.svg"))
    assert (away.exit_code, "cannot be written" in away.stderr) == (2, True)
    ctl.fake.answers["ListRoutes"] = admin_route_pb2.ListRoutesResponse()
    empty = ctl.run("routes", "graph", "--output-file", str(tmp_path / "x.svg"))
    assert (empty.exit_code, "fleetctl routes create" in empty.stderr) == (1, True)
