"""The one place that turns what the rooms raise into a sentence and an exit code."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleet.errors import Reason, Refusal
from fleet.identity import PrivateFileError
from fleet_node.cli.grammar import ExitCode, Failure
from fleet_node.commands.opening import JournalDamagedError, JournalUnavailableError
from fleet_node.enrollment.folder import FolderLockedError
from fleet_node.enrollment.membership import MembershipError
from fleet_node.enrollment.service import EnrollmentError, EnrollmentRefusedError, TokenError

_UNREACHABLE = (Reason.UNAVAILABLE, Reason.WRONG_CERTIFICATE)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def told(state_dir: Path) -> Iterator[None]:
    """Turn every failure that a person can do something about into a `Failure`; let the others through.

    Args:
        state_dir: for failures of the disk under it.
    """
    try:
        yield
    except TokenError as error:
        raise Failure(str(error), code=ExitCode.USAGE) from error
    except EnrollmentRefusedError as error:
        raise Failure(str(error), code=ExitCode.REFUSED) from error
    except Refusal as refusal:
        raise Failure(refusal.detail, code=refusal_code(refusal)) from refusal
    except (
        EnrollmentError,
        FolderLockedError,
        JournalDamagedError,
        JournalUnavailableError,
        MembershipError,
        PrivateFileError,
    ) as error:
        raise Failure(str(error)) from error
    except OSError as error:
        raise disk_failure(state_dir, error) from error


def refusal_code(refusal: Refusal) -> ExitCode:
    """How a verb ends after a refusal."""
    return ExitCode.UNREACHABLE if refusal.reason in _UNREACHABLE else ExitCode.REFUSED


def disk_failure(state_dir: Path, error: OSError) -> Failure:
    """A failure of the disk, with what to do about it."""
    message = f"the state folder {state_dir} cannot be written: {error.strerror or error}"
    if error.errno in _FULL:
        return Failure(message, hint="make room on that disk, or raise its quota or the process's file size limit")
    if error.errno in _CLOSED:
        return Failure(message, hint="mount it writable and let this user own it, or give --state-dir another folder")
    return Failure(message, hint="`fleet-node doctor` looks at the folder and the disk")
