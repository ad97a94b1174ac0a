"""`fleetctl nodes rotate` and `checklist`: new credentials for nodes that stay what they are, and what is left to do
for nodes that were revoked."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from fleet_server.cli import complete
from fleet_server.cli.failures import Failed
from fleet_server.cli.grammar import Duration, Verb
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.tables import Cell, Column
from fleet_server.cli.terminal import Styled, counted

if TYPE_CHECKING:
    from fleet.v1 import admin_pb2

_KINDS = ("api", "identity", "sealing", "all")


class Overlap(Duration):
    """As `Duration`, and 0."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Whole seconds, 0 among them."""
        return 0 if value == "0" else super().convert(value, param, ctx)


@click.command(
    "rotate",
    cls=Verb,
    example="fleetctl nodes rotate rack=4\nfleetctl nodes rotate press-7 --keys all --overlap 0",
)
@click.argument("targets", nargs=-1, required=True, shell_complete=complete.node)
@click.option(
    "--keys",
    "kinds",
    type=click.Choice(_KINDS),
    multiple=True,
    default=("api",),
    show_default=True,
    help="What to replace; may be given more than once.",
)
@click.option(
    "--overlap",
    type=Overlap(),
    default="1h",
    show_default=True,
    help="How long the former api_key stays good, and never less than until the new one was used (0: until then).",
)
@click.pass_obj
def rotate(invocation: Invocation, targets: tuple[str, ...], kinds: tuple[str, ...], overlap: int) -> None:
    """Replace credentials of nodes: the api_key, and the keys that nodes make themselves.

    Name, history, labels and queue of a node stay. A node that is offline does it when it comes; `nodes show` tells
    what is not done yet. New keys mean a new fingerprint: intents that name the old one become invalid.
    """
    from fleet.v1 import admin_pb2
    from fleet_server.cli.nodes import COLUMNS, node_row
    from fleet_server.cli.views import to_json

    every = "all" in kinds
    request = admin_pb2.RotateNodesRequest(
        selector=admin_pb2.Selector(patterns=targets),
        api_key=every or "api" in kinds,
        identity=every or "identity" in kinds,
        sealing=every or "sealing" in kinds,
        overlap_s=overlap,
    )
    with invocation.connect() as admin:
        answer = admin.call(admin.stub.RotateNodes, request)
    if invocation.wants_json:
        invocation.emit_json(to_json(answer))
    else:
        now_ms = invocation.now_ms()
        invocation.emit_table(COLUMNS, [node_row(node, now_ms) for node in answer.nodes])
    invocation.advise(
        f"Ordered for {counted(len(answer.nodes), 'node')}. What is not done yet: `fleetctl nodes show NODE`"
    )
    if answer.refused:
        first = answer.refused[0]
        raise Failed(
            f"{counted(len(answer.refused), 'node')} refused; {first.node_name}: {first.detail}",
            hint="the others have their order: name those that are left once this is settled",
        )


@click.command(
    "checklist",
    cls=Verb,
    example="fleetctl nodes checklist press-7\n"
    "fleetctl nodes checklist press-7 --done host-secrets --note 'PLC password changed'",
)
@click.argument("node", shell_complete=complete.node)
@click.option("--done", "item", metavar="ITEM", help="Item that is done; needs --note.")
@click.option("--note", help="What was done, or why nothing had to be: for the list and the audit.")
@click.pass_obj
def checklist(invocation: Invocation, node: str, item: str | None, note: str | None) -> None:
    """Show what is left to do for a revoked node, or tick it off.

    The revocation itself ended the node's api_keys and sessions. What the machine could read is for a person to
    judge: `nodes list` and `nodes show` remind of it until every item is ticked.
    """
    from fleet.v1 import admin_pb2

    if (item is None) != (note is None):
        raise click.UsageError("--done ITEM and --note TEXT go together")
    answer: admin_pb2.GetChecklistResponse | admin_pb2.TickChecklistResponse
    with invocation.connect() as admin:
        if item is None:
            answer = admin.call(admin.stub.GetChecklist, admin_pb2.GetChecklistRequest(node=node))
        else:
            request = admin_pb2.TickChecklistRequest(node=node, item=item, note=note or "")
            answer = admin.call(admin.stub.TickChecklist, request)
    if invocation.wants_json:
        from fleet_server.cli.views import to_json

        invocation.emit_json(to_json(answer))
    elif answer.items:
        columns = [Column(""), Column("ITEM"), Column("DONE"), Column("BY", spare=1), Column("WHAT", flexible=True)]
        invocation.emit_table(columns, [_item_row(each) for each in answer.items])
    left = [each.item for each in answer.items if not each.done_at_ms]
    if left:
        word = shlex.quote(answer.node.name)
        invocation.advise(
            f"{counted(len(left), 'item')} open. When one is done: `fleetctl nodes checklist {word} --done {left[0]}"
            " --note TEXT`"
        )
    else:
        invocation.advise("Nothing is left to do." if answer.items else f"{node} was not revoked: it has no checklist.")


def _item_row(item: admin_pb2.ChecklistItem) -> list[Cell]:
    from fleet_server.cli.views import moment_text

    mark = Styled("✓", "green") if item.done_at_ms else Styled("○", "yellow")
    done = moment_text(item.done_at_ms) if item.done_at_ms else "-"
    return [mark, Styled(item.item, bold=True), done, item.done_by or "-", item.note or item.detail]
