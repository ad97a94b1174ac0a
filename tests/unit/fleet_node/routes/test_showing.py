"""Routes as `fleet-node status` has them: by the names that people know them by."""

from pathlib import Path

import pytest

from tests.unit.fleet_node.routes.room import RELAYED, Room
from tests.unit.fleet_node.routes.snapshots import NODE, peer, route, signed, statement


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("press-1-to-press-2", "press-1-to-press-2"),
        ("", "rt_1"),  # from a server that does not tell names
        ("\x1b]0;mine\a", "rt_1"),
        ("a name\nwith lines", "rt_1"),
        ("n" * 129, "rt_1"),
    ],
)
async def test_a_route_goes_by_its_name_and_by_its_id_where_that_is_none(tmp_path: Path, said: str, shown: str) -> None:
    room = Room(tmp_path)
    await room.give(route(name=said))
    (found,) = room.service.status()["routes"]
    assert (found["name"], found["route_id"]) == (shown, "rt_1")


async def test_the_nodes_of_a_path_go_by_their_names(tmp_path: Path) -> None:
    room = Room(tmp_path)
    destination = peer("nd_b")
    destination.name = "press-2"
    await room.take(signed(statement(route(RELAYED), peers=[destination, peer("nd_r")])))
    (found,) = room.service.status()["routes"]
    assert found["path"] == [NODE, "nd_r", "nd_b"]
    assert found["path_names"] == ["this node", "nd_r", "press-2"]
