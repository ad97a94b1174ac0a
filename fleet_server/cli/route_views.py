"""Routes as every verb shows them: the path in words, the state in its colour, a row of a table."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fleet_server.cli.tables import Cell, Column
from fleet_server.cli.terminal import Styled, age, duration, state_cell

if TYPE_CHECKING:
    from fleet.v1 import admin_route_pb2
    from fleet_server.cli.invocation import Invocation

DIRECT = "direct"
WORKING = frozenset({"HEALTHY", "DEGRADED"})
"""States of a path that answers."""

COLUMNS = [
    Column(""),
    Column("NAME", flexible=True, least=16),
    Column("STATE"),
    Column("FOR", right=True, spare=3),
    Column("SOURCE", flexible=True, spare=5),
    Column("DESTINATION", flexible=True, spare=6),
    Column("VIA", flexible=True),
    Column("RTT", right=True),
    Column("LOSS", right=True, spare=4),
    Column("GEN", right=True, spare=1),
    Column("SEEN", right=True, spare=2),
]

_DOTS = {
    "HEALTHY": Styled("●", "green"),
    "DEGRADED": Styled("◐", "yellow"),
    "DRIFT": Styled("◆", "magenta"),
    "UNREACHABLE": Styled("✕", "red"),
}


def emit_routes(invocation: Invocation, found: list[admin_route_pb2.RouteView]) -> None:
    """Show routes as every verb shows them."""
    now_ms = invocation.now_ms()
    invocation.emit_list(found, COLUMNS, lambda route: route_row(route, now_ms))


def route_row(route: admin_route_pb2.RouteView, now_ms: int) -> list[Cell]:
    """A route as a row of `COLUMNS`."""
    return [
        dot(route),
        Styled(route.name, bold=True),
        route_state(route),
        age(route.state_since_ms, now_ms) if counts(route) else "-",
        route.source_name,
        route.destination_name,
        via(route),
        rtt_text(route.rtt_us) if works(route) else "-",
        loss_cell(route.loss_permille / 1000) if works(route) else "-",
        str(route.generation),
        age(route.observed_at_ms, now_ms),
    ]


def counts(route: admin_route_pb2.RouteView) -> bool:
    """Whether it takes part: neither disabled nor left out because its record was touched."""
    return route.enabled and not route.quarantined


def works(route: admin_route_pb2.RouteView) -> bool:
    """Whether its figures say something: of a path that broke they are those of before."""
    return state_word(route) in WORKING


def rendezvous_text(route: admin_route_pb2.RouteView) -> str:
    """That a route whose ends cannot reach each other needs a relay; empty for another one."""
    if not route.waiting_rendezvous or not counts(route):
        return ""
    if not route.relay_node_id:
        return "the ends cannot reach each other, and no relay that works is known"
    return "the ends cannot reach each other: it lives by the lease of its relay"


def state_word(route: admin_route_pb2.RouteView) -> str:
    """Its state, or why it has none."""
    if route.quarantined:
        return "QUARANTINED"
    return route.state if route.enabled else "DISABLED"


def route_state(route: admin_route_pb2.RouteView) -> Styled:
    """`state_word` in its colour."""
    return path_state(state_word(route))


def path_state(word: str) -> Styled:
    """The state of a path in its colour."""
    return Styled(word, dim=True) if word in ("UNKNOWN", "DISABLED") else state_cell(word)


def dot(route: admin_route_pb2.RouteView) -> Styled:
    """The state as a sign, for whoever sees no colours."""
    return _DOTS.get(state_word(route), Styled("○", dim=True))


def via(route: admin_route_pb2.RouteView) -> Cell:
    """Over which relay; one without which the route could not be is marked."""
    if not route.relay_node_id:
        return DIRECT
    return Styled(f"{route.relay_name} *", "cyan") if route.waiting_rendezvous else route.relay_name


def way_text(relay_name: str) -> str:
    """A way of a route in a column of ways."""
    return f"over {relay_name}" if relay_name else DIRECT


def path_text(route: admin_route_pb2.RouteView) -> str:
    """Names from source to destination."""
    return " → ".join(filter(None, (route.source_name, route.relay_name, route.destination_name)))


def rtt_text(rtt_us: float) -> str:
    """A round trip; "-" when none is known."""
    return duration(rtt_us / 1e6) if rtt_us else "-"


def decisions_text(detail: bytes) -> str:
    """The decisions of one row of the audit: "rt_… UNHEALTHY over nd_…, generation 4"; empty for anything else."""
    try:
        return "; ".join(
            f"{made['route']} {made['rule']} {way_text(made['relay'])}, generation {made['generation']}"
            for made in json.loads(detail)["decisions"]
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""  # of another version: shown as it is


def loss_cell(share: float) -> Cell:
    """Lost probes in percent."""
    text = f"{share * 100:.1f}%" if share and share < 0.1 else f"{share * 100:.0f}%"
    return Styled(text, "yellow") if share >= 0.01 else text
