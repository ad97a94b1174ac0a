"""Key pairs, fingerprints and private files.

A node is known by the fingerprint over BOTH its public keys, so that neither can be swapped behind an operator's back.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fleet.envelope import Signer

FINGERPRINT_BYTES = 20
MAX_NODE_NAME_CHARS = 63
NODE_NAME = re.compile(rf"[a-z0-9-]{{1,{MAX_NODE_NAME_CHARS}}}")
_FINGERPRINT_DOMAIN = b"fleet.v1/fingerprint\x00"
_GROUP = 4


class PrivateFileError(Exception):
    """A private file or folder is missing, too open, or not ours. The message says what to run."""


def fingerprint(identity_key: bytes, sealing_key: bytes) -> bytes:
    """160 bits of SHA-256 over both raw public keys (docs/protocol.md, "Enrollment")."""
    digest = hashlib.sha256(_FINGERPRINT_DOMAIN + identity_key + sealing_key).digest()
    return digest[:FINGERPRINT_BYTES]


def show_fingerprint(value: bytes) -> str:
    """Base32 in groups of four that a person can read out: ``ABCD-EFGH-...`` (8 groups for 20 bytes)."""
    text = base64.b32encode(value).decode().rstrip("=")
    return "-".join(text[i : i + _GROUP] for i in range(0, len(text), _GROUP))


def parse_fingerprint(text: str) -> bytes:
    """Inverse of `show_fingerprint`; case, spaces and dashes do not matter.

    Raises:
        ValueError: it is not a fingerprint.
    """
    compact = "".join(text.split()).replace("-", "").upper()
    value = base64.b32decode(compact + "=" * (-len(compact) % 8))
    if len(value) != FINGERPRINT_BYTES:
        raise ValueError(f"a fingerprint has {FINGERPRINT_BYTES} bytes (8 groups of 4 characters)")
    return value


@dataclass(frozen=True, slots=True, repr=False)
class NodeKeys:
    """A node's identity (Ed25519) and sealing (X25519) keys."""

    identity: Signer
    sealing: X25519PrivateKey

    @classmethod
    def generate(cls) -> NodeKeys:
        """New random keys."""
        return cls(Signer.generate(), X25519PrivateKey.generate())

    @property
    def sealing_public(self) -> bytes:
        """Raw 32-byte X25519 public key."""
        return self.sealing.public_key().public_bytes_raw()

    @property
    def fingerprint(self) -> bytes:
        """20 bytes over both public keys."""
        return fingerprint(self.identity.public_key, self.sealing_public)

    def __repr__(self) -> str:
        return f"NodeKeys({show_fingerprint(self.fingerprint)})"


def load_node_keys(folder: Path) -> NodeKeys:
    """Read both keys from their 0600 files.

    Raises:
        PrivateFileError: missing, damaged, or readable by others.
    """
    identity = _read_key(folder / "identity.key")
    sealing = _read_key(folder / "sealing.key")
    return NodeKeys(
        Signer.from_private_bytes(identity),
        X25519PrivateKey.from_private_bytes(sealing),
    )


def store_node_keys(folder: Path, keys: NodeKeys) -> None:
    """Write both keys, 0600, durable before it returns."""
    write_private(folder / "identity.key", keys.identity.private_bytes())
    write_private(folder / "sealing.key", keys.sealing.private_bytes_raw())


def has_node_keys(folder: Path) -> bool:
    """Whether both key files are there."""
    return (folder / "identity.key").exists() and (folder / "sealing.key").exists()


def private_folder(path: Path) -> Path:
    """Make `path` as 0700, or check that it is ours and closed to others.

    Raises:
        PrivateFileError: with the command that repairs it.
    """
    try:
        is_new = not path.exists()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if is_new:
            sync_folder(path.parent)  # or a power cut would take the folder with all that is durable in it
        found = path.stat()
    except OSError as error:
        raise PrivateFileError(f"cannot use {path} as a folder: {error.strerror}") from error
    _check_open_mode(path, found, 0o700)
    return path


def read_private(path: Path) -> bytes:
    """Read a file that only its owner may read.

    Raises:
        PrivateFileError: missing, too open, a symbolic link, or no plain file.
    """
    descriptor = _open_private(path)
    try:
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    except OSError as error:
        raise PrivateFileError(f"cannot read {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)


def check_private(path: Path) -> None:
    """Whether `read_private` would read it, without reading it.

    Raises:
        PrivateFileError: as there.
    """
    os.close(_open_private(path))


def write_private(path: Path, content: bytes) -> None:
    """Replace `path` atomically with `content`, 0600, fsync on file and folder.

    A crash at any moment leaves the old file or the new one, never part of one. A symbolic link at `path` is replaced,
    not followed.

    Raises:
        OSError: it cannot be written (disk full, read-only folder); the old file stands.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.new")
    with contextlib.suppress(FileNotFoundError):
        scratch.unlink()
    descriptor = os.open(
        scratch,
        os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
        0o600,
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            scratch.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """fsync a folder so that a rename in it survives power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_key(path: Path) -> bytes:
    raw = read_private(path)
    if len(raw) != 32:
        raise PrivateFileError(f"{path} holds {len(raw)} bytes instead of 32: restore it from a backup")
    return raw


def _open_private(path: Path) -> int:
    try:
        # O_NONBLOCK: opening a FIFO that somebody put in its place must not hang the start.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise PrivateFileError(f"cannot read {path}: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise PrivateFileError(f"{path} is no plain file: move it away and restore the file from a backup")
        _check_open_mode(path, found, 0o600)
    except PrivateFileError:
        os.close(descriptor)
        raise
    return descriptor


def _check_open_mode(path: Path, found: os.stat_result, wanted: int) -> None:
    if found.st_uid != os.geteuid():
        raise PrivateFileError(
            f"{path} belongs to another user: run as its owner, or chown it to the user that runs this"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise PrivateFileError(f"{path} is open to other users: run `chmod {wanted:o} {path}`")
