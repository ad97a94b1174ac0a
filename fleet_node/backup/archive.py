"""The archive: named files in one sealed piece. Bytes in, bytes out.

Layout: ``fleet-node backup 1\\n``, salt (16 bytes), nonce (12), then AES-256-GCM over a tar file, with all that stands
before it as associated data. The key is scrypt (RFC 7914) over the passphrase with N = 2^17, r = 8, p = 1: a guess
costs 128 MiB and a third of a second.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from fleet.passphrase import passphrase_characters, passphrase_octets
from fleet.secrets import Secret

MIN_PASSPHRASE_CHARS = 12
MAX_ARCHIVE_BYTES = 256 * 1024 * 1024
"""More than a journal grows to with all that it may hold unacknowledged; `seal` keeps to it as `unseal` does."""
SCRYPT_COST = 2**17
_MAGIC = b"fleet-node backup 1\n"
_SALT_BYTES = 16
_NONCE_BYTES = 12
_HEADER_BYTES = len(_MAGIC) + _SALT_BYTES + _NONCE_BYTES


class ArchiveError(Exception):
    """An archive cannot be made or opened. The message says what to do."""


def seal(files: Mapping[str, bytes], passphrase: Secret[str], *, cost: int = SCRYPT_COST) -> bytes:
    """An archive of these files.

    Args:
        files: content by plain name.
        passphrase: at least `MIN_PASSPHRASE_CHARS` long.
        cost: scrypt's N; less only in tests.

    Raises:
        ArchiveError: the passphrase is too short, or the files are too large to be restored.
    """
    if passphrase_characters(passphrase) < MIN_PASSPHRASE_CHARS:
        raise ArchiveError(f"the passphrase is too short: take at least {MIN_PASSPHRASE_CHARS} characters")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o600
            tar.addfile(entry, io.BytesIO(content))
    header = _MAGIC + os.urandom(_SALT_BYTES + _NONCE_BYTES)
    archive = header + _cipher(header, passphrase, cost).encrypt(_nonce(header), packed.getvalue(), header)
    if len(archive) > MAX_ARCHIVE_BYTES:
        raise ArchiveError(
            f"the backup would take {len(archive)} bytes, while `restore` takes {MAX_ARCHIVE_BYTES}: let the node "
            "reach its gateway, so that it may forget what it has reported, and try again"
        )
    return archive


def unseal(archive: bytes, passphrase: Secret[str], *, cost: int = SCRYPT_COST) -> dict[str, bytes]:
    """The files of an archive by name.

    Raises:
        ArchiveError: it is no archive, was changed, is too large, or the passphrase is another.
    """
    if len(archive) > MAX_ARCHIVE_BYTES:
        raise ArchiveError("this is larger than any backup of a node: name the file that `fleet-node backup` wrote")
    if not archive.startswith(_MAGIC) or len(archive) < _HEADER_BYTES:
        raise ArchiveError(
            "this is no backup of a fleet node, or one of another version: name the file that `fleet-node backup` wrote"
        )
    header = archive[:_HEADER_BYTES]
    try:
        packed = _cipher(header, passphrase, cost).decrypt(_nonce(header), archive[_HEADER_BYTES:], header)
    except InvalidTag:
        raise ArchiveError(
            "the passphrase is not the one of this backup, or the file was cut off or changed: give the passphrase once"
            " more, then take another copy of the file"
        ) from None
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as tar:
        for entry in tar:
            content = tar.extractfile(entry)
            if content is not None:
                files[entry.name] = content.read()
    return files


def _cipher(header: bytes, passphrase: Secret[str], cost: int) -> AESGCM:
    salt = header[len(_MAGIC) : len(_MAGIC) + _SALT_BYTES]
    return AESGCM(Scrypt(salt=salt, length=32, n=cost, r=8, p=1).derive(passphrase_octets(passphrase)))


def _nonce(header: bytes) -> bytes:
    return header[-_NONCE_BYTES:]
