"""Driver `chaos`: the one action that may run again, with the simulated driver's log of what ran.

The simulated driver's own actions must never run twice. What an interrupted action does that declares itself idempotent
is seen here. It is found by its entry point, which `programs.plugin_folder` writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fleet_node.drivers.api import Action
from fleet_node.drivers.simulated import SimulatedDriver

REPEAT = "chaos.repeat"


class ChaosDriver(SimulatedDriver):
    """Simulated work that does no harm when it is done again."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self.name = "chaos"

    def actions(self) -> Sequence[Action]:
        """`chaos.repeat`."""
        return [
            Action(
                name=REPEAT,
                description="Waits, and may wait again.",
                arguments_schema={
                    "type": "object",
                    "properties": {"latency_ms": {"type": "number", "minimum": 0, "maximum": 60_000}},
                    "additionalProperties": False,
                },
                idempotent=True,
                timeout_s=60.0,
                max_output_bytes=1024,
            )
        ]
