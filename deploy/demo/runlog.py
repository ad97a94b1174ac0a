"""Counts from the run logs of the `simulated` driver: the witness of what ran, apart from what anyone reports.

Each line was on the node's disk before the run went on, so a run that was killed has its start there.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Runs:
    """How often each command, by its id in hex, was started and came to an end."""

    starts: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)

    def lost(self, issued: Iterable[str]) -> list[str]:
        """Issued and never started."""
        return [command_id for command_id in issued if not self.starts[command_id]]

    def twice(self) -> list[str]:
        """Started more than once."""
        return [command_id for command_id, count in self.starts.items() if count > 1]


def read_runs(*paths: Path) -> Runs:
    """Read the logs of some nodes; a node that has run nothing has none."""
    runs = Runs()
    counters = {"start": runs.starts, "end": runs.ends}
    for path in paths:
        if path.exists():
            for line in path.read_text().splitlines():
                event = json.loads(line)
                counters[event["event"]][event["command_id"]] += 1
    return runs
