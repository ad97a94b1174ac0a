"""The life of a demo, from its state folder to its exit code.

The exit code is 0 only if every step held. With DEMO_ONCE set a demo ends by itself; else it stays up until Ctrl-C,
which ends everything that was started, by its process id. DEMO_STATE names another state folder.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, TypeVar

from deploy.demo.stage import Stage
from deploy.demo.state_folder import CannotStart, fresh, stand_alone, state_folder

INTERRUPTED = 130


class Lives(Protocol):
    """What a demo has running."""

    @property
    def logs(self) -> Path:
        """Folder of all logs."""
        ...

    def shown(self, path: Path) -> str:
        """A path as a person types it."""
        ...

    def tails(self) -> list[str]:
        """What its processes said last."""
        ...

    def end(self) -> None:
        """End everything that was started."""
        ...


Here = TypeVar("Here", bound=Lives)


def live(default: Path, make: Callable[[Path, Stage], Here], walk: Callable[[Stage, Here], None]) -> int:
    """Walk a demo.

    Args:
        default: state folder, where DEMO_STATE names none.
        make: builds what the demo runs, in an empty state folder; nothing is started yet.
        walk: every step in order; raises when one does not hold.

    Returns:
        0 when every step held, 1 when one did not, 2 when the state folder cannot be had, 130 when it was interrupted.
    """
    stand_alone()
    stage = Stage()
    state = state_folder(default)
    with ExitStack() as cleanup:
        try:
            cleanup.enter_context(fresh(state))
        except CannotStart as error:
            stage.say(str(error))
            return 2
        here = make(state, stage)
        cleanup.callback(here.end)
        try:
            walk(stage, here)
        except KeyboardInterrupt:
            stage.interrupted("interrupted: ending everything that was started")
            return INTERRUPTED
        except Exception as error:  # noqa: BLE001  whatever it was, the person is told the step, and gets the logs
            stage.failure(f"{type(error).__name__}: {error}", here.tails(), here.shown(here.logs))
            return 1
    return 0


def stay(stage: Stage, intro: str, lines: Sequence[str]) -> None:
    """Every step held: say so, and unless DEMO_ONCE is set stay up until Ctrl-C, with something to try next."""
    stage.summary()
    if os.environ.get("DEMO_ONCE"):
        return
    stage.next_lines(intro, lines, "Ctrl-C ends all of it.")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        stage.interrupted("ending everything that was started")
