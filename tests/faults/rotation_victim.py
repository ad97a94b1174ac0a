"""`fleet-node run`, which kills itself with SIGKILL at one point of a rotation.

`python -m tests.faults.rotation_victim FILE run …`: once FILE holds a number, the process ends at that point from then
on. Points are each replacement of a private file, right before it and right after, and each time that what is pending
was stored or forgotten, before anything is said of it. Without FILE nothing is counted.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fleet import identity
from fleet_node.__main__ import main
from fleet_node.enrollment import membership, rotation_file
from fleet_node.link import credentials


class Points:
    """Counts points while the file exists."""

    def __init__(self, armed: Path) -> None:
        self._armed = armed
        self._passed = 0

    def reach(self) -> None:
        """The process is at a point."""
        if not self._armed.exists():
            return
        self._passed += 1
        if self._passed == int(self._armed.read_text()):
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, work: Callable[..., None]) -> Callable[..., None]:
        """`work`, with a point before it and one after."""

        def watched(*arguments: Any) -> None:
            self.reach()
            work(*arguments)
            self.reach()

        return watched


def arrange(points: Points) -> None:
    """Have every private file of this process pass points."""
    for module in (identity, membership, rotation_file):
        module.write_private = points.around(module.write_private)  # type: ignore[attr-defined]
    credentials.save_rotation = points.around(credentials.save_rotation)  # type: ignore[attr-defined]


if __name__ == "__main__":
    arrange(Points(Path(sys.argv[1])))
    sys.argv = ["fleet-node", *sys.argv[2:]]
    main()
