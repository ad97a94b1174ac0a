"""fleetctl routes explain and history: why a route takes its path, then and now."""

from __future__ import annotations

import json

import pytest

from fleet.v1 import admin_pb2, admin_route_pb2
from tests.unit.fleet_server.cli.conftest import NOW_MS, Fleetctl
from tests.unit.fleet_server.cli.made import node
from tests.unit.fleet_server.cli.made_routes import (
    RELAY_ID,
    decision,
    lease,
    observation,
    relayed,
    route,
    way,
)

BROKEN = way(
    state="UNREACHABLE",
    scored=False,
    score_us=0,
    parts=[],
    penalty=1000.4,
    held_out=f"UNREACHABLE for 12 s (TIMED_OUT, evidence names {RELAY_ID})",
)
FLAPPING = way("relay-b", penalty=2400, suppressed_until_ms=NOW_MS + 600_000, held_out="flaps", weight=200)


def explained(**changes: object) -> admin_route_pb2.ExplainRouteResponse:
    values = {
        "route": relayed(),
        "decision": decision(f"The direct path broke; the path over {RELAY_ID} is the best.", considered=[BROKEN]),
        "candidates": [way("relay-a", effective=True), FLAPPING, BROKEN],
        "lease": lease(),
        "outlook": decision("It is the best.", rule="KEPT"),
        "would_switch": [f"the path over {RELAY_ID} breaks"],
        "now_ms": NOW_MS,
    }
    return admin_route_pb2.ExplainRouteResponse(**{**values, **changes})


def test_an_explanation_tells_what_decided_and_what_would_change_it(ctl: Fleetctl) -> None:
    ctl.fake.answers["ExplainRoute"] = explained()
    ctl.fake.answers["ListNodes"] = admin_pb2.ListNodesResponse(nodes=[node(1, node_id=RELAY_ID, name="relay-a")])
    result = ctl.run("routes", "explain", "press-1-to-oven")
    assert result.exit_code == 0, result.output
    for part in (
        "press-1 → relay-a → oven",
        "HEALTHY for 3m12s, seen 4.0s ago",
        "UNHEALTHY, decided by server",
        "relay-a holds it for another 1m30s",
        "Why, decided 3m12s ago: UNHEALTHY",
        "The direct path broke; the path over relay-a is the best.",
        "Now: KEPT",
        "Ways, as they are now",
        "Ways, when it was decided",
        "It takes another path when",
        "- The path over relay-a breaks",
    ):
        assert part in result.stdout, part
    assert RELAY_ID not in result.stdout, "people know nodes by name"
    lines = result.stdout.splitlines()
    (chosen,) = [line for line in lines if line.startswith("▶")]
    assert "29.4" in chosen
    assert "18.4 rtt + 10.0 relay" in chosen
    flapping = next(line for line in lines if "over relay-b" in line)
    assert "/ 200%" in flapping
    assert "2400" in flapping
    assert "for 10m00s" in flapping


def test_ways_that_are_as_they_were_are_shown_once(ctl: Fleetctl) -> None:
    ways = [way("relay-a", effective=True), BROKEN]
    ctl.fake.answers["ExplainRoute"] = explained(candidates=ways, decision=decision("x", considered=ways))
    assert "when it was decided" not in ctl.run("routes", "explain", "x").stdout


def test_one_that_was_never_observed_is_explained_as_well(ctl: Fleetctl) -> None:
    never = route(state="UNKNOWN", observed_at_ms=0, rtt_us=0)
    ctl.fake.answers["ExplainRoute"] = admin_route_pb2.ExplainRouteResponse(route=never, now_ms=NOW_MS)
    result = ctl.run("routes", "explain", "x")
    assert result.exit_code == 0
    assert "never observed" in result.stdout


def test_a_disabled_one_says_how_to_have_it_back(ctl: Fleetctl) -> None:
    ctl.fake.answers["ExplainRoute"] = explained(route=route(enabled=False), would_switch=[])
    result = ctl.run("routes", "explain", "x")
    assert "fleetctl routes enable press-1-to-oven" in result.stderr
    assert "Now:" not in result.stdout
    ctl.fake.answers["ExplainRoute"] = explained(route=route(quarantined=True))
    assert "fleetctl routes remove press-1-to-oven" in ctl.run("routes", "explain", "x").stderr


def test_an_explanation_for_programs_has_the_numbers(ctl: Fleetctl) -> None:
    reason = admin_route_pb2.RouteReason(text="x", numbers={"gain_us": "12000"})
    ctl.fake.answers["ExplainRoute"] = explained(decision=decision(reasons=[reason]))
    told = ctl.json("routes", "explain", "x")
    assert told["decision"]["reasons"][0]["numbers"] == {"gain_us": "12000"}
    assert told["candidates"][0]["score_us"] == 29_400
    assert told["candidates"][1]["suppressed_until"].endswith("Z")
    assert ctl.fake.requests("ListNodes") == []


def test_a_history_has_decisions_after_what_they_were_decided_on(ctl: Fleetctl) -> None:
    lost = observation(state="UNREACHABLE", failure="TIMED_OUT", received_at_ms=NOW_MS, blamed_name="pump")
    ctl.fake.answers["RouteHistory"] = admin_route_pb2.RouteHistoryResponse(
        decisions=[decision("The direct path broke.", decided_at_ms=NOW_MS)],
        observations=[lost, observation(observation_type="CANDIDATE_PATH", received_at_ms=NOW_MS - 60_000)],
    )
    result = ctl.run("routes", "history", "x", "--limit", "20")
    rows = result.stdout.splitlines()[1:]
    assert [row.split()[2] for row in rows] == ["DECISION", "path", "candidate"]
    assert "The direct path broke." in rows[0]
    assert "TIMED_OUT, blamed: pump" in rows[1]
    (request,) = ctl.fake.requests("RouteHistory")
    assert request.limit == 20
    assert ctl.json("routes", "history", "x")["decisions"][0]["rule"] == "UNHEALTHY"


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ({"state": "SUSPENDED", "online": False}, "Its destination oven is SUSPENDED: `fleetctl nodes show oven`"),
        ({"online": False}, "Its destination oven is offline: `fleetctl nodes show oven`"),
        ({}, "oven has no probe listener"),
    ],
)
def test_what_is_wrong_with_an_end_of_a_broken_route_is_told(ctl: Fleetctl, end: dict[str, object], told: str) -> None:
    unheard = way(state="UNREACHABLE", scored=False, parts=[], held_out="UNREACHABLE for 12 s (NO_ENDPOINT)")
    ctl.fake.answers["ExplainRoute"] = explained(route=route(state="UNREACHABLE"), candidates=[unheard])
    ctl.fake.answers["ListNodes"] = admin_pb2.ListNodesResponse(
        nodes=[node(1), node(2, node_id="n_oven", name="oven", **end)]
    )
    result = ctl.run("routes", "explain", "press-1-to-oven")
    assert result.exit_code == 0, result.output
    assert told in result.stderr
    assert "press-1 is" not in result.stderr


def test_the_audit_tells_what_was_decided_of_routes(ctl: Fleetctl) -> None:
    made = [{"generation": 4, "relay": "", "route": "rt_1", "rule": "FASTER"}]
    made += [{"generation": 2, "relay": "n_2", "route": "rt_2", "rule": "UNHEALTHY"}]
    known = admin_pb2.AuditEntry(kind="route.decided", detail=json.dumps({"decisions": made}).encode())
    other = admin_pb2.AuditEntry(kind="route.decided", detail=b'{"later":1}')
    ctl.fake.answers["ExportAudit"] = [admin_pb2.ExportAuditResponse(entries=[known, other])]
    shown = ctl.run("audit", "tail").stdout
    assert "rt_1 FASTER direct, generation 4; rt_2 UNHEALTHY over n_2, generation 2" in shown
    assert "later=1" in shown
