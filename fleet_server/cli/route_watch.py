"""`fleetctl routes watch`: routes as they change, in place on a terminal, a line for each change in a pipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fleet_server.cli import complete
from fleet_server.cli.grammar import Verb
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.route_views import (
    COLUMNS,
    dot,
    route_row,
    route_state,
    rtt_text,
    state_word,
    via,
    way_text,
    works,
)
from fleet_server.cli.tables import Cell, Column
from fleet_server.cli.terminal import Styled, clock_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fleet.v1 import admin_route_pb2

    Changes = Callable[[Callable[[str], None] | None], Iterator[admin_route_pb2.WatchRoutesResponse]]

_CHANGE_COLUMNS = [
    Column("TIME"),
    Column(""),
    Column("NAME", reserve=20),
    Column("CHANGE", reserve=8),
    Column("STATE", reserve=11),
    Column("VIA", reserve=8),
    Column("RTT", right=True, spare=2),
    Column("GEN", right=True, spare=1),
    Column("DETAIL", flexible=True),
]


@click.command("watch", cls=Verb, example="fleetctl routes watch press-1")
@click.argument("node", required=False, shell_complete=complete.node)
@click.option("--relay", default="", metavar="NODE", shell_complete=complete.relay, help="Only routes over this relay.")
@click.pass_obj
def watch(invocation: Invocation, node: str | None, relay: str) -> None:
    """Follow routes until Ctrl-C: a table that stays up to date; when piped, a line for each switch and new state."""
    from fleet.v1 import admin_route_pb2

    known = Known(some=bool(node or relay))

    def request() -> admin_route_pb2.WatchRoutesRequest:
        known.begin()
        return admin_route_pb2.WatchRoutesRequest(node=node or "", relay=relay)

    with invocation.connect() as admin:
        _follow(invocation, known, lambda lost: admin.follow(admin.stub.WatchRoutes, request, lost=lost))


class Known:
    """Routes as they were told last; says what a change means to a person.

    Args:
        some: whether only routes of a node, or over one, are told: what is gone may lead over another one now.
    """

    def __init__(self, *, some: bool = False) -> None:
        self._gone = ("LEFT", "leads elsewhere, or was removed") if some else ("REMOVED", "")
        self.routes: dict[str, admin_route_pb2.RouteView] = {}
        self._begins = False

    def begin(self) -> None:
        """What comes next is all that there is: a server that was away does not know what was told before."""
        self._begins = True

    def removed(self, change: admin_route_pb2.WatchRoutesResponse) -> list[str]:
        """Ids of routes that are gone, of those that were told."""
        gone = {*change.removed}
        if self._begins:
            gone |= self.routes.keys() - {route.route_id for route in change.routes}
        return sorted(gone & self.routes.keys())

    def take(self, change: admin_route_pb2.WatchRoutesResponse) -> list[tuple[admin_route_pb2.RouteView, str, str]]:
        """Routes that changed in a way that a person waits for, each with a word and a detail."""
        news = []
        removed = self.removed(change)
        self._begins = False
        for route in change.routes:
            word, detail = self._compare(route)
            self.routes[route.route_id] = route
            if word:
                news.append((route, word, detail))
        return [*news, *((self.routes.pop(route_id), *self._gone) for route_id in removed)]

    def _compare(self, now: admin_route_pb2.RouteView) -> tuple[str, str]:
        before = self.routes.get(now.route_id)
        if before is None:
            return "IS", ""
        if before.relay_node_id != now.relay_node_id:
            return "SWITCHED", f"{way_text(before.relay_name)} → {way_text(now.relay_name)}"
        if state_word(before) != state_word(now):
            return "STATE", f"was {state_word(before)}"
        return "", ""


def _follow(invocation: Invocation, known: Known, changes: Changes) -> None:
    from fleet_server.cli import live
    from fleet_server.cli.views import to_json

    if invocation.wants_json:
        for change in changes(None):
            for route in change.routes:
                invocation.emit_json_line(to_json(route))
            for route_id in known.removed(change):
                invocation.emit_json_line({"route_id": route_id, "removed": True})
            known.take(change)
    elif live.is_possible():
        _follow_in_place(invocation, known, changes)
    else:
        _follow_by_lines(invocation, known, changes)


def _follow_in_place(invocation: Invocation, known: Known, changes: Changes) -> None:
    from fleet_server.cli.live import LiveTable

    def rows() -> list[list[Cell]]:
        now_ms = invocation.now_ms()
        return [route_row(route, now_ms) for route in sorted(known.routes.copy().values(), key=lambda each: each.name)]

    with LiveTable(COLUMNS, rows, "route") as shown:
        last = ""
        for change in changes(shown.note):
            for route, word, detail in known.take(change):
                if word == "SWITCHED":
                    last = f"{clock_text(invocation.now_ms())} {route.name} switched: {detail}"
            shown.note(last)


def _follow_by_lines(invocation: Invocation, known: Known, changes: Changes) -> None:
    lines = invocation.running_table(_CHANGE_COLUMNS)
    for change in changes(None):
        clock = clock_text(invocation.now_ms())
        rows = [[clock, *_line(*news)] for news in known.take(change)]
        if rows:
            invocation.emit_text(lines.add(rows))


def _line(route: admin_route_pb2.RouteView, word: str, detail: str) -> list[Cell]:
    return [
        dot(route),
        Styled(route.name, bold=True),
        Styled(word, "cyan", bold=True) if word == "SWITCHED" else word,
        route_state(route),
        via(route),
        rtt_text(route.rtt_us) if works(route) else "-",
        str(route.generation),
        detail or "-",
    ]
