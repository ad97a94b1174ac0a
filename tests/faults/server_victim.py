"""`fleet-server run`, which kills itself with SIGKILL at one edge of one transaction.

`python -m tests.faults.server_victim FILE run …`: once FILE says `EDGE NUMBER`, the NUMBER-th transaction from then on
is the last: with EDGE `before` its statements have run and its commit has not, with `after` it is committed and nobody
was told. Without FILE nothing is counted.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from fleet_server.__main__ import main
from fleet_server.database.writer import Writer


class Edge:
    """Counts transactions while the file exists."""

    def __init__(self, armed: Path) -> None:
        self._armed = armed
        self._left = 0
        self._edge = ""

    def reach(self, edge: str) -> None:
        """One transaction is at this edge."""
        try:
            wanted, number = self._armed.read_text().split()
        except FileNotFoundError:
            self._edge = ""
            return
        if not self._edge:
            self._edge, self._left = wanted, int(number)
        if edge == self._edge:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def arrange(edge: Edge) -> None:
    """Make every writer of this process count."""
    begin, tell = Writer.start, Writer._deliver

    def start(self: Writer) -> None:
        self.before_commit(lambda _: edge.reach("before"))  # the last hook: after the audit's seal
        begin(self)

    def deliver(self: Writer, *arguments: Any) -> None:
        edge.reach("after")
        tell(self, *arguments)

    Writer.start = start  # type: ignore[method-assign]
    Writer._deliver = deliver  # type: ignore[method-assign]


if __name__ == "__main__":
    arrange(Edge(Path(sys.argv[1])))
    main(args=sys.argv[2:], prog_name="fleet-server")
