"""The node's state folder: 0700, what stands in it, one process at a time."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from fleet.identity import PrivateFileError, private_folder

PRIVATE_FILES: Mapping[str, str] = {
    "identity.key": "the private key that the node signs with, made by `enroll`",
    "sealing.key": "the private key that secrets for the node are sealed to, made by `enroll`",
    "enrollment.json": "an enrollment that waits for an operator's decision",
    "membership.json": "cluster, node id, api_key, pinned authority and owner key: what the bootstrap gave",
    "rotation.json": "a new api_key or new keys, until the gateway was met with them; then they replace the others",
    "ratchet.bin": "what the last welcome handed on: shows that no second machine is this node",
    "bundle.bin": "the signed trust bundle in force, and the links to it from the pinned authority",
    "client.pem": "certificate and key for the mTLS listener, where one is configured",
    "probe.pem": "certificate and key of the probe listener, which peers pin; a node without the file makes new ones",
    "routes.bin": "the signed config snapshot in force, with routes and peers, and the newest version ever taken",
    "owner.pin": "the owner that `fleet-node owner pin` pinned; it goes before the one of the join token",
    "people.json": "owners, roles and policy under the pin, what earlier pins still protect, the latest time of issue",
    "journal.db": "commands, used intents and reports, durable before anything is run or told (docs/protocol.md)",
    "spool.db": "telemetry that the server has not acknowledged",
    "lock": "the process that uses the folder",
}
"""Every file that may be there, and what it holds. All are 0600. Beside them there are `control.sock`, SQLite's files
beside a database, and while a backup takes it a copy of the journal."""


class FolderLockedError(Exception):
    """Another process holds the state folder; two would run commands twice."""


class StateFolder:
    """Paths of one node's state, and the lock that keeps a second process out.

    Args:
        path: the folder; made 0700 when it is missing.

    Raises:
        PrivateFileError: it is open to others, belongs to somebody else, or cannot be made.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.path = private_folder(path)
        except OSError as error:
            raise PrivateFileError(f"cannot use {path} as state folder: {error.strerror}") from error
        self._lock: int | None = None

    @property
    def enrollment(self) -> Path:
        """An enrollment under way."""
        return self.path / "enrollment.json"

    @property
    def membership(self) -> Path:
        """The membership."""
        return self.path / "membership.json"

    @property
    def rotation(self) -> Path:
        """Credentials that are to replace those in force."""
        return self.path / "rotation.json"

    @property
    def bundle(self) -> Path:
        """The trust bundle."""
        return self.path / "bundle.bin"

    @property
    def ratchet(self) -> Path:
        """The ratchet's newest value."""
        return self.path / "ratchet.bin"

    @property
    def client_certificate(self) -> Path:
        """Certificate and key for the mTLS listener."""
        return self.path / "client.pem"

    @property
    def probe_leaf(self) -> Path:
        """Certificate and key of the probe listener."""
        return self.path / "probe.pem"

    @property
    def routes(self) -> Path:
        """The config snapshot in force."""
        return self.path / "routes.bin"

    @property
    def owner_pin(self) -> Path:
        """The owner that a person pinned at this node."""
        return self.path / "owner.pin"

    @property
    def people(self) -> Path:
        """What people signed."""
        return self.path / "people.json"

    @property
    def journal(self) -> Path:
        """The command journal."""
        return self.path / "journal.db"

    def new_journal_copy(self) -> Path:
        """A name for a copy of the journal that goes into a backup. Its file does not outlast whoever makes it."""
        return self.path / f".journal-{secrets.token_hex(8)}.copy"

    @property
    def spool(self) -> Path:
        """The telemetry spool."""
        return self.path / "spool.db"

    @property
    def control_socket(self) -> Path:
        """Where the running daemon answers `fleet-node status`."""
        return self.path / "control.sock"

    @property
    def is_locked(self) -> bool:
        """Whether this object holds the folder."""
        return self._lock is not None

    def lock(self) -> None:
        """Take the folder for this process until it ends, and clear away what a killed one was in the middle of.

        Raises:
            FolderLockedError: another process has it.
        """
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            raise FolderLockedError(
                f"{self.path} is in use by process {holder or '?'}: stop it, or give this node another state folder"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        self._lock = descriptor
        for left in self.path.glob(".journal-*.copy"):
            left.unlink(missing_ok=True)

    def unlock(self) -> None:
        """Give the folder back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
