"""`fleetctl routes explain`: why a route takes the path that it takes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from fleet_server.cli import complete
from fleet_server.cli.grammar import Verb
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.route_views import (
    WORKING,
    counts,
    loss_cell,
    path_state,
    path_text,
    rendezvous_text,
    route_state,
    rtt_text,
    way_text,
    works,
)
from fleet_server.cli.tables import Cell, Column
from fleet_server.cli.terminal import Styled, age, duration, styled, terminal_width, wants_colour

if TYPE_CHECKING:
    from fleet.v1 import admin_route_pb2
    from fleet_server.cli.node_names import NodeNames

_COLUMNS = [
    Column(""),
    Column("PATH"),
    Column("STATE"),
    Column("RTT", right=True),
    Column("LOSS", right=True),
    Column("SEEN", right=True, spare=1),
    Column("SCORE", right=True),
    Column("PENALTY", right=True, spare=3),
    Column("SUPPRESSED", spare=2),
    Column("MADE OF", flexible=True, least=16, spare=4),
]
_NO_WEIGHT = (0, 100)


@click.command("explain", cls=Verb, example="fleetctl routes explain press-1-to-press-2")
@click.argument("route", shell_complete=complete.route)
@click.pass_obj
def explain(invocation: Invocation, route: str) -> None:
    """Tell why a route takes its path: the rule that decided, every other way, and what would make it change.

    A score is in milliseconds, and the lower the better: the round trip, and what lost probes, old knowledge, a relay,
    its load and another site cost, divided by the relay's weight. A path that works is left only for one that is 10 ms
    better and has at most two thirds of its score. Each time that a path breaks it gets a penalty of 1000, which halves
    in 15 minutes; from 2000 on it is held out until it is below 750, unless nothing else works.
    """
    from fleet.v1 import admin_route_pb2
    from fleet_server.cli.node_names import NodeNames
    from fleet_server.cli.node_routes import troubles_of_ends

    with invocation.connect() as admin:
        answer = admin.call(admin.stub.ExplainRoute, admin_route_pb2.ExplainRouteRequest(route=route))
        names = NodeNames(admin)
        troubles = [] if invocation.wants_json else troubles_of_ends(admin, answer)
        if not invocation.wants_json:
            names.learn(_texts(answer))
    if invocation.wants_json:
        invocation.emit_message(answer, [])
    else:
        _Page(invocation, answer, names).show()
        for trouble in troubles:
            invocation.advise(trouble)


class _Page:
    """One explanation, in parts: the route, why, its ways then and now, and what would change it."""

    def __init__(self, invocation: Invocation, answer: admin_route_pb2.ExplainRouteResponse, names: NodeNames) -> None:
        self._invocation = invocation
        self._answer = answer
        self._names = names
        self._now_ms = answer.now_ms or invocation.now_ms()

    def show(self) -> None:
        """Write all of it."""
        answer = self._answer
        self._invocation.emit_fields(list(self._head()))
        if answer.HasField("decision"):
            self._say_reasons(f"Why, decided {self._ago(answer.decision.decided_at_ms)}", answer.decision)
        if answer.HasField("outlook") and counts(answer.route):
            self._say_reasons("Now", answer.outlook)
        if answer.candidates:
            self._say_table("Ways, as they are now", answer.candidates, self._now_ms)
        if answer.decision.considered and _have_changed(answer):
            self._say_table("Ways, when it was decided", answer.decision.considered, answer.decision.decided_at_ms)
        if answer.would_switch:
            self._title("It takes another path when")
            for each in answer.would_switch:
                self._point(each)
        if not counts(answer.route):
            self._invocation.advise(self._how_to_go_on())

    def _head(self) -> Iterator[tuple[str, Cell]]:
        from fleet_server.cli.routes import lease_text
        from fleet_server.cli.views import moment_text

        route = self._answer.route
        yield "route", Styled(route.name, bold=True)
        yield "path", Styled(path_text(route), bold=True)
        state = route_state(route)
        since = f" for {age(route.state_since_ms, self._now_ms)}" if counts(route) and route.state_since_ms else ""
        seen = f", seen {self._ago(route.observed_at_ms)}" if route.observed_at_ms else ", never observed"
        yield "state", Styled(f"{state.text}{since}{seen}", state.colour, dim=state.dim)
        if works(route):
            loss = loss_cell(route.loss_permille / 1000)
            loss_text = loss.text if isinstance(loss, Styled) else loss
            yield "measured", f"{rtt_text(route.rtt_us)} round trip, {loss_text} lost"
        yield "generation", f"{route.generation}, since {moment_text(route.decided_at_ms)}"
        if self._answer.HasField("decision"):
            made = self._answer.decision
            yield "rule", Styled(f"{made.rule}, decided by {made.decided_by}", "cyan")
        lease = self._answer.lease
        if self._answer.HasField("lease") and (route.relay_node_id or not lease.withdrawn):
            yield "lease", lease_text(lease, self._now_ms)
        if rendezvous := rendezvous_text(route):
            yield "rendezvous", Styled(rendezvous, "yellow")

    def _say_reasons(self, title: str, made: admin_route_pb2.RouteDecisionView) -> None:
        self._title(f"{title}: {made.rule}")
        for reason in made.reasons:
            self._point(reason.text)

    def _say_table(self, title: str, ways: Sequence[admin_route_pb2.RouteCandidateView], at_ms: int) -> None:
        self._title(title)
        self._invocation.emit_table(_COLUMNS, [self._row(way, at_ms) for way in ways])
        for way in ways:
            if way.held_out:
                self._point(f"{way_text(way.relay_name)} is held out: {way.held_out}")

    def _row(self, way: admin_route_pb2.RouteCandidateView, at_ms: int) -> list[Cell]:
        left_s = (way.suppressed_until_ms - at_ms) / 1000
        return [
            Styled("▶", "cyan") if way.effective else "",
            Styled(way_text(way.relay_name), bold=way.effective),
            path_state(way.state),
            rtt_text(way.rtt_us) if way.state in WORKING else "-",
            loss_cell(way.loss) if way.samples and way.state in WORKING else "-",
            age(way.observed_at_ms, at_ms),
            f"{way.score_us / 1000:.1f}" if way.scored else "-",
            f"{way.penalty:.0f}" if way.penalty >= 1 else "-",
            Styled(f"for {duration(left_s)}", "yellow") if left_s > 0 else "-",
            _made_of(way),
        ]

    def _title(self, text: str) -> None:
        self._invocation.emit_text("\n" + styled(Styled(text, bold=True), colour=wants_colour(sys.stdout)))

    def _point(self, text: str) -> None:
        from fleet.prose import wrapped
        from fleet_server.cli.terminal import printable

        sentence = self._named(text)
        shown = wrapped(printable(sentence[:1].upper() + sentence[1:]), terminal_width(sys.stdout), indent=4)
        self._invocation.emit_text(f"  - {shown}")

    def _named(self, text: str) -> str:
        return self._names.told_by_name(text)

    def _ago(self, at_ms: int) -> str:
        return f"{age(at_ms, self._now_ms)} ago" if at_ms else "never"

    def _how_to_go_on(self) -> str:
        name = shlex.quote(self._answer.route.name)
        if self._answer.route.quarantined:
            return f"Its record was changed behind the server's back: `fleetctl routes remove {name}`, and make it anew"
        return f"It is disabled. To have it probed again: `fleetctl routes enable {name}`"


def _made_of(way: admin_route_pb2.RouteCandidateView) -> str:
    """The parts of a score that count: "12.0 rtt + 10.0 relay, / 200%"."""
    told = " + ".join(f"{part.us / 1000:.1f} {part.name}" for part in way.parts if part.us)
    return f"({told}) / {way.weight}%" if told and way.weight not in _NO_WEIGHT else told or "-"


def _have_changed(answer: admin_route_pb2.ExplainRouteResponse) -> bool:
    """Whether the ways look otherwise now than when it was decided."""
    then, now = (
        [(way.relay_node_id, way.state, way.held_out, way.scored and way.score_us) for way in ways]
        for ways in (answer.decision.considered, answer.candidates)
    )
    return then != now


def _texts(answer: admin_route_pb2.ExplainRouteResponse) -> Iterator[str]:
    for made in (answer.decision, answer.outlook):
        yield from (reason.text for reason in made.reasons)
        yield from (way.held_out for way in made.considered)
    yield from (way.held_out for way in answer.candidates)
    yield from answer.would_switch
