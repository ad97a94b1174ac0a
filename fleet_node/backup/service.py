"""Use cases: put a node into one file, and make it again on another machine.

Mental model
    A backup is the node: its keys, api_key, trust and journal. Whoever restores one becomes the node, so two machines
    can, and then the ratchet tells (docs/protocol.md, "Ratchet"): unless nothing happened since the backup was made,
    the server sets the node aside until an operator has adopted it, and tells it its floor.
    The journal is copied as one moment saw it, by the process that owns it: the running daemon, or this one.
    The daemon goes on meanwhile and may replace its files, several at a time. So they are read before the journal is
    copied and once more after it, until both readings agree: then one moment saw all of them as they are in the
    archive, and it is one that the node comes back from, for it could have been killed there. The ratchet is then the
    one in force when the journal was copied: a newer one would vouch for a journal that knows less than the node did.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fleet.clock import Clock
from fleet.identity import PrivateFileError, read_private, write_private
from fleet.secrets import Secret
from fleet_node.backup import rules
from fleet_node.backup.archive import MAX_ARCHIVE_BYTES, SCRYPT_COST, ArchiveError, seal, unseal
from fleet_node.backup.placement import PlacementError, draft_of
from fleet_node.commands.opening import latest_used_intent_ms, note_restored
from fleet_node.enrollment.folder import StateFolder
from fleet_node.link.people_store import load_people

JOURNAL = "journal.db"
PEOPLE = "people.json"
MANIFEST = "backup.json"
NEEDED = ("identity.key", "sealing.key", "membership.json", "bundle.bin", JOURNAL)
OPTIONAL = ("ratchet.bin", "rotation.json", "owner.pin", PEOPLE, "routes.bin")
"""Not the probe listener's certificate: a node that was restored makes another, and its peers are told of that."""

_READINGS = 6
"""A rotation replaces files for some milliseconds; what changes as often as this is not a node at work."""

ReadJournal = Callable[[], bytes]
"""The journal as a moment within the call saw it."""


class BackupError(Exception):
    """A node cannot be backed up or restored. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Backup:
    """What an archive holds.

    Args:
        node_id: the node.
        made_at_ms: Unix milliseconds on the node.
        size_bytes: of the archive.
        intents_after_ms: once it was restored: intents issued up to then count for nothing, Unix milliseconds.
    """

    node_id: str
    made_at_ms: int
    size_bytes: int
    intents_after_ms: int = 0


def back_up(
    folder: StateFolder,
    to: Path,
    passphrase: Secret[str],
    *,
    node_id: str,
    read_journal: ReadJournal,
    clock: Clock,
    cost: int = SCRYPT_COST,
) -> Backup:
    """Write the node's archive, 0600, whole or not at all; nothing is overwritten.

    Raises:
        BackupError: there is something at the path, it cannot be written, or the node's files do not hold still.
        ArchiveError: the passphrase is too short.
        PrivateFileError: a file of the node cannot be read.
    """
    try:
        if not to.parent.is_dir():
            raise BackupError(f"{to.parent} is no folder: make it, or give the backup a path in one that is there")
        if to.exists() or to.is_symlink():
            raise BackupError(f"{to} is there already: give another name, a backup is never overwritten")
    except OSError as error:
        raise _not_writable(to, error) from error
    files = _as_one_moment_saw_them(folder, read_journal)
    made_at_ms = clock.now_ms()
    files[MANIFEST] = json.dumps({"node_id": node_id, "made_at_ms": made_at_ms}).encode()
    archive = seal(files, passphrase, cost=cost)
    try:
        write_private(to, archive)
    except OSError as error:
        raise _not_writable(to, error) from error
    return Backup(node_id, made_at_ms, len(archive))


def restore(
    archive_path: Path, state_dir: Path, passphrase: Secret[str], *, clock: Clock, cost: int = SCRYPT_COST
) -> Backup:
    """Make the state folder of the node in an archive. It is there whole, or not at all.

    Args:
        state_dir: must not exist, or be empty.

    Raises:
        BackupError: the archive cannot be read or does not hold a whole node, the folder is in use or another user's,
            or the machine's clock is behind the archive.
        ArchiveError: it does not open.
        MembershipError: what people signed cannot be read in it.
        JournalDamagedError, JournalUnavailableError: the journal in it cannot be used.
        PrivateFileError, OSError: the folder cannot be written.
    """
    archive = _read_archive(archive_path)
    files = unseal(archive, passphrase, cost=cost)
    missing = [name for name in (*NEEDED, MANIFEST) if name not in files]
    if missing:
        raise BackupError(f"the backup does not hold a whole node: {', '.join(missing)} is missing")
    try:
        manifest = json.loads(files[MANIFEST])
        backup = Backup(str(manifest["node_id"]), int(manifest["made_at_ms"]), len(archive))
    except (ValueError, KeyError, TypeError) as error:
        raise BackupError("the backup's own description cannot be read: it is of another version") from error
    try:
        with draft_of(state_dir) as draft:
            for name in (*NEEDED, *OPTIONAL):
                if name in files:
                    write_private(draft / name, files[name])
            backup = replace(backup, intents_after_ms=_intents_after_ms(draft, backup, clock.now_ms()))
            note_restored(
                draft / JOURNAL,
                backup.node_id,
                made_at_ms=backup.made_at_ms,
                intents_after_ms=backup.intents_after_ms,
                now_ms=clock.now_ms(),
            )
    except PlacementError as error:
        raise BackupError(str(error)) from error
    return backup


def _not_writable(to: Path, error: OSError) -> BackupError:
    return BackupError(
        f"the backup cannot be written to {to}: {error.strerror or error}; give a path in a folder that this user may "
        "write, on a disk that has room"
    )


def _read_archive(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_ARCHIVE_BYTES:
            raise BackupError(
                f"{path} is larger than any backup of a node: name the file that `fleet-node backup` wrote"
            )
        return path.read_bytes()
    except OSError as error:
        raise BackupError(f"{path} cannot be read: {error.strerror or error}; let this user read it") from error


def _intents_after_ms(folder: Path, backup: Backup, now_ms: int) -> int:
    used_ms = latest_used_intent_ms(folder / JOURNAL, backup.node_id)
    _, peoples_ms = load_people(folder / PEOPLE, cluster_id="", pin=b"")
    try:
        return rules.intents_after_ms(now_ms=now_ms, made_at_ms=backup.made_at_ms, signed_ms=max(used_ms, peoples_ms))
    except rules.ClockBehindError as error:
        raise BackupError(str(error)) from error


def _as_one_moment_saw_them(folder: StateFolder, read_journal: ReadJournal) -> dict[str, bytes]:
    files = _small_files(folder)
    for _ in range(_READINGS):
        journal = read_journal()
        before, files = files, _small_files(folder)
        if files == before:
            return {**files, JOURNAL: journal}
    raise BackupError("the node keeps replacing its files: wait until `fleet-node status` shows it settled, try again")


def _small_files(folder: StateFolder) -> dict[str, bytes]:
    files = {name: read_private(folder.path / name) for name in NEEDED if name != JOURNAL}
    for name in OPTIONAL:
        try:
            files[name] = read_private(folder.path / name)
        except PrivateFileError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
    return files


__all__ = ["ArchiveError", "Backup", "BackupError", "PrivateFileError", "back_up", "restore"]
