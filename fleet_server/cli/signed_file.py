"""What was signed offline, as a file: one line of text, a word that says what it is, a colon, and base64."""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fleet_server.cli.failures import BadProfile

if TYPE_CHECKING:
    from fleet.v1 import trust_pb2

MANIFEST = "fleet-activation"
GRANT = "fleet-grant"
MAX_FILE_BYTES = 32 * 1024


def text_of(kind: str, signed: trust_pb2.Signed) -> str:
    """The line."""
    return f"{kind}:{base64.b64encode(signed.SerializeToString()).decode()}"


def write_signed(path: Path, kind: str, signed: trust_pb2.Signed) -> None:
    """Write the line to a new file. It is nothing secret.

    Raises:
        BadProfile: something is there, or it cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text_of(kind, signed) + "\n")
    except OSError as error:
        raise BadProfile(f"cannot write {path}: {error.strerror}", hint="name a file that does not exist") from error


def read_signed(path: Path, kind: str) -> trust_pb2.Signed:
    """Read such a file. Whether the signature counts is the server's to say.

    Raises:
        BadProfile: it cannot be read, or is no such file.
    """
    from google.protobuf.message import DecodeError

    from fleet.v1 import trust_pb2

    hint = f"name the file that `fleetctl root {'sign-activation' if kind == MANIFEST else 'sign-grant'}` wrote"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadProfile(f"cannot read {path}: {error.strerror}", hint=hint) from error
    word, _, body = content.strip().partition(b":")
    try:
        if len(content) > MAX_FILE_BYTES or word != kind.encode():
            raise ValueError
        return trust_pb2.Signed.FromString(base64.b64decode(body, validate=True))
    except (ValueError, binascii.Error, DecodeError) as error:
        raise BadProfile(f"{path} is no {kind} file", hint=hint) from error
