"""`fleetctl routes`: paths between nodes that the server keeps healthy."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from fleet_server.cli import complete
from fleet_server.cli.grammar import Duration, Noun
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.route_explain import explain
from fleet_server.cli.route_graph import graph
from fleet_server.cli.route_history import history
from fleet_server.cli.route_views import emit_routes, path_text, route_state, state_word, via
from fleet_server.cli.route_watch import watch
from fleet_server.cli.tables import Cell
from fleet_server.cli.terminal import Styled, age, counted, duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fleet.v1 import admin_route_pb2

STATES = ("HEALTHY", "DEGRADED", "DRIFT", "UNREACHABLE", "UNKNOWN", "DISABLED")
_WORST = ("UNREACHABLE", "DRIFT", "DEGRADED")


class Interval(Duration):
    """Milliseconds: as a duration, or a number with ms."""

    name = "interval"
    SUCH_AS = "500ms, 10, 30s or 5m"
    _MILLISECONDS = re.compile(r"([0-9]{1,9})ms")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Whole milliseconds above 0."""
        if isinstance(value, int):
            return value
        if found := self._MILLISECONDS.fullmatch(value):
            return int(found[1]) or self.fail(f"{value!r} is no time between probes", param, ctx)
        return min(super().convert(value, param, ctx) * 1000, 0xFFFFFFFF)


@click.group(cls=Noun)
def routes() -> None:
    """Make, watch and explain routes: paths between two nodes that are probed, and led over a relay when need be.

    ROUTE is a name or an id. Only synthetic probes travel on a route, never anybody's data.
    """


@routes.command("create", example="fleetctl routes create press-1 press-2 --interval 10s")
@click.argument("source", shell_complete=complete.node)
@click.argument("destination", shell_complete=complete.node)
@click.option("--name", default="", help="Name of the route; SOURCE-to-DESTINATION by default.")
@click.option("--interval", type=Interval(), help="Time between two probes, 200ms to 10m; 10s by default.")
@click.pass_obj
def create(invocation: Invocation, source: str, destination: str, name: str, interval: int | None) -> None:
    """Have SOURCE probe a path to DESTINATION from now on, and the server keep it the best there is.

    Both are names or ids of nodes. The way back is another route. DESTINATION needs a probe listener (`probe_listen` in
    its configuration), SOURCE needs none.
    """
    from fleet.v1 import admin_route_pb2

    request = admin_route_pb2.CreateRouteRequest(
        source=source, destination=destination, name=name, probe_interval_ms=interval or 0
    )
    with invocation.connect() as admin:
        answer = admin.call(admin.stub.CreateRoute, request)
    route = answer.route
    invocation.emit_message(answer, _details(route, invocation.now_ms()))
    for note in answer.notes:
        invocation.advise(f"Not yet: {note}")
    invocation.advise(f"To see how it does: `fleetctl routes explain {shlex.quote(route.name)}`")


@routes.command("list", example="fleetctl routes list press-1 --state unreachable")
@click.argument("node", required=False, shell_complete=complete.node)
@click.option("--relay", default="", metavar="NODE", shell_complete=complete.relay, help="Only routes over this relay.")
@click.option("--state", type=click.Choice(STATES, case_sensitive=False), help="Only routes in this state.")
@click.pass_obj
def list_routes(invocation: Invocation, node: str | None, relay: str, state: str | None) -> None:
    """List routes by name; with NODE those that it is an end or the relay of.

    ● is HEALTHY, ◐ DEGRADED (slow, or loses probes), ◆ DRIFT (another way than expected, or another node answered), ✕
    UNREACHABLE, ○ not observed or disabled. A relay with a * is lent by a lease: the ends cannot reach each other.
    """
    from fleet.v1 import admin_route_pb2

    with invocation.connect() as admin:
        found = admin.pages(
            admin.stub.ListRoutes,
            lambda page: admin_route_pb2.ListRoutesRequest(
                node=node or "", relay=relay, state=(state or "").upper(), page=page
            ),
            lambda answer: iter(answer.routes),
        )
    emit_routes(invocation, found)
    if found:
        invocation.advise(_summary(found))
        worst = _worst(found)
        if state_word(worst) in _WORST:
            invocation.advise(f"To see why: `fleetctl routes explain {shlex.quote(worst.name)}`")
    elif node or relay or state:
        invocation.advise("No route is like that. All that there are: `fleetctl routes list`")
    else:
        invocation.advise("There is no route yet. The first one: `fleetctl routes create SOURCE DESTINATION`")


@routes.command("show", example="fleetctl routes show press-1-to-press-2")
@click.argument("route", shell_complete=complete.route)
@click.pass_obj
def show(invocation: Invocation, route: str) -> None:
    """Show one route: its path, its lease, and what its nodes observed last."""
    from fleet.v1 import admin_route_pb2
    from fleet_server.cli.route_history import OBSERVATION_COLUMNS, observation_row

    with invocation.connect() as admin:
        answer = admin.call(admin.stub.GetRoute, admin_route_pb2.GetRouteRequest(route=route))
    now_ms = invocation.now_ms()
    fields = _details(answer.route, now_ms)
    if answer.HasField("lease"):
        fields.append(("lease", lease_text(answer.lease, now_ms)))
    invocation.emit_message(answer, fields)
    if not invocation.wants_json:
        invocation.emit_text("")
        if answer.observations:
            rows = [observation_row(each, now_ms) for each in answer.observations]
            invocation.emit_table(OBSERVATION_COLUMNS, rows)
        else:
            invocation.emit_text("nothing was observed yet")
        for member in answer.members:
            if told := _behind(member, now_ms):
                invocation.advise(told)


routes.add_command(explain)
routes.add_command(watch)
routes.add_command(history)


@routes.command("disable", example="fleetctl routes disable press-1-to-press-2")
@click.argument("route", shell_complete=complete.route)
@click.pass_obj
def disable(invocation: Invocation, route: str) -> None:
    """Take a route out of its nodes' snapshots: nobody probes it any more. What was observed stays."""
    name = _set_enabled(invocation, route, enabled=False)
    invocation.advise(f"To have it back: `fleetctl routes enable {shlex.quote(name)}`")


@routes.command("enable", example="fleetctl routes enable press-1-to-press-2")
@click.argument("route", shell_complete=complete.route)
@click.pass_obj
def enable(invocation: Invocation, route: str) -> None:
    """Have a disabled route probed again."""
    _set_enabled(invocation, route, enabled=True)


@routes.command("remove", example="fleetctl routes remove press-1-to-press-2 --yes")
@click.argument("route", shell_complete=complete.route)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def remove(invocation: Invocation, route: str, yes: bool) -> None:
    """End a route, and forget what was decided and observed of it. The audit keeps the decisions."""
    from fleet.v1 import admin_route_pb2

    invocation.confirm(f"Remove the route {route}, and what was observed of it?", assumed=yes)
    with invocation.connect() as admin:
        removed = admin.call(admin.stub.RemoveRoute, admin_route_pb2.RemoveRouteRequest(route=route)).route
    invocation.emit_message(removed, _details(removed, invocation.now_ms()))
    invocation.advise("It is removed.")


routes.add_command(graph)


def lease_text(lease: admin_route_pb2.RouteLeaseView, now_ms: int) -> Cell:
    """Who holds the lease of a route, and for how long."""
    left_s = (lease.expires_at_ms - now_ms) / 1000
    if lease.withdrawn or left_s <= 0:
        end = "taken back" if lease.withdrawn else "expired"
        return Styled(f"{lease.relay_name} held it, generation {lease.generation}: {end}", dim=True)
    told = "" if lease.acknowledged_at_ms else ", not acknowledged yet"
    text = f"{lease.relay_name} holds it for another {duration(left_s)}, generation {lease.generation}{told}"
    return Styled(text, "yellow") if told else text


def _set_enabled(invocation: Invocation, ref: str, *, enabled: bool) -> str:
    from fleet.v1 import admin_route_pb2

    request = admin_route_pb2.SetRouteEnabledRequest(route=ref, enabled=enabled)
    with invocation.connect() as admin:
        route = admin.call(admin.stub.SetRouteEnabled, request).route
    invocation.emit_message(route, _details(route, invocation.now_ms()))
    return route.name


def _details(route: admin_route_pb2.RouteView, now_ms: int) -> list[tuple[str, Cell]]:
    from fleet_server.cli.route_views import counts, loss_cell, rendezvous_text, rtt_text, works
    from fleet_server.cli.views import moment_text

    since = f" for {age(route.state_since_ms, now_ms)}" if counts(route) and route.state_since_ms else ""
    state = route_state(route)
    rendezvous = rendezvous_text(route)
    return [
        ("name", Styled(route.name, bold=True)),
        ("id", route.route_id),
        ("state", Styled(state.text + since, state.colour, dim=state.dim)),
        ("path", path_text(route)),
        ("via", via(route)),
        *([("rendezvous", Styled(rendezvous, "yellow"))] if rendezvous else []),
        ("round trip", rtt_text(route.rtt_us) if works(route) else "-"),
        ("loss", loss_cell(route.loss_permille / 1000) if works(route) else "-"),
        ("observed", f"{age(route.observed_at_ms, now_ms)} ago" if route.observed_at_ms else "never"),
        ("probed", f"every {duration(route.probe_interval_ms / 1000)}"),
        ("generation", f"{route.generation}, since {moment_text(route.decided_at_ms)}"),
        ("created", f"{moment_text(route.created_at_ms)} by {route.created_by}"),
    ]


def _behind(member: admin_route_pb2.RouteMemberView, now_ms: int) -> str:
    """What is to be known of a node that does not run the version of its configuration that it is to have."""
    if member.applied_at_ms and not member.applied:
        return f"{member.name} refused version {member.applied_version} of its routes: {member.reason}"
    if member.applied_version < member.version:
        told = f"since {age(member.applied_at_ms, now_ms)}" if member.applied_at_ms else "none yet"
        return f"{member.name} runs version {member.applied_version} of its routes ({told}), not {member.version}"
    return ""


def _summary(found: Sequence[admin_route_pb2.RouteView]) -> str:
    states = Counter(map(state_word, found))
    told = [f"{number} {word}" for word, number in states.most_common()]
    return f"{counted(len(found), 'route')}: {', '.join(told)}"


def _worst(found: Sequence[admin_route_pb2.RouteView]) -> admin_route_pb2.RouteView:
    return min(found, key=lambda route: _WORST.index(word) if (word := state_word(route)) in _WORST else len(_WORST))
