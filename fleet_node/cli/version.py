"""`fleet-node version`."""

from __future__ import annotations

import click

from fleet_node.cli.grammar import Verb


@click.command(cls=Verb, example="fleet-node version")
def version() -> None:
    """Print the version of the software and of the protocol."""
    from fleet.version import software_version

    click.echo(f"fleet-node {software_version()} (protocol 1)")
