"""`fleet-server run`, which kills itself with SIGKILL at one edge of one transaction.

`python -m tests.faults.server_victim EDGE NUMBER FILE run …`: once FILE exists, the NUMBER-th transaction is the last:
with EDGE `before` its statements have run and its commit has not, with `after` it is committed and nobody was told.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from fleet_server.__main__ import main
from fleet_server.database.writer import Writer


class Edge:
    """Counts transactions from the moment that the file exists."""

    def __init__(self, number: int, armed: Path) -> None:
        self._left = number
        self._armed = armed

    def reach(self) -> None:
        """One transaction is at this edge."""
        if self._armed.exists():
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def arrange(edge: str, number: int, armed: Path) -> None:
    """Make every writer of this process count."""
    counted = Edge(number, armed)
    if edge == "before":
        begin = Writer.start

        def start(self: Writer) -> None:
            self.before_commit(lambda _: counted.reach())  # the last hook: after the audit's seal
            begin(self)

        Writer.start = start  # type: ignore[method-assign]
    else:
        tell = Writer._deliver

        def deliver(self: Writer, *arguments: Any) -> None:
            counted.reach()
            tell(self, *arguments)

        Writer._deliver = deliver  # type: ignore[method-assign]


if __name__ == "__main__":
    arrange(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    main(args=sys.argv[4:], prog_name="fleet-server")
