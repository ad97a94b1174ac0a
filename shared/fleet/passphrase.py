"""Passphrases: how they stand in files, and which bytes keys are derived from. One place, so that each opens wherever
it is given."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from fleet.identity import read_private
from fleet.secrets import Secret


class PassphraseError(Exception):
    """There is no passphrase where one was looked for. The message says what to do."""


def read_passphrase(path: Path) -> Secret[str]:
    """The first line of a private file.

    Raises:
        PrivateFileError: it cannot be read, or others can read it.
        PassphraseError: its first line is empty, or no UTF-8.
    """
    return first_line(read_private(path), str(path))


def first_line(content: bytes, source: str) -> Secret[str]:
    """All before the first newline, without the carriage return that some editors put before it.

    Args:
        source: named in the message.

    Raises:
        PassphraseError: it is empty, or no UTF-8. Nothing is replaced or left out: what people did not choose
            might be known to others.
    """
    line = content.partition(b"\n")[0].removesuffix(b"\r")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PassphraseError(
            f"{source} does not begin with a line of UTF-8 text: save it as UTF-8; random bytes go in as text, such as "
            "`openssl rand -base64 24` writes"
        ) from error
    if not text:
        raise PassphraseError(f"{source} holds no passphrase: its first line is to be one")
    return Secret(text)


def passphrase_characters(passphrase: Secret[str]) -> int:
    """How long it is, in characters of its normal form."""
    return len(_normal(passphrase))


def passphrase_octets(passphrase: Secret[str]) -> bytes:
    """What keys are derived from: one spelling of each character, whatever the keyboard and system composed (Unicode
    NFC)."""
    return _normal(passphrase).encode("utf-8", "surrogatepass")


def _normal(passphrase: Secret[str]) -> str:
    return unicodedata.normalize("NFC", passphrase.reveal())
