"""`fleet-node` and its verbs."""

from __future__ import annotations

import click

from fleet_node.cli.grammar import Lazy, Root

VERBS = {
    "enroll": Lazy("fleet_node.cli.enroll:enroll", "Join a cluster with a join token."),
    "run": Lazy("fleet_node.cli.run:run", "Hold the stream to the gateway and run signed commands."),
    "status": Lazy("fleet_node.cli.status:status", "Show what this node is and what its daemon does."),
    "rotate-keys": Lazy("fleet_node.cli.rotate_keys:rotate_keys", "Replace this node's own keys."),
    "doctor": Lazy("fleet_node.cli.doctor:doctor", "Find out why this node does not connect, and what to do."),
    "owner": Lazy("fleet_node.cli.owner:owner", "Show or pin the owner whose policy protected actions obey."),
    "audit": Lazy("fleet_node.cli.audit:audit", "Show and verify the audit that this node keeps itself."),
    "backup": Lazy("fleet_node.cli.backup:backup", "Put this node into one encrypted file."),
    "restore": Lazy("fleet_node.cli.backup:restore", "Make the node of a backup on this machine."),
    "version": Lazy("fleet_node.cli.version:version", "Print the version."),
}


@click.command(cls=Root, verbs=VERBS, context_settings={"help_option_names": ["-h", "--help"]})
def fleet_node() -> None:
    """The on-premises side of the fleet gateway: enrolls this machine, then holds one outbound stream over which an
    operator's signed commands arrive."""
