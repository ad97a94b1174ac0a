"""The folder that a demo lives in, the shell that it was started from, and how it is interrupted."""

import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


class CannotStart(Exception):
    """The state folder cannot be had; the text says what to do."""


def stand_alone() -> None:
    """Forget what the shell works with, for a demo is its own installation, and end by KeyboardInterrupt."""
    for name in [name for name in os.environ if name.startswith(("FLEET_", "FLEETCTL_", "FLEET_NODE_"))]:
        del os.environ[name]
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)  # ignored when a shell started this in its background
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which `nohup` asks for
        signal.signal(signal.SIGHUP, _interrupt)  # the terminal was closed, and what was started has groups of its own


def state_folder(default: Path) -> Path:
    """Where a demo's state is: DEMO_STATE, or `default`."""
    return Path(os.environ.get("DEMO_STATE", default)).absolute()


@contextmanager
def fresh(state: Path) -> Iterator[None]:
    """Hold the state folder, empty and 0700, for this demo alone.

    Raises:
        CannotStart: another demo lives in it, or it holds something that no demo made.
    """
    lock = state / "demo.lock"
    if state.exists() and not lock.exists() and any(state.iterdir()):
        raise CannotStart(f"{state} holds something that no demo made: name another folder in DEMO_STATE")
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    state.chmod(0o700)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for entry in state.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry != lock:
                entry.unlink()
        yield
    except BlockingIOError:
        raise CannotStart(f"another demo runs in {state}: end it with Ctrl-C in its terminal first") from None
    finally:
        os.close(descriptor)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
