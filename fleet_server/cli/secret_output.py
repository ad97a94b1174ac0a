"""How a secret that is shown once leaves fleetctl: to stdout, or to a new file that nobody else can read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from fleet_server.cli.failures import BadProfile, Failed
from fleet_server.cli.invocation import Invocation

if TYPE_CHECKING:
    from google.protobuf.message import Message


secret_file_option = click.option(
    "--output-file",
    type=click.Path(),
    metavar="FILE",
    help="Write the token to a new 0600 file instead of showing it.",
)


def check_new_file(path: str | None) -> None:
    """See that a secret can go to `path`, before there is one: afterwards it would be in the wrong place.

    Raises:
        BadProfile: something is there, or nothing can be made there.
    """
    if path is None:
        return
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.lexists(path):
        raise BadProfile(f"{path} exists already", hint="name a file that does not: a secret never replaces anything")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadProfile(f"{folder} is no folder that you can write to", hint="name a file in one that you can")


def emit_secret(
    invocation: Invocation, message: Message, *, secret_field: str, secret: str, output_file: str | None
) -> None:
    """Hand over a secret.

    Args:
        invocation: how to show things.
        message: the whole answer; its JSON carries the secret in `secret_field` unless it went to a file.
        secret_field: name in the JSON.
        secret: the text.
        output_file: new file to write instead of stdout.

    Raises:
        Failed: the file came to be meanwhile or cannot be written; the secret is shown then, since it cannot be had
            again.
    """
    from fleet_server.cli.views import to_json

    failure: Failed | None = None
    if output_file:
        try:
            _write_new(output_file, secret)
        except OSError as error:
            failure = Failed(
                f"cannot write {output_file}: {error.strerror}", hint="the secret was shown on standard output instead"
            )
    shown = output_file is None or failure is not None
    if invocation.wants_json:
        invocation.emit_json({**to_json(message), secret_field: secret if shown else None})
    elif shown:
        invocation.emit_text(secret)
    if failure is not None:
        raise failure
    if output_file:
        invocation.say(f"Wrote it to {output_file} (0600).")


def _write_new(path: str, secret: str) -> None:
    # O_EXCL and O_NOFOLLOW: neither an older file with open permissions nor a link laid by another user receives the
    # secret.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secret + "\n")
