"""`fleet-node owner`: whose word lets protected actions run on this node."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fleet_node.cli.grammar import ExitCode, Failure, Verb, folded, json_option, node_options, settings_from

if TYPE_CHECKING:
    from fleet.people import People
    from fleet_node.enrollment.folder import StateFolder
    from fleet_node.enrollment.membership import Membership


@click.command(
    cls=Verb,
    example="fleet-node owner show\n"
    "fleet-node owner pin 5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef",
)
@click.argument("act", metavar="show|pin", type=click.Choice(["show", "pin"]))
@click.argument("pin", metavar="[HEX]", required=False)
@click.option("--replace", is_flag=True, help="Pin another owner than the one that is pinned already.")
@json_option
@node_options
def owner(act: str, pin: str | None, replace: bool, as_json: bool, config: Path | None, state_dir: Path | None) -> None:
    """Show the pinned owner, what it has signed, and which actions need its people's intent; or pin one.

    The pin is the SHA-256 of the owner's public key, 64 hexadecimal digits. Get it from the owner, not from the server:
    it is what protected actions are safe by. The join token brings it when the operator who made the token has it in
    their profile. A running daemon takes a new pin at once. Pins stand in the node's audit, one that was set while no
    daemon ran once it starts. A pin can be replaced, and not be removed: a node that pins nobody runs no protected
    action.
    """
    settings = settings_from(config, state_dir).settings
    from fleet_node.cli.failures import told
    from fleet_node.cli.run import member_of
    from fleet_node.enrollment.folder import StateFolder
    from fleet_node.status.people import known_people

    with told(settings.state_dir):
        folder = StateFolder(settings.state_dir)
        membership, _ = member_of(settings, folder)
        if act == "pin":
            _pin(folder, membership, pin or "", replace=replace)
        elif pin is not None:
            raise click.UsageError("show takes no argument")
        _show(known_people(folder, membership), _protected(folder), as_json=as_json)


def _pin(folder: StateFolder, membership: Membership, text: str, *, replace: bool) -> None:
    from fleet.people import parse_pin
    from fleet_node.enrollment.owner_pin import pin_owner, pinned_owner
    from fleet_node.status.client import DaemonAwayError, DaemonSilentError, ask

    try:
        pin = parse_pin(text)
    except ValueError as error:
        raise Failure(str(error), code=ExitCode.USAGE, hint="ask the owner for it: `fleetctl owner show`") from error
    held = pinned_owner(folder.owner_pin, membership)
    if held and held != pin and not replace:
        raise Failure(
            f"another owner is pinned already: {held.hex()}",
            code=ExitCode.USAGE,
            hint="an owner's successor needs no new pin. If this node is to obey another owner, add --replace",
        )
    pin_owner(folder.owner_pin, pin)
    try:
        ask(folder.control_socket, "owner")
    except DaemonAwayError:
        pass
    except DaemonSilentError as error:
        hint = "restart the daemon: until then it goes by the old pin"
        raise Failure(f"the owner is pinned, but {error}", hint=hint) from error


def _protected(folder: StateFolder) -> dict[str, Any] | None:
    """What the daemon says is protected here; None when none runs, or one of another version."""
    from fleet_node.status.client import DaemonAwayError, DaemonSilentError, ask

    try:
        said: dict[str, Any] | None = ask(folder.control_socket, "status").get("protected")
    except (DaemonAwayError, DaemonSilentError):
        return None
    return said


def _show(people: People, protected: dict[str, Any] | None, *, as_json: bool) -> None:
    from fleet.clock import SystemClock
    from fleet_node.status.people import people_status, protected_sentence, sentence

    said = people_status(people)
    if as_json:
        click.echo(json.dumps({**said, "protected": protected}, indent=2))
        return
    click.echo(f"owner pin  {said['pin'] or 'none'}")
    click.echo(f"owner      {folded(sentence(said, SystemClock().now_ms()), 11, sys.stdout)}")
    shown = "the daemon does not run: `fleet-node doctor` tells" if protected is None else protected_sentence(protected)
    click.echo(f"protected  {folded(shown, 11, sys.stdout)}")
    for one in said["roles"]:
        click.echo(f"role       {folded(one['role'] + ': ' + one['name'], 11, sys.stdout)}")
