"""`fleetctl contexts`: the servers in the profile."""

from __future__ import annotations

import click

from fleet_server.cli import complete
from fleet_server.cli.grammar import Noun
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.tables import Column
from fleet_server.cli.terminal import Styled


@click.group(cls=Noun)
def contexts() -> None:
    """List the servers that you are logged in to, and switch between them."""


@contexts.command("list", example="fleetctl contexts list")
@click.pass_obj
def list_contexts(invocation: Invocation) -> None:
    """List the contexts of the profile; never a token."""
    profile = invocation.profile_file().load()
    known = sorted(profile.contexts.items())
    if invocation.wants_json:
        invocation.emit_json(
            [
                {
                    "name": name,
                    "current": name == profile.current,
                    "server": context.server,
                    "cluster_id": context.cluster_id,
                    "authority_key": context.authority_key.hex(),
                    "checkpoint": context.checkpoint.number if context.checkpoint else None,
                }
                for name, context in known
            ]
        )
        return
    invocation.emit_table(
        [Column(""), Column("NAME"), Column("SERVER"), Column("CLUSTER"), Column("CHECKPOINT", right=True, spare=1)],
        [
            (
                Styled("*", "green") if name == profile.current else "",
                name,
                context.server,
                context.cluster_id,
                str(context.checkpoint.number) if context.checkpoint else "-",
            )
            for name, context in known
        ],
    )


@contexts.command("use", example="fleetctl contexts use staging")
@click.argument("name", shell_complete=complete.context)
@click.pass_obj
def use(invocation: Invocation, name: str) -> None:
    """Make a context the current one."""
    from dataclasses import replace

    from fleet_server.cli.failures import BadProfile
    from fleet_server.cli.profile import Profile

    def switch(profile: Profile) -> Profile:
        if name not in profile.contexts:
            raise BadProfile(f"the profile has no context {name!r}", hint="see `fleetctl contexts list`")
        return replace(profile, current=name)

    invocation.profile_file().update(switch)
    invocation.say(f"Now working with {name}.")
