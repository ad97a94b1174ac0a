"""A copy of this node's journal for a verb, whether or not the daemon runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from fleet_node.cli.grammar import ExitCode, Failure, again
from fleet_node.commands.opening import copy_journal
from fleet_node.enrollment.folder import FolderLockedError, StateFolder
from fleet_node.enrollment.membership import Membership, load_membership
from fleet_node.status.client import DaemonAwayError, DaemonSilentError, asking


def enrolled(folder: StateFolder, config: Path | None, state_dir: Path | None, nothing: str) -> Membership:
    """The node that the folder is.

    Args:
        config, state_dir: as the verb was given them.
        nothing: what a node that is not enrolled lacks.

    Raises:
        Failure: it is not enrolled.
        MembershipError: the file is damaged.
    """
    membership = load_membership(folder.membership)
    if membership is None:
        raise Failure(
            f"this node is not enrolled: {nothing}",
            code=ExitCode.USAGE,
            hint=f"`{again('enroll', config, state_dir)}` first",
        )
    return membership


@contextmanager
def journal_copy(folder: StateFolder, node_id: str) -> Iterator[Path]:
    """The running daemon makes the copy, or this process while it holds the folder; it goes with the context.

    Raises:
        Failure: the daemon does not answer.
        JournalDamagedError, JournalUnavailableError, OSError: the journal cannot be read, or the copy not be written.
    """
    try:
        with _shown_progress() as show, asking(folder.control_socket, "copy_journal", show) as answer:
            yield Path(answer["path"])
    except DaemonAwayError:
        with _own_copy(folder, node_id) as path:
            yield path
    except DaemonSilentError as error:
        raise Failure(str(error)) from error


@contextmanager
def _own_copy(folder: StateFolder, node_id: str) -> Iterator[Path]:
    copy = folder.new_journal_copy()
    try:
        folder.lock()
        with _shown_progress() as show:
            copy_journal(folder.journal, node_id, copy, show)
        yield copy
    except FolderLockedError as error:
        raise Failure(
            "the daemon of this state folder does not answer", hint="wait until it is up, or stop it"
        ) from error
    finally:
        copy.unlink(missing_ok=True)
        folder.unlock()


@contextmanager
def _shown_progress() -> Iterator[Callable[[int, int], None]]:
    """Shows a person how far the copy of the journal is."""
    shown = False

    def show(done: int, of: int) -> None:
        nonlocal shown
        if sys.stderr.isatty():
            shown = True
            click.echo(f"\rjournal: {done / 2**20:.0f} of {of / 2**20:.0f} MiB", nl=False, err=True)

    try:
        yield show
    finally:
        if shown:
            click.echo(err=True)
