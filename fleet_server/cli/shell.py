"""`fleetctl completion` and `fleetctl version`: fleetctl itself."""

from __future__ import annotations

import click

from fleet_server.cli.grammar import Verb
from fleet_server.cli.invocation import Invocation

SHELLS = ("bash", "zsh", "fish")
_COMPLETE_VARIABLE = "_FLEETCTL_COMPLETE"


@click.command(
    cls=Verb,
    example="fleetctl completion bash > ~/.local/share/bash-completion/completions/fleetctl\n"
    "fleetctl completion zsh > ~/.zfunc/_fleetctl\n"
    "fleetctl completion fish > ~/.config/fish/completions/fleetctl.fish",
)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that makes a shell complete fleetctl."""
    from click.shell_completion import get_completion_class

    writer = get_completion_class(shell)
    if writer is None:
        raise click.UsageError(f"click does not know {shell}")
    click.echo(writer(context.find_root().command, {}, "fleetctl", _COMPLETE_VARIABLE).source())


@click.command(cls=Verb, example="fleetctl version --server")
@click.option("--server", "ask_server", is_flag=True, help="Ask the server for its version too.")
@click.pass_obj
def version(invocation: Invocation, ask_server: bool) -> None:
    """Show the version of fleetctl, and of the server when asked."""
    from importlib.metadata import version as installed_version

    shown = {"fleetctl": installed_version("fleet-gateway")}
    if ask_server:
        from fleet.v1 import admin_pb2

        with invocation.connect() as admin:
            shown["server"] = admin.call(admin.stub.WhoAmI, admin_pb2.WhoAmIRequest()).server_version
    if invocation.wants_json:
        invocation.emit_json(shown)
    else:
        invocation.emit_fields(shown.items())
