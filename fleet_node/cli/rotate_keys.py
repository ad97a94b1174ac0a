"""`fleet-node rotate-keys`: new keys of the node's own, taken by the server over the live stream."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import click

from fleet_node.cli.grammar import Failure, Verb, again, json_option, node_options, settings_from

_LOOK_AGAIN_S = 0.2
_WAIT_S = 60.0
_QUESTIONS = {"identity": "rotate-identity", "sealing": "rotate-sealing", "all": "rotate-keys"}


@click.command(cls=Verb, example="fleet-node rotate-keys\nfleet-node rotate-keys --keys sealing")
@click.option(
    "--keys", "kind", type=click.Choice(tuple(_QUESTIONS)), default="all", show_default=True, help="Which to replace."
)
@json_option
@node_options
def rotate_keys(kind: str, as_json: bool, config: Path | None, state_dir: Path | None) -> None:
    """Make new keys, have the server take them, and go over to them; the running daemon does it.

    Node id, name, history and queue stay. The old keys are kept until a stream was opened with the new ones. The
    fingerprint changes: tell it to whoever compares it, and intents that name the old one become invalid.
    """
    settings = settings_from(config, state_dir).settings
    from fleet.clock import SystemClock
    from fleet_node.cli.failures import told
    from fleet_node.enrollment.folder import StateFolder
    from fleet_node.status.client import DaemonAwayError, DaemonSilentError, ask

    with told(settings.state_dir):
        socket = StateFolder(settings.state_dir).control_socket
        clock = SystemClock()
        try:
            before = ask(socket, "status")["credentials"]["fingerprint"]
            begun = ask(socket, _QUESTIONS[kind])
            if not begun["begun"]:
                raise Failure(f"nothing was rotated: {begun['why']}", hint=f"{again('status', config, state_dir)}")
            deadline_s = clock.monotonic() + _WAIT_S
            while (said := _credentials(ask(socket, "status")))["rotating"] and clock.monotonic() < deadline_s:
                asyncio.run(clock.sleep(_LOOK_AGAIN_S))
        except DaemonAwayError as error:
            raise Failure(
                "no daemon runs: keys are replaced over its stream", hint=again("run", config, state_dir)
            ) from error
        except DaemonSilentError as error:
            raise Failure(str(error)) from error
    _show(before, said, as_json=as_json)


def _credentials(status: dict[str, Any]) -> dict[str, Any]:
    return dict(status["credentials"])


def _show(before: str, said: dict[str, Any], *, as_json: bool) -> None:
    if "keys" in said["rotating"]:
        raise Failure(
            f"not done within {_WAIT_S:.0f} s: the new keys are kept, and the node goes on by itself",
            hint="look again with `fleet-node status`",
        )
    if said["fingerprint"] == before:
        raise Failure("the server refused the new keys, and the old ones stand", hint="the node's log names the reason")
    if as_json:
        click.echo(json.dumps({"former_fingerprint": before, "fingerprint": said["fingerprint"]}, indent=2))
    else:
        click.echo(f"former fingerprint  {before}\nfingerprint         {said['fingerprint']}")
