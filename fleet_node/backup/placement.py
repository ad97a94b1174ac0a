"""Where a restored node is put together, and how it gets into its place: whole, or not at all.

A folder that is not there yet is made beside its place and renamed. One that is there may be a mount point, or stand in
a folder that is not ours: it stays, is filled from a draft within it, and has a membership only once it has all else.
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleet.identity import private_folder, sync_folder

LAST = "membership.json"
"""Without it the folder is no node's."""
_DRAFT = ".restoring-"
_OF_THE_DISK = "lost+found"


class PlacementError(Exception):
    """A node cannot be put there. The message says what to do."""


@contextmanager
def draft_of(state_dir: Path) -> Iterator[Path]:
    """An empty folder, 0700, which takes the place of `state_dir` when the context ends well; otherwise it is removed.

    Args:
        state_dir: must not exist, or be empty and ours.

    Raises:
        PlacementError: there is something in it, or it is another user's.
        PrivateFileError, OSError: the folder cannot be written.
    """
    if not state_dir.exists() and not state_dir.is_symlink():
        state_dir.parent.mkdir(parents=True, exist_ok=True)
        _clear_beside(state_dir)
        draft = private_folder(state_dir.with_name(f".{state_dir.name}.{secrets.token_hex(4)}.restoring"))
        with _removed_on_failure(draft):
            yield draft
            draft.rename(state_dir)
            sync_folder(state_dir.parent)
    else:
        _claim(state_dir)
        draft = private_folder(state_dir / f"{_DRAFT}{secrets.token_hex(4)}")
        with _removed_on_failure(draft):
            yield draft
            _move_in(draft, state_dir)


def _claim(state_dir: Path) -> None:
    if state_dir.is_symlink():
        raise PlacementError(f"{state_dir} is a symbolic link: give the folder itself as --state-dir")
    _refuse_other_users(state_dir)
    there = set(os.listdir(state_dir)) - {_OF_THE_DISK}
    interrupted = {name for name in there if name.startswith(_DRAFT)}
    if there - interrupted:
        raise PlacementError(
            f"{state_dir} is not empty: a node is restored into a folder of its own; give another --state-dir, or "
            + ("empty this one: a restore was interrupted here" if interrupted else "move what is there away")
        )
    for name in interrupted:
        shutil.rmtree(state_dir / name)
    state_dir.chmod(0o700)


def _clear_beside(state_dir: Path) -> None:
    """Remove what a restore into this place left when it was killed: keys are in it."""
    draft = re.compile(re.escape(f".{state_dir.name}.") + r"[0-9a-f]{8}\.restoring")
    for left in state_dir.parent.iterdir():
        if (
            draft.fullmatch(left.name)
            and left.is_dir()
            and not left.is_symlink()
            and left.stat().st_uid == os.geteuid()
        ):
            shutil.rmtree(left)


def _refuse_other_users(state_dir: Path) -> None:
    owner = state_dir.stat().st_uid
    if owner == os.geteuid():
        return
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = f"#{owner}"
    raise PlacementError(
        f"{state_dir} belongs to {name}, whose node could not read what another user writes there: restore as that "
        f"user (`sudo -u '{name}' fleet-node restore ...`), or chown the folder to the user that the node runs as"
    )


def _move_in(draft: Path, state_dir: Path) -> None:
    names = sorted(os.listdir(draft), key=lambda name: (name == LAST, name))
    moved: list[Path] = []
    try:
        for name in names:
            if name == LAST:
                sync_folder(state_dir)  # all else is there for good before it
            (draft / name).rename(state_dir / name)
            moved.append(state_dir / name)
        draft.rmdir()
        sync_folder(state_dir)
    except BaseException:
        for path in reversed(moved):
            path.unlink(missing_ok=True)
        raise


@contextmanager
def _removed_on_failure(draft: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
