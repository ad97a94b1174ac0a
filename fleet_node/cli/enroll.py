"""`fleet-node enroll`: join a cluster."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fleet_node.cli.grammar import ExitCode, Failure, Verb, again, folded, node_options, settings_from

if TYPE_CHECKING:
    from fleet.errors import Refusal
    from fleet_node.config import Settings
    from fleet_node.enrollment.folder import StateFolder
    from fleet_node.enrollment.membership import Membership, PendingEnrollment
    from fleet_node.enrollment.service import Applicant, EnrollmentService

_MAX_TOKEN_BYTES = 64 * 1024
_NO_WAIT_TIMEOUT_S = 30.0


@click.command(
    cls=Verb,
    example="fleet-node enroll --token-file join-token.txt\n"
    "fleetctl join-token create | ssh pump-house-3 fleet-node enroll --token-file -",
)
@click.option("--token", help="The join token itself. Other users of this machine can read it while this runs.")
@click.option(
    "--token-file", help="File that holds the join token; - reads standard input, as does leaving both options out."
)
@click.option("--name", help="Name to ask for [default: this host's name].")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label to report; may be repeated.")
@click.option("--no-wait", is_flag=True, help="Ask, and end without waiting for the operator's decision.")
@node_options
def enroll(
    token: str | None,
    token_file: str | None,
    name: str | None,
    labels: Sequence[str],
    no_wait: bool,
    config: Path | None,
    state_dir: Path | None,
) -> None:
    """Join a cluster with a join token, and wait until an operator approves.

    Prints the fingerprint of this node's keys: whoever approves compares it with what the server shows. Run it again
    after an interruption, without a token: it goes on where it was.
    """
    settings = settings_from(config, state_dir, name=name, labels=_labels(labels)).settings
    from fleet_node.cli.failures import told

    with told(settings.state_dir):
        from fleet_node.enrollment.folder import StateFolder
        from fleet_node.enrollment.membership import load_membership, load_pending

        folder = StateFolder(settings.state_dir)
        membership = load_membership(folder.membership)
        if membership is not None:
            _say_member(membership, "This node is enrolled already", again("run", config, state_dir))
            return
        folder.lock()
        pending = load_pending(folder.enrollment)
        text = _token_text(token, token_file, needed=pending is None)
        with asyncio.Runner() as runner:
            membership = runner.run(_enroll(settings, folder, pending, text, wait=not no_wait))
        if membership is None:
            click.echo(f"Asked to join. To fetch the decision: {again('enroll', config, state_dir)}")
        else:
            _say_member(membership, "Approved. This node is enrolled", again("run", config, state_dir))


async def _enroll(
    settings: Settings, folder: StateFolder, pending: PendingEnrollment | None, token_text: str, *, wait: bool
) -> Membership | None:
    """Ask, and wait for the decision; None without waiting."""
    from fleet.clock import SystemClock
    from fleet.identity import show_fingerprint
    from fleet_node.commands.opening import ensure_journal
    from fleet_node.enrollment.service import EnrollmentService, Pins

    progress = _Progress()
    service = EnrollmentService(
        folder=folder,
        clock=SystemClock(),
        pins=Pins(authority_key=settings.authority_key, fingerprint=settings.fingerprint),
        poll_interval_s=settings.poll_interval_s,
        retrying=progress.retrying,
        joining=lambda node_id: ensure_journal(folder.journal, node_id),
    )
    timeout_s = settings.poll_timeout_s or None
    try:
        async with asyncio.timeout(timeout_s if wait else _NO_WAIT_TIMEOUT_S):
            if token_text:
                pending = await service.apply(token_text, _applicant(settings))
                progress.asked = True
            if pending is None:
                raise AssertionError("a token is asked for when nothing is pending")
            _say_fingerprint(show_fingerprint(service.keys().fingerprint), pending.owner_pin)
            return await _wait_decided(service, pending, progress) if wait else None
    except TimeoutError:
        raise progress.out_of_time() from None


async def _wait_decided(service: EnrollmentService, pending: PendingEnrollment, progress: _Progress) -> Membership:
    def undecided() -> None:
        waiting = "Waiting for an operator: `fleetctl enrollments approve`. Ctrl-C is safe: run this again."
        click.echo(folded(waiting, 0, sys.stderr), err=True)

    progress.asked = True
    return await service.wait_decided(pending, undecided=undecided)


class _Progress:
    """What the person who waits is told, on standard error."""

    def __init__(self) -> None:
        self.asked = False
        self._last: Refusal | None = None

    def retrying(self, refusal: Refusal, delay_s: float) -> None:
        """A try failed."""
        self._last = refusal
        said = f"{refusal.detail}; trying again in {max(delay_s, 0.1):.1f} s"
        click.echo(folded(said, 0, sys.stderr), err=True)

    def out_of_time(self) -> Failure:
        """Why there is no decision in time."""
        from fleet.errors import Reason, Refusal
        from fleet_node.cli.failures import refusal_code

        if not self.asked:
            unanswered = "no gateway answered in time: is it up, and do firewalls let this machine out to its port?"
            last = self._last or Refusal(Reason.UNAVAILABLE, unanswered)
            return Failure(f"gave up: {last.detail}", code=refusal_code(last))
        return Failure("no decision in time", hint="run `fleet-node enroll` again: it goes on waiting")


def _applicant(settings: Settings) -> Applicant:
    from fleet.version import software_version
    from fleet_node.config import host_name
    from fleet_node.enrollment.service import Applicant

    name = settings.name or host_name()
    if not name:
        raise Failure("this host has no usable name", code=ExitCode.USAGE, hint="give --name")
    return Applicant(name=name, labels=settings.labels, version=software_version())


def _labels(pairs: Sequence[str]) -> dict[str, str] | None:
    labels: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or key in labels:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE, or its key is given twice", param_hint="--label")
        labels[key] = value
    return labels or None


def _token_text(token: str | None, token_file: str | None, *, needed: bool) -> str:
    if token is not None and token_file is not None:
        raise click.UsageError("give --token or --token-file, not both")
    if token is not None:
        return token
    if token_file is None and (not needed or sys.stdin.isatty()):
        if needed:
            raise click.UsageError("give a join token: --token-file FILE, or standard input")
        return ""
    text = _read_token(token_file or "-").strip()
    if not text:
        raise click.UsageError(
            f"there is no join token in {'standard input' if token_file in (None, '-') else token_file}"
        )
    return text


def _read_token(source: str) -> str:
    try:
        descriptor = sys.stdin.fileno() if source == "-" else os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb", closefd=source != "-") as file:
            return file.read(_MAX_TOKEN_BYTES).decode("ascii")
    except OSError as error:
        raise click.UsageError(f"cannot read {source}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{source} holds no join token: it is not text") from error


def _say_fingerprint(fingerprint: str, owner_pin: bytes) -> None:
    click.echo("\nFingerprint of this node's keys; approve only what shows the same:\n")
    click.echo(f"    {click.style(fingerprint, bold=True)}\n")
    pin = owner_pin.hex() if owner_pin else "none: protected actions are refused until `fleet-node owner pin`"
    click.echo(f"Owner key pinned: {pin}\n")


def _say_member(membership: Membership, what: str, next_step: str) -> None:
    told = f"{what} as {membership.name} (node {membership.node_id}, cluster {membership.cluster_id})."
    click.echo(folded(told, 0, sys.stdout))
    click.echo(f"Next: {next_step}")
