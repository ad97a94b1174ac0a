"""Driver `host`: what the machine is, what runs on it, and how busy it is. Reads only, so it may always run
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from fleet_node.drivers.api import Action, Invocation, Outcome, OutcomeState, Sample
from fleet_node.drivers.host_facts import describe_host, process_usage, top_processes
from fleet_node.drivers.host_samples import HostSampler
from fleet_node.drivers.settings import SettingsTable

MAX_PROCESSES: Final = 100
DEFAULT_WINDOW_MS: Final = 500


class HostDriver:
    """Facts and telemetry of this machine.

    Args:
        settings: the table `[drivers.host]`; `telemetry = false` turns the series off.

    Raises:
        DriverConfigError: names the setting and what to do.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.name = "host"
        self.version = "1.0"
        table = SettingsTable(settings, "drivers.host")
        telemetry = table.flag("telemetry", True)
        table.finish()
        self._sampler = HostSampler() if telemetry else None

    def actions(self) -> Sequence[Action]:
        """`host.info` and `host.processes`."""
        return [
            Action(
                name="host.info",
                description="Tells the operating system, hardware, disks and network interfaces of the machine.",
                arguments_schema={"type": "object", "properties": {}, "additionalProperties": False},
                idempotent=True,
                timeout_s=30.0,
                max_output_bytes=64 * 1024,
            ),
            Action(
                name="host.processes",
                description="Lists the processes that use most CPU or memory, by name, without their arguments.",
                arguments_schema=_PROCESSES_SCHEMA,
                idempotent=True,
                timeout_s=30.0,
                max_output_bytes=64 * 1024,
            ),
        ]

    async def run(self, invocation: Invocation) -> Outcome:
        """Run either action. CANCELLED with reason STOPPED when asked to stop."""
        if invocation.stop.is_set():
            return _STOPPED
        if invocation.action == "host.info":
            return Outcome(OutcomeState.SUCCEEDED, await asyncio.to_thread(describe_host))
        return await _processes(invocation)

    def sample(self) -> Iterable[Sample]:
        """CPU, load, memory, swap, disk, network and uptime."""
        return () if self._sampler is None else self._sampler.sample()

    async def close(self) -> None:
        """Nothing to let go of."""


_STOPPED: Final = Outcome(OutcomeState.CANCELLED, {}, "STOPPED", "stopped before it had an answer")

_PROCESSES_SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "by": {"enum": ["cpu", "memory"], "default": "cpu", "description": "What to sort by."},
        "count": {
            "type": "integer",
            "minimum": 1,
            "maximum": MAX_PROCESSES,
            "default": 20,
            "description": "How many processes.",
        },
        "window_ms": {
            "type": "integer",
            "minimum": 10,
            "maximum": 10_000,
            "default": DEFAULT_WINDOW_MS,
            "description": "Milliseconds over which CPU use is measured.",
        },
    },
    "additionalProperties": False,
}


async def _processes(invocation: Invocation) -> Outcome:
    arguments = invocation.arguments
    before = await asyncio.to_thread(process_usage)
    started_s = time.monotonic()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(arguments.get("window_ms", DEFAULT_WINDOW_MS) / 1000):
            await invocation.stop.wait()
    if invocation.stop.is_set():
        return _STOPPED
    elapsed_s = time.monotonic() - started_s
    after = await asyncio.to_thread(process_usage)
    top = await asyncio.to_thread(
        top_processes, before, after, elapsed_s, arguments.get("by", "cpu"), int(arguments.get("count", 20))
    )
    return Outcome(OutcomeState.SUCCEEDED, {"processes": top, "process_count": len(after)})
