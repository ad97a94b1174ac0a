"""Checks of the state folder: modes, keys, membership, trust bundle, owner, room and speed of the disk, journal."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from fleet.identity import PrivateFileError, check_private, load_node_keys, private_folder, show_fingerprint
from fleet_node.commands.opening import JournalDamagedError, JournalUnavailableError, inspect_journal
from fleet_node.config import Settings
from fleet_node.doctor.finding import Finding, fail, ok, warn
from fleet_node.drivers.protected import Protected, unmatched_remedy
from fleet_node.enrollment.folder import PRIVATE_FILES, StateFolder
from fleet_node.enrollment.membership import BundleFile, Membership, MembershipError
from fleet_node.enrollment.rotation_file import load_rotation
from fleet_node.status.people import known_people, missing, people_status, sentence

_MIN_FREE_BYTES = 16 * 1024 * 1024
_FSYNC_TRIES = 5
_SLOW_FSYNC_S = 0.05
_BLOCK = b"\0" * 4096


def check_folder(path: Path) -> Finding:
    """Folder 0700 and files 0600, all of this user."""
    try:
        private_folder(path)
        for name in PRIVATE_FILES:
            if (path / name).exists():
                check_private(path / name)
    except PrivateFileError as error:
        return fail("state folder", str(error), "correct owner and mode as the message says, then look again")
    return ok("state folder", f"{path}, closed to other users")


def check_keys(path: Path, settings: Settings) -> Finding:
    """Both keys are there and are the pinned ones."""
    if not (path / "identity.key").exists() and not (path / "sealing.key").exists():
        return fail("keys", "this node has no keys yet", "run `fleet-node enroll`: it makes them")
    try:
        keys = load_node_keys(path)
    except PrivateFileError as error:
        return fail("keys", str(error), "restore both key files, or enroll again with an empty state folder")
    shown = show_fingerprint(keys.fingerprint)
    if settings.fingerprint and settings.fingerprint != keys.fingerprint:
        pinned = show_fingerprint(settings.fingerprint)
        return fail("keys", f"fingerprint {shown}, the configuration pins {pinned}", "put the right state folder back")
    return ok("keys", f"fingerprint {shown}")


def check_rotation(folder: StateFolder) -> Finding:
    """Credentials that are to replace those in force can be read: the daemon does not start without."""
    try:
        pending = load_rotation(folder.rotation)
    except MembershipError as error:
        return fail("rotation", str(error), "`fleet-node run` does not start before that is done")
    kinds = [name for name, held in (("api_key", pending.api_key), ("keys", pending.keys)) if held is not None]
    return ok("rotation", f"a new {' and new '.join(kinds)} on the way" if kinds else "no new credentials on the way")


def check_bundle(folder: StateFolder, membership: Membership, now_ms: int) -> Finding:
    """The bundle verifies under the pinned authority and has not run out."""
    file = BundleFile(folder.bundle, cluster_id=membership.cluster_id, authority_key=membership.authority_key)
    try:
        state = file.load()
    except MembershipError as error:
        return fail("trust bundle", str(error), "restore the state folder, or enroll again with a new join token")
    version = f"{state.generation}.{state.number}"
    if not state.fresh(now_ms):
        detail = f"{version} has expired, its grace too: commands are refused"
        return fail("trust bundle", detail, "let the node reach a gateway: it brings a newer one")
    if now_ms >= state.expires_at_ms:
        detail = f"{version} has expired and is in its grace"
        return warn("trust bundle", detail, "let the node reach a gateway: it brings a newer one")
    hours = (state.expires_at_ms - now_ms) // 3_600_000
    return ok("trust bundle", f"{version} verifies under the pinned authority, good for {hours} h")


def check_protected(protected: Protected) -> Iterator[Finding]:
    """Every glob of the setting `protected` protects something."""
    shown = ", ".join(protected.actions)
    yield ok("protected", f"{shown}: on people's intent only" if shown else "no action needs people's intent")
    for glob in protected.unmatched:
        detail = f"`{glob}` in the setting `protected` matches no action of this node: it protects nothing"
        yield warn("protected", detail, unmatched_remedy(glob))


def check_owner(folder: StateFolder, membership: Membership, now_ms: int, protected: Protected) -> Finding:
    """Whether protected actions can run. A node that protects nothing is well without an owner."""
    try:
        said = people_status(known_people(folder, membership))
    except MembershipError as error:
        return fail("owner", str(error), "restore the state folder, or move the file away")
    gap, remedy = missing(said, now_ms)
    if gap and (said["pin"] or protected.actions):
        refused = f" ({', '.join(protected.actions)})" if protected.actions else ""
        return warn("owner", gap + refused, remedy)
    return ok("owner", sentence(said, now_ms))


def check_disk(path: Path, spool_max_bytes: int) -> Iterator[Finding]:
    """Room for the journal and the spool, and what a durable write costs."""
    free = shutil.disk_usage(path).free
    shown = f"{free / 2**20:.0f} MiB free"
    if free < _MIN_FREE_BYTES:
        yield fail("disk space", shown, "make room: a full disk makes the node refuse commands")
    elif free < spool_max_bytes + _MIN_FREE_BYTES:
        remedy = "make room, or lower spool_max_bytes: the telemetry spool may fill the disk while the server is away"
        yield warn("disk space", shown, remedy)
    else:
        yield ok("disk space", shown)
    yield _check_fsync(path)


def check_journal(path: Path, node_id: str) -> Finding:
    """The whole file. Only while no daemon runs, and under the folder's lock."""
    try:
        facts = inspect_journal(path, node_id)
    except JournalDamagedError as error:
        return fail("journal", f"{path}: {error.problem}", error.remedy)
    except JournalUnavailableError as error:
        return fail("journal", str(error), "see to the disk under the state folder, then look again")
    shown = f"whole: {facts.rows} commands, {facts.unfinished} unfinished"
    return ok("journal", f"{shown}, {facts.unacknowledged} reports to send")


def _check_fsync(path: Path) -> Finding:
    scratch = path / f".doctor.{os.getpid()}"
    took_s: list[float] = []
    try:
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            for _ in range(_FSYNC_TRIES):
                started = time.perf_counter()
                if os.write(descriptor, _BLOCK) != len(_BLOCK):
                    return fail("disk write", "the disk took part of a block only", "make room on it")
                os.fsync(descriptor)
                took_s.append(time.perf_counter() - started)
        finally:
            os.close(descriptor)
            scratch.unlink(missing_ok=True)
    except OSError as error:
        remedy = "make room, or make the folder writable for this user: without it the node refuses commands"
        return fail("disk write", f"a file in the state folder cannot be written: {error.strerror}", remedy)
    median_s = statistics.median(took_s)
    shown = f"a durable write takes {median_s * 1000:.1f} ms"
    if median_s > _SLOW_FSYNC_S:
        return warn("disk write", shown, "each command waits for two of these: use a faster disk for the state folder")
    return ok("disk write", shown)
