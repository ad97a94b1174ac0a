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

_MAX_BYTES = 4096

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

        if passphrase_file is None and invocation.is_interactive:
            label = f"New passphrase for {key_file}" if new else f"Passphrase of {key_file}"
            text: str = click.prompt(label, hide_input=True, err=True, confirmation_prompt=new)
            return Secret(text)
        return _read(key_file, passphrase_file)

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


def _read(key_file: Path, passphrase_file: Path | None) -> Secret[str]:
    from fleet.identity import PrivateFileError
    from fleet.passphrase import PassphraseError, first_line, read_passphrase

    try:
        if passphrase_file is not None:
            return read_passphrase(passphrase_file)
        return first_line(sys.stdin.buffer.readline(_MAX_BYTES), "standard input")
    except PrivateFileError as error:
        raise BadProfile(str(error), hint="keep the passphrase in a file that only you may read") from error
    except PassphraseError as error:
        raise BadProfile(
            f"there is no passphrase for {key_file}: {error}",
            hint="type it when you are asked, or name a file that holds it with --passphrase-file",
        ) from error
