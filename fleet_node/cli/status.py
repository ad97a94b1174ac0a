"""`fleet-node status`: what this node is, and what its daemon does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from fleet_node.cli.grammar import Failure, Verb, folded, json_option, node_options, settings_from


@click.command(cls=Verb, example="fleet-node status\nfleet-node status --json | jq .daemon.link.state")
@json_option
@node_options
def status(as_json: bool, config: Path | None, state_dir: Path | None) -> None:
    """Show what this node is, from its state folder, and what its daemon does, asked over a socket in that folder."""
    settings = settings_from(config, state_dir).settings
    from fleet.clock import SystemClock
    from fleet_node.cli.failures import told
    from fleet_node.status.local import status as local_status
    from fleet_node.status.view import fields, what_to_do

    with told(settings.state_dir):
        said = dict(local_status(settings.state_dir))
    try:
        if said["daemon"] is not None:
            said["what_to_do"] = what_to_do(said["daemon"]["link"]["last_refusal"])
        pairs = list(fields(said, SystemClock().now_ms()))
    except (KeyError, TypeError):
        hint = "restart it: an older fleet-node still runs"
        raise Failure("the daemon answers as another version does", hint=hint) from None
    if as_json:
        click.echo(json.dumps(said, indent=2))
        return
    width = max(len(label) for label, _ in pairs) + 2
    for label, value in pairs:
        click.echo(f"{label:<{width}}{folded(value, width, sys.stdout)}")
