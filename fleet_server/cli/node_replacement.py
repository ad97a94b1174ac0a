"""`fleetctl nodes replace`: another machine takes the place of one that is gone."""

from __future__ import annotations

import click

from fleet_server.cli import complete
from fleet_server.cli.grammar import Verb
from fleet_server.cli.invocation import Invocation


@click.command(
    "replace",
    cls=Verb,
    example="fleetctl nodes replace press-7 --with press-7-new --reason 'stolen from hall 2'\n"
    "fleetctl nodes replace press-7 --with press-7-new --fingerprint 'K3PD-...-QX7M' --reason 'disk died' --yes",
)
@click.argument("node", shell_complete=complete.node)
@click.option(
    "--with",
    "enrollment",
    required=True,
    metavar="ENROLLMENT",
    shell_complete=complete.enrollment,
    help="The new machine: id of its enrollment, or its name while it waits.",
)
@click.option("--fingerprint", metavar="TEXT", help="Fingerprint that you read on the new machine; must match.")
@click.option("--reason", required=True, help="Reason for the audit, which the former machine shows if it comes back.")
@click.option("--yes", is_flag=True, help="Do not ask, and do not compare without --fingerprint.")
@click.pass_obj
def replace(
    invocation: Invocation, node: str, enrollment: str, fingerprint: str | None, reason: str, yes: bool
) -> None:
    """Let a new machine take the place of a node whose machine is dead, stolen or worn out.

    The new machine has run `fleet-node enroll` and waits to be approved. It becomes NODE: id, name, labels, site,
    history and queue stay. The former machine's api_keys and sessions end at once, its stream is closed with REVOKED,
    and a checklist begins. What was sent to it and has no result is INTERRUPTED from then on, and is never sent again.
    """
    from fleet.v1 import admin_pb2
    from fleet_server.cli.enrollments import compare, find_enrollment, say_authority
    from fleet_server.cli.nodes import emit_nodes, remind

    with invocation.connect() as admin:
        found = find_enrollment(admin, enrollment)
        say_authority(invocation, admin)
        compared = compare(invocation, found, fingerprint, yes)
        invocation.confirm(
            f"Shall {found.name} be {node} from now on, and the machine that is {node} now be out for good?",
            assumed=yes,
        )
        request = admin_pb2.ReplaceNodeRequest(
            node=node, enrollment_id=found.enrollment_id, fingerprint=compared, reason=reason
        )
        answer = admin.call(admin.stub.ReplaceNode, request)
    emit_nodes(invocation, [answer.node])
    remind(invocation, [answer.node])
