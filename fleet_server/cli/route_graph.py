"""`fleetctl routes graph`: a picture of nodes, paths and their health."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fleet_server.cli import complete
from fleet_server.cli.failures import BadProfile, Failed
from fleet_server.cli.grammar import Verb
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.route_views import counts, path_text, rtt_text, state_word, works
from fleet_server.cli.terminal import counted

if TYPE_CHECKING:
    from fleet.v1 import admin_pb2, admin_route_pb2
    from fleet_server.cli.connection import Admin
    from fleet_server.cli.route_picture import PictureNode, PicturePath

_ASKED_AT_ONCE = 500
_DEFAULT_FILE = "routes.svg"


@click.command("graph", cls=Verb, example="fleetctl routes graph --output-file routes.svg")
@click.argument("node", required=False, shell_complete=complete.node)
@click.option(
    "--output-file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path(_DEFAULT_FILE),
    show_default=True,
    help="SVG file to write; one that is there is replaced.",
)
@click.pass_obj
def graph(invocation: Invocation, node: str | None, output_file: Path) -> None:
    """Draw nodes by site, relays, and the path of each route in the colour of its state; any browser shows it.

    With NODE only routes that it is an end or the relay of. A pointer over a path tells its name.
    """
    from fleet.v1 import admin_route_pb2

    if output_file.suffix.lower() not in ("", ".svg"):
        raise click.BadParameter(
            f"{output_file.name} is no .svg: the picture is SVG, which browsers print and convert",
            param_hint="--output-file",
        )
    with invocation.connect() as admin:
        routes = admin.pages(
            admin.stub.ListRoutes,
            lambda page: admin_route_pb2.ListRoutesRequest(node=node or "", page=page),
            lambda answer: iter(answer.routes),
        )
        if not routes:
            raise Failed("there is no route to draw", hint="make one: `fleetctl routes create SOURCE DESTINATION`")
        relays = list(admin.call(admin.stub.ListRelays, admin_route_pb2.ListRelaysRequest()).relays)
        shown = _shown(routes, [] if node else relays)
        found = {node.node_id: node for node in _nodes(admin, shown)}
    from fleet_server.cli.route_picture import draw

    pool = {relay.node_id for relay in relays}
    told = [_node(node_id, name, found.get(node_id), relay=node_id in pool) for node_id, name in shown.items()]
    title = f"{counted(len(routes), 'route')}, {_moment(invocation.now_ms())}"
    _write(output_file, draw(told, [_path(route) for route in routes], title))
    if invocation.wants_json:
        invocation.emit_json({"file": str(output_file), "routes": len(routes), "nodes": len(told)})
    else:
        invocation.emit_text(f"{output_file}: {counted(len(routes), 'route')} between {counted(len(told), 'node')}")


def _shown(routes: Iterable[admin_route_pb2.RouteView], relays: Iterable[admin_route_pb2.RelayView]) -> dict[str, str]:
    """Names of the nodes to draw, by id."""
    named = {relay.node_id: relay.name for relay in relays}
    for route in routes:
        named[route.source_node_id] = route.source_name
        named[route.destination_node_id] = route.destination_name
        if route.relay_node_id:
            named[route.relay_node_id] = route.relay_name
    return named


def _nodes(admin: Admin, shown: Iterable[str]) -> Iterator[admin_pb2.NodeView]:
    from fleet.v1 import admin_pb2

    ids = sorted(shown)
    for start in range(0, len(ids), _ASKED_AT_ONCE):
        selector = admin_pb2.Selector(patterns=ids[start : start + _ASKED_AT_ONCE])
        request = admin_pb2.ListNodesRequest(selector=selector, page=admin_pb2.Page(size=_ASKED_AT_ONCE))
        yield from admin.call(admin.stub.ListNodes, request).nodes


def _node(node_id: str, name: str, node: admin_pb2.NodeView | None, *, relay: bool) -> PictureNode:
    from fleet_server.cli.route_picture import PictureNode

    if node is None:  # it is gone, and its routes will be
        return PictureNode(node_id, name or node_id, "", online=False, relay=relay)
    return PictureNode(node_id, node.name, node.site, online=node.online, relay=relay)


def _path(route: admin_route_pb2.RouteView) -> PicturePath:
    from fleet_server.cli.route_picture import DISABLED, PicturePath

    hops = tuple(filter(None, (route.source_node_id, route.relay_node_id, route.destination_node_id)))
    state = state_word(route)
    rtt = rtt_text(route.rtt_us) if works(route) else ""
    label = rtt or ("" if state == "UNKNOWN" else state.lower())
    title = f"{route.name}: {path_text(route)}, {state}" + (f", {rtt}" if rtt else "")
    return PicturePath(route.name, hops, state if counts(route) else DISABLED, label, title)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadProfile(
            f"{path} cannot be written: {error.strerror}", hint="name a file in a folder that you can write to"
        ) from error


def _moment(at_ms: int) -> str:
    from fleet_server.cli.views import moment_text

    return moment_text(at_ms)
