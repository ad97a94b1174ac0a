"""`fleet-node run`: the daemon."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fleet.heap import starting
from fleet_node.cli.grammar import ExitCode, Failure, Verb, node_options, settings_from

if TYPE_CHECKING:
    from fleet.identity import NodeKeys
    from fleet_node.app import Parts
    from fleet_node.config import Loaded, Settings
    from fleet_node.enrollment.folder import StateFolder
    from fleet_node.enrollment.membership import Membership

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
END_WITHIN_S = 28.0
"""From the signal to the end of the process: after what a node gives itself, before container platforms kill (30 s)."""
_LEAVE_WITHIN_S = 12.0  # once the node has ended by itself; its drivers have ten seconds of it


@click.command(
    cls=Verb, example="fleet-node run\nfleet-node run --config /etc/fleet-node/config.toml --log-level debug"
)
@node_options
@click.option("--log-level", help="Least level of what is logged: debug, info, warning or error.")
@starting()
def run(config: Path | None, state_dir: Path | None, log_level: str | None) -> None:
    """Hold the stream to the gateway and run signed commands, until SIGTERM or SIGINT.

    The first signal ends in order: what runs is asked to stop, its results are journaled and sent, the stream says
    goodbye; within 28 s, whatever hangs. A second one ends the process at once; the journal is safe either way.
    """
    loaded = settings_from(config, state_dir, log_level=log_level)
    settings = loaded.settings
    from fleet_node.cli.failures import told

    with told(settings.state_dir):
        from fleet.logs import get_logger
        from fleet_node.enrollment.folder import StateFolder
        from fleet_node.observability.logging import configure

        folder = StateFolder(settings.state_dir)
        folder.lock()
        membership, keys = member_of(settings, folder)
        configure(settings.log_level, node_id=membership.node_id)
        get_logger(__name__).info(
            "node_starting",
            name=membership.name,
            state_dir=str(folder.path),
            config=str(loaded.path) if loaded.path else "none",
        )
        _serve(loaded, folder, membership, keys)


def member_of(settings: Settings, folder: StateFolder) -> tuple[Membership, NodeKeys]:
    """The node's membership and keys.

    Raises:
        Failure: it is not enrolled, or its keys are not the pinned ones.
        MembershipError, PrivateFileError: the files cannot be used.
    """
    from fleet.identity import load_node_keys
    from fleet_node.enrollment.membership import load_membership

    membership = load_membership(folder.membership)
    if membership is None:
        waiting = folder.enrollment.exists()
        raise Failure(
            f"this node is not enrolled{' yet: an operator has not decided' if waiting else ''} ({folder.path})",
            code=ExitCode.USAGE,
            hint="run `fleet-node enroll`" + ("" if waiting else " with a join token (`fleetctl join-token create`)"),
        )
    keys = load_node_keys(folder.path)
    if settings.fingerprint and keys.fingerprint != settings.fingerprint:
        raise Failure(
            "this node's keys are not the ones whose fingerprint its configuration pins",
            code=ExitCode.USAGE,
            hint="put this node's own state folder back, or correct the setting `fingerprint`",
        )
    if settings.authority_key and membership.authority_key != settings.authority_key:
        raise Failure(
            "this node is enrolled with another authority than the one that its configuration pins",
            code=ExitCode.USAGE,
            hint="correct the setting `authority_key`, or enroll with an empty state folder",
        )
    return membership, keys


def _serve(loaded: Loaded, folder: StateFolder, membership: Membership, keys: NodeKeys) -> None:
    from fleet.logs import get_logger
    from fleet.process_end import end_without_teardown
    from fleet_node.app import NodeFailedError, Parts
    from fleet_node.drivers.protected import protected_of, unmatched_remedy
    from fleet_node.drivers.registry import DriverRegistry

    settings = loaded.settings
    drivers = DriverRegistry.load(settings.drivers_enabled, settings.driver_tables, place_of=loaded.place_of)
    for glob in protected_of(drivers.actions, settings.protected, lambda name: False).unmatched:
        get_logger(__name__).warning("protects_nothing", glob=glob, what_to_do=unmatched_remedy(glob))
    parts = Parts(settings=settings, folder=folder, membership=membership, keys=keys, drivers=drivers)
    try:
        asyncio.run(_run_node(parts))  # not uvloop: 1.7 MiB more, and one stream is no work for a loop
        get_logger(__name__).info("node_stopped")
        end_without_teardown(ExitCode.DONE)
    except NodeFailedError as error:
        raise Failure(str(error)) from error


async def _run_node(parts: Parts) -> None:
    from fleet.heap import settle_heap
    from fleet.process_end import end_within, keep_grpc_up
    from fleet.service_manager import from_environment
    from fleet_node.app import Node

    keep_grpc_up()
    manager = from_environment()
    node = Node(parts, manager=manager)
    settle_heap()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        for each in _SIGNALS:
            loop.remove_signal_handler(each)
            # At once, whatever hangs: what matters is in the journal.
            loop.add_signal_handler(each, os._exit, 128 + each)
        end_within(END_WITHIN_S, ExitCode.FAILED)
        manager.extend(END_WITHIN_S)
        node.stop()

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        await node.run()
    finally:
        end_within(_LEAVE_WITHIN_S, ExitCode.FAILED)
        manager.extend(_LEAVE_WITHIN_S)
        await parts.drivers.close()
