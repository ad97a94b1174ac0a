"""Operators make routes, switch them off and on, and remove them; nodes' parts follow."""

from typing import Any

import pytest

from fleet.errors import Reason, Refusal
from tests.unit.fleet_server.routes.mesh import Mesh


async def refused(mesh: Mesh, source: str, destination: str, **wanted: Any) -> Refusal:
    with pytest.raises(Refusal) as found:
        await mesh.connect(source, destination, **wanted)
    return found.value


async def test_a_route_is_in_the_parts_of_its_ends_alone(mesh: Mesh) -> None:
    assert not mesh.routes.concerns(mesh.ids["a"])
    created = await mesh.routes.create(source="a", destination=mesh.ids["b"], by="ada")
    route = created.route
    assert created.notes == ()
    assert (route.name, route.generation, mesh.names(*route.path)) == ("a-to-b", 1, ["a", "b"])
    assert set(mesh.woken) == {mesh.ids["a"], mesh.ids["b"]}
    assert mesh.routes.concerns(mesh.ids["a"])
    assert not mesh.routes.concerns(mesh.ids["r"])
    shown = await mesh.content("a")
    assert [(each.route_id, each.generation, list(each.path)) for each in shown.routes] == [
        (route.route_id, 1, list(route.path))
    ]
    assert [(peer.node_id, list(peer.probe_endpoints)) for peer in shown.peers] == [(mesh.ids["b"], ["b:7450"])]
    assert shown.peers[0].identity_key == (await mesh.nodes.get("b")).identity_key
    assert (shown.routes[0].name, shown.peers[0].name) == (route.name, "b")
    assert shown.policy.min_refresh_interval_ms > 0
    assert await mesh.version("r") == 0
    assert [row.actor for row in await mesh.audited("route.created")] == ["ada"]


async def test_what_cannot_be_a_route_is_refused(mesh: Mesh) -> None:
    await mesh.connect("a", "b", name="there")
    itself = await refused(mesh, "a", mesh.ids["a"])
    assert (itself.reason, "not to itself" in itself.detail) == (Reason.INVALID_ARGUMENT, True)
    twice = await refused(mesh, "a", "b", name="again")
    assert (twice.reason, twice.metadata["route"]) == (Reason.CONFLICT, "there")
    assert (await refused(mesh, "b", "a", name="there")).reason is Reason.CONFLICT
    assert (await refused(mesh, "a", "nobody")).reason is Reason.NOT_FOUND
    assert (await refused(mesh, "b", "a", probe_interval_ms=1)).reason is Reason.INVALID_ARGUMENT
    await mesh.nodes.set_state("ada", ["r"], "SUSPENDED", "moved")
    assert (await refused(mesh, "a", "r")).reason is Reason.SUSPENDED
    assert (await mesh.connect("b", "a")).name == "b-to-a"


async def test_who_cannot_be_probed_is_said(mesh: Mesh) -> None:
    await mesh.add_nodes("deaf", listening=False)
    created = await mesh.routes.create(source="a", destination="deaf", by="ada")
    assert ["probe_listen" in note for note in created.notes] == [True]


async def test_one_that_is_off_is_in_nobodys_part_and_comes_back_with_a_higher_generation(mesh: Mesh) -> None:
    route = await mesh.connect("a", "b")
    before = await mesh.version("b")
    off = await mesh.routes.set_enabled("a-to-b", enabled=False, by="ada")
    assert (off.enabled, off.generation) == (False, 2)
    assert list((await mesh.content("b")).routes) == []
    assert await mesh.version("b") == before + 1
    assert (await mesh.routes.set_enabled("a-to-b", enabled=False, by="ada")).generation == 2
    assert [each.name for each in await mesh.routes.page(state="DISABLED")] == ["a-to-b"]
    on = await mesh.routes.set_enabled(route.route_id, enabled=True, by="ada")
    assert (on.enabled, on.generation) == (True, 3)
    assert [each.generation for each in (await mesh.content("b")).routes] == [3]
    assert [detail["enabled"] for detail in await mesh.details("route.changed")] == [False, True]
    assert [each.generation for each in await mesh.routes.decisions("a-to-b")] == [3, 2, 1]


async def test_one_that_was_removed_leaves_an_empty_part_behind(mesh: Mesh) -> None:
    await mesh.connect("a", "b")
    await mesh.routes.remove("a-to-b", by="ada")
    assert list((await mesh.content("a")).routes) == []
    assert await mesh.version("a") == 2
    with pytest.raises(Refusal, match="NOT_FOUND"):
        await mesh.routes.get("a-to-b")
    assert (await mesh.connect("a", "b")).generation == 1


async def test_pages_and_filters(mesh: Mesh) -> None:
    for source, destination in (("a", "b"), ("b", "a"), ("b", "r")):
        await mesh.connect(source, destination)
    first = await mesh.routes.page(limit=2)
    assert [each.name for each in first] == ["a-to-b", "b-to-a"]
    assert [each.name for each in await mesh.routes.page(after=first[-1].page_token)] == ["b-to-r"]
    assert [each.name for each in await mesh.routes.page(node="r")] == ["b-to-r"]
    assert await mesh.routes.page(relay="r") == []
    assert len(await mesh.routes.page(state="UNKNOWN")) == 3
    with pytest.raises(Refusal, match="INVALID_ARGUMENT"):
        await mesh.routes.page(state="FINE")


async def test_why_a_new_route_goes_where_it_goes(mesh: Mesh) -> None:
    await mesh.connect("a", "b")
    found = await mesh.routes.explain("a-to-b")
    assert found.decision is not None
    assert (found.decision.rule, found.decision.decided_by) == ("FIRST", "ada")
    assert found.decision.reasons[0]["text"]
    assert (found.live.relay_id, found.pool, found.view.lease) == ("", [], None)
