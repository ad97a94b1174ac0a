"""`fleet-server secrets rekey` as a process that stands still in the middle of its work, for a test to kill.

`python -m tests.integration.standing_still PLACE GOAL secrets rekey …` puts GOAL rows under the new key, one in a
transaction, and says `stands still`: "between" two transactions, or "within" the next one.
"""

import sys
import threading
from typing import Any

from fleet_server import rekeying
from fleet_server.__main__ import main
from fleet_server.trust.reseal import Batch, TableWalk

SAYS = "stands still"


def stand_still(place: str, goal: int) -> None:
    """Have this process's change end there."""
    walk, write, done = TableWalk.batch, rekeying.Change._batch, 0

    def batch(*args: Any) -> Batch:
        made = walk(*args)
        if place == "within" and done >= goal and made.done:
            _wait_for_the_end()
        return made

    async def written(*args: Any) -> Batch:
        nonlocal done
        made = await write(*args)
        done += made.done
        if place == "between" and done >= goal:
            _wait_for_the_end()
        return made

    TableWalk.batch = batch  # type: ignore[method-assign]
    rekeying.Change._batch = written  # type: ignore[method-assign]
    rekeying.BATCH_ROWS, rekeying.PAUSE_S, rekeying._LOOK_S = 1, 0.0, 0.05


def _wait_for_the_end() -> None:
    print(SAYS, file=sys.stderr, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    stand_still(sys.argv[1], int(sys.argv[2]))
    main(args=sys.argv[3:], prog_name="fleet-server")
