"""Where the passphrase of a key file comes from: a prompt, a private file, or standard input; never the command line or
the environment, which other users of the machine and crash reports see."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fleet_server.cli.failures import BadProfile
from fleet_server.cli.invocation import Invocation

if TYPE_CHECKING:
    from fleet.envelope import Signer
    from fleet.secrets import Secret

_MAX_CHARACTERS = 1024

passphrase_file_option = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="0600 file that holds the key's passphrase; otherwise it is asked for, or the first line of standard input.",
)


def asks_passphrase(
    invocation: Invocation, key_file: Path, passphrase_file: Path | None, *, new: bool
) -> Callable[[], Secret[str]]:
    """What `fleet.key_file` takes to get the passphrase of `key_file`.

    Args:
        invocation: tells whether a person is there.
        key_file: named in the prompt.
        passphrase_file: holds it; a person, or standard input, is asked without one.
        new: whether it is chosen now, and so asked for twice.
    """

    def ask() -> Secret[str]:
        from fleet.secrets import Secret

        if passphrase_file is not None:
            text = _read_file(passphrase_file)
        elif invocation.is_interactive:
            label = f"New passphrase for {key_file}" if new else f"Passphrase of {key_file}"
            text = click.prompt(label, hide_input=True, err=True, confirmation_prompt=new)
        else:
            text = sys.stdin.readline(_MAX_CHARACTERS + 1).rstrip("\r\n")
        if not text:
            raise BadProfile(
                f"there is no passphrase for {key_file}",
                hint="type it when you are asked, or name a file that holds it with --passphrase-file",
            )
        return Secret(text)

    return ask


def open_key(invocation: Invocation, key_file: Path, passphrase_file: Path | None) -> Signer:
    """The key pair of a file, once the passphrase was given.

    Raises:
        BadProfile: the file or the passphrase cannot be used.
    """
    from fleet.key_file import KeyFileError, load_key_file

    try:
        return load_key_file(key_file, asks_passphrase(invocation, key_file, passphrase_file, new=False))
    except KeyFileError as error:
        raise BadProfile(str(error)) from error


def make_key(invocation: Invocation, key_file: Path, passphrase_file: Path | None) -> Signer:
    """A new key pair in a new file.

    Raises:
        BadProfile: something is there, it cannot be written, or the passphrase is too short.
    """
    from fleet.key_file import KeyFileError, create_key_file

    try:
        return create_key_file(key_file, asks_passphrase(invocation, key_file, passphrase_file, new=True))
    except KeyFileError as error:
        raise BadProfile(str(error)) from error


def _read_file(path: Path) -> str:
    from fleet.identity import PrivateFileError, read_private

    try:
        first, _, _ = read_private(path).decode().partition("\n")
    except PrivateFileError as error:
        raise BadProfile(str(error), hint="keep the passphrase in a file that only you may read") from error
    except UnicodeDecodeError as error:
        raise BadProfile(f"{path} is no text", hint="its first line is to be the passphrase") from error
    return first.rstrip("\r")
