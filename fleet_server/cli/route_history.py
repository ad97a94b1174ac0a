"""`fleetctl routes history`: what was decided and observed of a route."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING

import click

from fleet_server.cli import complete
from fleet_server.cli.grammar import Verb
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.route_views import loss_cell, path_state, rtt_text, way_text
from fleet_server.cli.tables import Cell, Column
from fleet_server.cli.terminal import Styled, age

if TYPE_CHECKING:
    from fleet.v1 import admin_route_pb2
    from fleet_server.cli.node_names import NodeNames

OBSERVATION_COLUMNS = [
    Column("OBSERVED"),
    Column("BY", spare=2),
    Column("STATE"),
    Column("AGE", right=True),
    Column("RTT", right=True),
    Column("LOSS", right=True, spare=1),
    Column("HOPS", flexible=True, least=20),
    Column("FAILURE", flexible=True, least=16),
]
_COLUMNS = [
    Column("TIME"),
    Column("WHAT"),
    Column("STATE", reserve=11),
    Column("PATH", flexible=True, least=18, spare=4),
    Column("RTT", right=True, spare=3),
    Column("LOSS", right=True, spare=1),
    Column("GEN", right=True, spare=2),
    Column("DETAIL", flexible=True, least=40),
]
_WORDS = {
    "SYNTHETIC_ROUTE_HEALTH": "path",
    "PEER_CONNECTION": "first hop",
    "LEASE": "lease",
    "CANDIDATE_PATH": "candidate",
}


@click.command("history", cls=Verb, example="fleetctl routes history press-1-to-press-2 --limit 20")
@click.argument("route", shell_complete=complete.route)
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Most decisions to show.")
@click.pass_obj
def history(invocation: Invocation, route: str, limit: int) -> None:
    """Show what was decided and observed of a route, newest first.

    Observations are kept when a state changes, and otherwise once a minute of the path, and once in ten of the rest; as
    many are shown as decisions.
    """
    from fleet.v1 import admin_route_pb2
    from fleet_server.cli.node_names import NodeNames

    with invocation.connect() as admin:
        request = admin_route_pb2.RouteHistoryRequest(route=route, limit=limit)
        answer = admin.call(admin.stub.RouteHistory, request)
        names = NodeNames(admin)
        if not invocation.wants_json:
            names.learn(reason.text for decision in answer.decisions for reason in decision.reasons)
    if invocation.wants_json:
        invocation.emit_message(answer, [])
        return
    found: list[tuple[int, list[Cell]]] = [
        (each.received_at_ms, _observation(each)) for each in reversed(answer.observations)
    ]
    found += [(each.decided_at_ms, _decision(each, names)) for each in reversed(answer.decisions)]
    # What was decided on an observation came after it, though it has the same time.
    found.sort(key=itemgetter(0))
    if found:
        invocation.emit_table(_COLUMNS, [row for _, row in reversed(found)])
    else:
        invocation.advise("Nothing was decided or observed yet.")


def observation_row(seen: admin_route_pb2.RouteObservationView, now_ms: int) -> list[Cell]:
    """An observation as a row of `OBSERVATION_COLUMNS`."""
    return [
        _word(seen),
        seen.reporter_name,
        path_state(seen.state),
        age(seen.received_at_ms, now_ms),
        rtt_text(seen.rtt_us),
        _loss(seen),
        _hops(seen),
        _failure(seen),
    ]


def _observation(seen: admin_route_pb2.RouteObservationView) -> list[Cell]:
    from fleet_server.cli.views import moment_text

    return [
        moment_text(seen.received_at_ms),
        _word(seen),
        path_state(seen.state),
        _hops(seen),
        rtt_text(seen.rtt_us),
        _loss(seen),
        str(seen.generation),
        _failure(seen),
    ]


def _decision(made: admin_route_pb2.RouteDecisionView, names: NodeNames) -> list[Cell]:
    from fleet_server.cli.views import moment_text

    sentence = made.reasons[0].text if made.reasons else "-"
    return [
        moment_text(made.decided_at_ms),
        Styled("DECISION", bold=True),
        Styled(made.rule, "cyan"),
        Styled(way_text(made.relay_name), bold=True),
        "-",
        "-",
        str(made.generation),
        names.told_by_name(sentence[:1].upper() + sentence[1:]),
    ]


def _word(seen: admin_route_pb2.RouteObservationView) -> str:
    return _WORDS.get(seen.observation_type, seen.observation_type)


def _loss(seen: admin_route_pb2.RouteObservationView) -> Cell:
    """Lost probes of a path; those of its first hop, and of a lease, nobody counts."""
    counted = seen.observation_type in ("SYNTHETIC_ROUTE_HEALTH", "CANDIDATE_PATH")
    return loss_cell(seen.loss_permille / 1000) if counted else "-"


def _hops(seen: admin_route_pb2.RouteObservationView) -> str:
    expected, observed = (" → ".join(hops) for hops in (seen.expected_hops, seen.observed_hops))
    return f"{observed}, not {expected}" if seen.state == "DRIFT" and observed != expected else expected or "-"


def _failure(seen: admin_route_pb2.RouteObservationView) -> Cell:
    if not seen.failure:
        return "-"
    where = f" at {seen.expected_hops[seen.failed_hop]}" if 0 < seen.failed_hop < len(seen.expected_hops) else ""
    blamed = f", blamed: {seen.blamed_name}" if seen.blamed_name else ""
    return Styled(f"{seen.failure}{where}{blamed}", "red")
