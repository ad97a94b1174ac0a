"""fleetctl routes and relays: lists, one route whole, changes as they come, and what is asked of the server."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2, admin_route_pb2
from tests.unit.fleet_server.cli.conftest import NOW_MS, Fleetctl
from tests.unit.fleet_server.cli.made import node
from tests.unit.fleet_server.cli.made_routes import lease, observation, relay, relayed, route


def listed(*routes: admin_route_pb2.RouteView) -> admin_route_pb2.ListRoutesResponse:
    return admin_route_pb2.ListRoutesResponse(routes=routes)


def watched(*routes: admin_route_pb2.RouteView, removed: tuple[str, ...] = ()) -> admin_route_pb2.WatchRoutesResponse:
    return admin_route_pb2.WatchRoutesResponse(routes=routes, removed=removed)


def test_the_table_of_routes(ctl: Fleetctl) -> None:
    lost = relayed(2, state="UNREACHABLE", rtt_us=0, loss_permille=1000, waiting_rendezvous=True)
    off, never = route(3, enabled=False), route(4, state="UNKNOWN", observed_at_ms=0, rtt_us=0, state_since_ms=0)
    ctl.fake.answers["ListRoutes"] = listed(route(1), lost, off, never)
    result = ctl.run("routes", "list", "press-1", "--relay", "relay-a", "--state", "healthy")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()][1:]
    assert rows[0] == [
        "●",
        "press-1-to-oven",
        "HEALTHY",
        "3m12s",
        "press-1",
        "oven",
        "direct",
        "18ms",
        "0%",
        "3",
        "4.0s",
    ]
    assert rows[1][:9] == ["✕", "press-2-to-oven", "UNREACHABLE", "3m12s", "press-2", "oven", "relay-a", "*", "-"]
    assert rows[2][:4] == ["○", "press-3-to-oven", "DISABLED", "-"]
    assert rows[3][:4] == ["○", "press-4-to-oven", "UNKNOWN", "-"]
    assert "4 routes: 1 HEALTHY, 1 UNREACHABLE, 1 DISABLED, 1 UNKNOWN" in result.stderr
    assert "fleetctl routes explain press-2-to-oven" in result.stderr, "the worst one is the one to look at"
    (request,) = ctl.fake.requests("ListRoutes")
    assert (request.node, request.relay, request.state) == ("press-1", "relay-a", "HEALTHY")


def test_where_there_is_nothing_the_next_step_is_named(ctl: Fleetctl) -> None:
    ctl.fake.answers["ListRoutes"] = listed()
    ctl.fake.answers["ListRelays"] = admin_route_pb2.ListRelaysResponse()
    assert "fleetctl routes create" in ctl.run("routes", "list").stderr
    assert "fleetctl routes list" in ctl.run("routes", "list", "press-9").stderr
    assert "fleetctl relays add" in ctl.run("relays", "list").stderr
    assert ctl.json("routes", "list") == []


@pytest.mark.parametrize(("told", "wanted"), [("500ms", 500), ("10s", 10_000), ("2", 2000), ("1h", 3_600_000)])
def test_a_route_is_created(ctl: Fleetctl, told: str, wanted: int) -> None:
    answer = admin_route_pb2.CreateRouteResponse(route=route(), notes=["node oven is offline"])
    ctl.fake.answers["CreateRoute"] = answer
    result = ctl.run("routes", "create", "press-1", "oven", "--name", "way", "--interval", told)
    assert result.exit_code == 0, result.output
    (request,) = ctl.fake.requests("CreateRoute")
    assert (request.source, request.destination, request.name) == ("press-1", "oven", "way")
    assert request.probe_interval_ms == wanted
    assert "Not yet: node oven is offline" in result.stderr
    assert "fleetctl routes explain press-1-to-oven" in result.stderr
    assert ctl.json("routes", "create", "press-1", "oven")["notes"] == ["node oven is offline"]


@pytest.mark.parametrize("told", ["0ms", "-1s", "soon", "1.5s"])
def test_an_interval_that_is_none_is_wrong_usage(ctl: Fleetctl, told: str) -> None:
    assert ctl.run("routes", "create", "press-1", "oven", "--interval", told).exit_code == 2
    assert ctl.fake.requests("CreateRoute") == []


def test_one_route_is_shown_with_its_lease_and_what_was_observed(ctl: Fleetctl) -> None:
    wrong = observation(state="DRIFT", observed_hops=["press-1", "pump", "oven"], failure="WRONG_NODE", failed_hop=1)
    behind = admin_route_pb2.RouteMemberView(name="oven", version=5, applied_version=4, applied=True, applied_at_ms=1)
    refused = admin_route_pb2.RouteMemberView(
        name="press-1", version=5, applied_version=5, reason="FOREIGN", applied_at_ms=1
    )
    ctl.fake.answers["GetRoute"] = admin_route_pb2.GetRouteResponse(
        route=relayed(waiting_rendezvous=True), lease=lease(), observations=[wrong], members=[behind, refused]
    )
    result = ctl.run("routes", "show", "press-1-to-oven")
    assert result.exit_code == 0, result.output
    for part in (
        "press-1 → relay-a → oven",
        "relay-a holds it for another 1m30s, generation 2",
        "cannot reach each other",
        "press-1 → pump → oven, not press-1 → relay-a → oven",
        "WRONG_NODE at relay-a",
    ):
        assert part in result.stdout
    assert "oven runs version 4 of its routes" in result.stderr
    assert "press-1 refused version 5 of its routes: FOREIGN" in result.stderr
    whole = ctl.json("routes", "show", "press-1-to-oven")
    assert whole["lease"]["expires_at"].endswith("Z")
    assert whole["observations"][0]["failure"] == "WRONG_NODE"


def test_a_lease_that_has_ended_or_is_not_acknowledged_is_told_so(ctl: Fleetctl) -> None:
    for changes, told in (
        ({"expires_at_ms": NOW_MS - 1}, "expired"),
        ({"withdrawn": True}, "taken back"),
        ({"acknowledged_at_ms": 0}, "not acknowledged yet"),
    ):
        ctl.fake.answers["GetRoute"] = admin_route_pb2.GetRouteResponse(route=relayed(), lease=lease(**changes))
        assert told in ctl.run("routes", "show", "x").stdout


def test_a_route_is_switched_off_on_and_removed(ctl: Fleetctl) -> None:
    ctl.fake.answers["SetRouteEnabled"] = lambda request: admin_route_pb2.SetRouteEnabledResponse(
        route=route(enabled=request.enabled)
    )
    ctl.fake.answers["RemoveRoute"] = admin_route_pb2.RemoveRouteResponse(route=route())
    off = ctl.run("routes", "disable", "press-1-to-oven")
    assert "DISABLED" in off.stdout
    assert "fleetctl routes enable press-1-to-oven" in off.stderr
    assert "HEALTHY" in ctl.run("routes", "enable", "press-1-to-oven").stdout
    unasked = ctl.run("routes", "remove", "press-1-to-oven")
    assert (unasked.exit_code, ctl.fake.requests("RemoveRoute")) == (2, [])
    assert "--yes" in unasked.stderr
    assert ctl.run("routes", "remove", "press-1-to-oven", "--yes").exit_code == 0
    assert ctl.run("routes", "remove", "press-1-to-oven", stdin="n\n", person=True).exit_code == 1
    assert len(ctl.fake.requests("RemoveRoute")) == 1


def test_a_watch_in_a_pipe_tells_switches_and_states_and_nothing_else(ctl: Fleetctl) -> None:
    ctl.fake.answers["WatchRoutes"] = [
        watched(route()),
        watched(route(rtt_us=19_000, observed_at_ms=NOW_MS)),
        watched(relayed(generation=4)),
        watched(relayed(generation=4, state="DRIFT")),
        watched(removed=("rt_1", "rt_unknown")),
    ]
    result = ctl.run("routes", "watch")
    assert result.exit_code == 0, result.output
    rows = [line.split()[3:] for line in result.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == ["IS", "SWITCHED", "STATE", "REMOVED"]
    assert rows[1][1:] == ["HEALTHY", "relay-a", "18ms", "4", "direct", "→", "over", "relay-a"]
    assert rows[2][-2:] == ["was", "HEALTHY"]


def test_a_route_that_left_the_relay_that_is_watched_is_not_said_to_be_removed(ctl: Fleetctl) -> None:
    ctl.fake.answers["WatchRoutes"] = [watched(relayed()), watched(removed=("rt_1",))]
    for only in (["relay-a"], ["--relay", "relay-a"]):
        last = ctl.run("routes", "watch", *only).stdout.splitlines()[-1]
        assert "LEFT" in last
        assert last.endswith("leads elsewhere, or was removed")


def test_what_went_while_the_server_was_away_is_told_when_it_is_back(ctl: Fleetctl) -> None:
    openings = iter([[watched(route(1), route(2)), grpc.StatusCode.UNAVAILABLE], [watched(route(2))]])
    ctl.fake.answers["WatchRoutes"] = lambda _: next(openings)
    rows = [line.split()[2:4] for line in ctl.run("routes", "watch").stdout.splitlines()[1:]]
    assert rows == [["press-1-to-oven", "IS"], ["press-2-to-oven", "IS"], ["press-1-to-oven", "REMOVED"]]


def test_a_watch_for_programs_tells_everything(ctl: Fleetctl) -> None:
    ctl.fake.answers["WatchRoutes"] = [watched(route()), watched(route(rtt_us=1)), watched(removed=("rt_1",))]
    result = ctl.run("routes", "watch", "press-1", "--relay", "relay-a", "-o", "json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line.get("rtt_us") for line in lines] == [18_400, 1, None]
    assert lines[2] == {"route_id": "rt_1", "removed": True}
    (request,) = ctl.fake.requests("WatchRoutes")
    assert (request.node, request.relay) == ("press-1", "relay-a")


def test_relays_are_added_listed_and_removed(ctl: Fleetctl) -> None:
    away = relay(name="relay-b", usable=False, why_not="it is offline", weight=200, load=50)
    ctl.fake.answers["AddRelay"] = admin_route_pb2.AddRelayResponse(relay=away)
    ctl.fake.answers["ListRelays"] = admin_route_pb2.ListRelaysResponse(relays=[relay(), away])
    ctl.fake.answers["RemoveRelay"] = admin_route_pb2.RemoveRelayResponse(relay=away)
    added = ctl.run("relays", "add", "relay-b", "--capacity", "50", "--weight", "200", "--site", "hall")
    assert "It cannot be chosen yet: it is offline" in added.stderr
    (request,) = ctl.fake.requests("AddRelay")
    assert (request.node, request.capacity, request.weight, request.site) == ("relay-b", 50, 200, "hall")
    shown = ctl.run("relays", "list")
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert rows[1][:6] == ["●", "relay-a", "berlin", "2", "50", "100%"]
    assert rows[2][0] == "○"
    assert "it is offline" in shown.stdout
    assert shown.stderr == "2 relays, 1 usable\n"
    assert "fleetctl routes list" in ctl.run("relays", "remove", "relay-b").stderr
    assert ctl.json("relays", "add", "relay-b")["why_not"] == "it is offline"


def test_a_refusal_ends_with_3_and_its_sentence(ctl: Fleetctl) -> None:
    said = "route 'x' leads from press-1 to oven already"
    ctl.fake.answers["CreateRoute"] = Refusal(Reason.CONFLICT, said)
    result = ctl.run("routes", "create", "press-1", "oven")
    assert (result.exit_code, said in result.stderr) == (3, True)
    denied = Refusal(Reason.PERMISSION_DENIED, "no", metadata={"needed_role": "operator"})
    ctl.fake.answers["AddRelay"] = denied
    result = ctl.run("relays", "add", "oven")
    assert (result.exit_code, "the role operator" in result.stderr) == (3, True)


@pytest.mark.parametrize(
    ("routes", "told"),
    [
        ([], None),
        (
            [route(1), route(2), relayed(3, state="DRIFT", relay_node_id="n_1")],
            "2 HEALTHY, 1 DRIFT, 1 of them over this",
        ),
    ],
)
def test_a_nodes_routes_stand_in_one_line(ctl: Fleetctl, routes: list[Any], told: str | None) -> None:
    ctl.fake.answers["GetNode"] = admin_pb2.GetNodeResponse(node=node(1))
    ctl.fake.answers["ListRoutes"] = listed(*routes)
    text = ctl.run("nodes", "show", "press-1").stdout
    assert (told in text and "fleetctl routes list press-1" in text) if told else "routes" not in text


def test_nodes_show_does_without_routes_where_the_server_knows_none(ctl: Fleetctl) -> None:
    ctl.fake.answers["GetNode"] = admin_pb2.GetNodeResponse(node=node(1))
    assert ctl.run("nodes", "show", "press-1").exit_code == 0, "the fake answers no ListRoutes"
