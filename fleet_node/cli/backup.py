"""`fleet-node backup` and `fleet-node restore`: a node in one file under a passphrase."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fleet_node.cli.grammar import ExitCode, Failure, Verb, again, node_options, settings_from

if TYPE_CHECKING:
    from fleet.secrets import Secret

_passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    help="File whose first line is the passphrase; it must be readable by its owner only [default: asks].",
)


@click.command(cls=Verb, example="fleet-node backup pump-house-3.backup")
@click.argument("archive", type=click.Path(path_type=Path))
@_passphrase_option
@node_options
def backup(archive: Path, passphrase_file: Path | None, config: Path | None, state_dir: Path | None) -> None:
    """Write keys, trust and journal of this node into one file, encrypted under a passphrase. The daemon may run.

    Whoever has the file and the passphrase can become this node.
    """
    settings = settings_from(config, state_dir).settings
    from fleet_node.cli.failures import told

    with told(settings.state_dir):
        from fleet.clock import SystemClock
        from fleet.identity import read_private
        from fleet_node.backup import service
        from fleet_node.cli.journal_reading import enrolled, journal_copy
        from fleet_node.enrollment.folder import StateFolder

        folder = StateFolder(settings.state_dir)
        membership = enrolled(folder, config, state_dir, "there is nothing to back up")
        passphrase = _passphrase(passphrase_file, new=True)

        def read_journal() -> bytes:
            with journal_copy(folder, membership.node_id) as copy:
                return read_private(copy)

        try:
            made = service.back_up(
                folder,
                archive,
                passphrase,
                node_id=membership.node_id,
                read_journal=read_journal,
                clock=SystemClock(),
            )
        except (service.BackupError, service.ArchiveError) as error:
            raise Failure(str(error), code=ExitCode.USAGE) from error
    click.echo(f"{archive}: node {made.node_id}, {made.size_bytes} bytes. Keep it and its passphrase apart.")


@click.command(cls=Verb, example="fleet-node restore pump-house-3.backup --state-dir /var/lib/fleet-node")
@click.argument("archive", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@_passphrase_option
@node_options
def restore(archive: Path, passphrase_file: Path | None, config: Path | None, state_dir: Path | None) -> None:
    """Make the node of a backup on this machine, in an empty state folder. Run it as the user that the node runs as.

    The machine that was backed up must not run any more. If it ran on after the backup was made, the server sets the
    node aside when it connects, until an operator has said that this machine is the node (`fleetctl nodes adopt`).
    """
    settings = settings_from(config, state_dir).settings
    from fleet_node.cli.failures import told

    with told(settings.state_dir):
        from fleet.clock import SystemClock
        from fleet_node.backup import service
        from fleet_node.backup.rules import shown

        passphrase = _passphrase(passphrase_file, new=False)
        try:
            made = service.restore(archive, settings.state_dir, passphrase, clock=SystemClock())
        except (service.BackupError, service.ArchiveError) as error:
            raise Failure(str(error), code=ExitCode.USAGE) from error
        until = shown(made.intents_after_ms)
    click.echo(
        f"Restored node {made.node_id} into {settings.state_dir}. Intents that people signed before {until} count for"
        f" nothing here. If that is not ten minutes from now, set this machine's clock and restore again."
    )
    if os.geteuid() == 0:
        click.echo(f"It belongs to root. If the node runs as another user: `chown -R USER: {settings.state_dir}`.")
    click.echo(f"Next: {again('run', config, state_dir)}")


def _passphrase(path: Path | None, *, new: bool) -> Secret[str]:
    from fleet.passphrase import PassphraseError, read_passphrase
    from fleet.secrets import Secret

    if path is None:
        return Secret(str(click.prompt("Passphrase", hide_input=True, confirmation_prompt=new, err=True)))
    try:
        return read_passphrase(path)
    except PassphraseError as error:
        raise Failure(str(error), code=ExitCode.USAGE) from error
