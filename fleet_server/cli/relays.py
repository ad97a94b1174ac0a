"""`fleetctl relays`: the pool of nodes that may relay the probes of routes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fleet_server.cli import complete
from fleet_server.cli.grammar import Noun
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.tables import Cell, Column
from fleet_server.cli.terminal import Styled, counted

if TYPE_CHECKING:
    from fleet.v1 import admin_route_pb2

_COLUMNS = [
    Column(""),
    Column("NAME"),
    Column("SITE", spare=2),
    Column("ROUTES", right=True),
    Column("CAPACITY", right=True),
    Column("WEIGHT", right=True, spare=1),
    Column("ADDED", spare=3),
    Column("BY", spare=4),
    Column("NOT USABLE BECAUSE", flexible=True),
]


@click.group(cls=Noun)
def relays() -> None:
    """Say which nodes may stand between the ends of a route when these cannot reach each other well."""


@relays.command("add", example="fleetctl relays add press-3 --capacity 200 --weight 150")
@click.argument("node", shell_complete=complete.node)
@click.option("--capacity", type=click.IntRange(1), help="Routes that it may carry, 1 to 500; 50 by default.")
@click.option(
    "--weight",
    type=click.IntRange(1),
    help="Percent by which its score is divided, 1 to 1000; 100 by default. 200 makes it look half as long, so that a"
    " route may stay with it though the direct path works again.",
)
@click.option("--site", default="", help="Site that counts for the score; the node's own by default.")
@click.pass_obj
def add(invocation: Invocation, node: str, capacity: int | None, weight: int | None, site: str) -> None:
    """Put a node into the pool, or say anew what it may carry: what is not given is as by default.

    It needs a probe listener (`probe_listen` in its configuration) that both ends of a route can dial.
    """
    from fleet.v1 import admin_route_pb2

    request = admin_route_pb2.AddRelayRequest(node=node, capacity=capacity or 0, weight=weight or 0, site=site)
    with invocation.connect() as admin:
        relay = admin.call(admin.stub.AddRelay, request).relay
    _emit(invocation, relay)
    if relay.why_not:
        invocation.advise(f"It cannot be chosen yet: {relay.why_not}")


@relays.command("list", example="fleetctl relays list")
@click.pass_obj
def list_relays(invocation: Invocation) -> None:
    """List the pool: what each relay carries, what it may carry, and why it cannot be chosen."""
    from fleet.v1 import admin_route_pb2

    with invocation.connect() as admin:
        found = list(admin.call(admin.stub.ListRelays, admin_route_pb2.ListRelaysRequest()).relays)
    invocation.emit_list(found, _COLUMNS, _row)
    if found:
        usable = sum(relay.usable for relay in found)
        invocation.advise(f"{counted(len(found), 'relay')}, {usable} usable")
    else:
        invocation.advise("No node may relay yet. The first one: `fleetctl relays add NODE`")


@relays.command("remove", example="fleetctl relays remove press-3")
@click.argument("node", shell_complete=complete.relay)
@click.pass_obj
def remove(invocation: Invocation, node: str) -> None:
    """Take a node out of the pool: routes over it are given another path at once, and its leases end."""
    from fleet.v1 import admin_route_pb2

    with invocation.connect() as admin:
        relay = admin.call(admin.stub.RemoveRelay, admin_route_pb2.RemoveRelayRequest(node=node)).relay
    _emit(invocation, relay)
    invocation.advise("Routes that went over it get another path. Where they go now: `fleetctl routes list`")


def _emit(invocation: Invocation, relay: admin_route_pb2.RelayView) -> None:
    if invocation.wants_json:
        from fleet_server.cli.views import to_json

        invocation.emit_json(to_json(relay))
    else:
        invocation.emit_table(_COLUMNS, [_row(relay)])


def _row(relay: admin_route_pb2.RelayView) -> list[Cell]:
    from fleet_server.cli.views import moment_text

    full = relay.load >= relay.capacity
    return [
        Styled("●", "green") if relay.usable else Styled("○", dim=True),
        Styled(relay.name, bold=True),
        relay.site or "-",
        Styled(str(relay.load), "yellow") if full else str(relay.load),
        str(relay.capacity),
        f"{relay.weight}%",
        moment_text(relay.added_at_ms),
        relay.added_by,
        Styled(relay.why_not, "yellow") if relay.why_not else "-",
    ]
