"""What `fleet-node status` says of routes."""

from typing import Any

from fleet_node.status.routes import route_fields

ROUTE: dict[str, Any] = {
    "route_id": "rt_1",
    "name": "a-to-b",
    "role": "source",
    "generation": 3,
    "path": ["nd_a", "nd_r", "nd_b"],
    "path_names": ["this node", "r", "nd_b"],
    "state": "DEGRADED",
    "rtt_us": 1250,
    "loss_permille": 300,
    "waiting_rendezvous": True,
    "lease": {"lease_id": "ls_1", "relay_node_id": "nd_r", "generation": 2, "left_ms": 80_500, "withdrawn": False},
}
ROUTES: dict[str, Any] = {
    "config_version": 7,
    "authority_required": True,
    "problem": "",
    "listener": "0.0.0.0:9470",
    "endpoints": ["10.1.2.3:9470"],
    "certificate_sha256": "ab",
    "refreshes_asked": 2,
    "refreshes_held_back": 5,
    "routes": [ROUTE],
    "routes_in_all": 1,
}


def text(**changes: Any) -> str:
    return "\n".join(f"{label}: {value}" for label, value in route_fields(ROUTES | changes))


def one(**changes: Any) -> str:
    return text(routes=[ROUTE | changes])


def test_a_node_without_routes_says_nothing() -> None:
    assert list(route_fields(None)) == []


def test_a_route_is_shown_in_a_line() -> None:
    said = text()
    assert "probes: 0.0.0.0:9470, others reach it at 10.1.2.3:9470" in said
    assert "routes: 1, config version 7" in said
    assert (
        "route a-to-b: source, DEGRADED 1.2 ms with 30 % lost, this node > r > nd_b, generation 3, its ends do not"
        " reach each other; lease ls_1 (generation 2) for 80 s" in said
    )
    assert "asks: 2 for another path, 5 held back" in said


def test_what_needs_a_look_stands_out() -> None:
    lease = ROUTE["lease"]
    assert "lease ls_1 (generation 2) HAS ENDED" in one(lease=lease | {"left_ms": 0})
    assert "was taken back" in one(lease=lease | {"withdrawn": True})
    assert "nothing found out yet" in one(state="UNSPECIFIED")
    assert "candidate relay, this node" in one(role="candidate relay")
    assert "UNSAFE" in text(authority_required=False)
    assert "routes.bin is damaged" in text(problem="routes.bin is damaged", config_version=0)
    assert "and 4 more" in text(routes_in_all=5)
    assert "not listening on 1.2.3.4:5" in text(listener="not listening on 1.2.3.4:5: taken", endpoints=[])


def test_a_node_that_others_would_call_and_that_listens_nowhere_is_told() -> None:
    unheard: dict[str, Any] = {"listener": "off", "endpoints": []}
    assert "probes: off, so that no other node" in text(**unheard, routes=[ROUTE | {"role": "relay"}])
    assert "probes: off\n" in text(**unheard)


def test_a_node_that_never_asked_says_nothing_of_asks() -> None:
    assert "asks" not in text(refreshes_asked=0, refreshes_held_back=0)
