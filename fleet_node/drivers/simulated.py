"""Driver `simulated`: work of chosen length, size and failure rate, for load tests and for proofs of
delivery.

With `log_path` every run leaves a line when it starts and one when it ends, on disk before the run goes on,
so that whoever issued commands can count afterwards: none lost, none run twice, whatever was killed in
between.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import math
import os
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from fleet_node.drivers.api import Action, Invocation, Outcome, OutcomeState, Sample
from fleet_node.drivers.settings import SettingsTable

MAX_SERIES: Final = 2000
MAX_PAYLOAD_BYTES: Final = 200 * 1024
_NOOP: Final = "simulated.noop"
_WORK: Final = "simulated.work"


class SimulatedDriver:
    """Simulated work.

    Args:
        settings: the table `[drivers.simulated]`: `seed` (what fails and how long it takes depend on it and
            on the command's id alone), `log_path` (absolute; empty: no log), `series` (how many telemetry
            series).

    Raises:
        DriverConfigError: names the setting and what to do.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.name = "simulated"
        self.version = "1.0"
        table = SettingsTable(settings, "drivers.simulated")
        self._seed = table.integer("seed", 0, minimum=0, maximum=2**63 - 1)
        self._series = table.integer("series", 0, minimum=0, maximum=MAX_SERIES)
        log_path = table.text("log_path", "")
        table.finish()
        self._ticks = 0
        self._log: RunLog | None = None
        if log_path:
            if not os.path.isabs(log_path):
                raise table.wrong("log_path", "is not absolute", "Write the whole path.")
            try:
                self._log = RunLog(log_path)
            except OSError as error:
                problem = f"cannot be opened for appending ({error.strerror})"
                raise table.wrong("log_path", problem, "Name a file that the node can write.") from None

    def actions(self) -> Sequence[Action]:
        """`simulated.noop` and `simulated.work`; neither may run twice."""
        return [
            Action(
                name=_NOOP,
                description="Does nothing, at once.",
                arguments_schema={"type": "object", "properties": {}, "additionalProperties": False},
                timeout_s=10.0,
                max_output_bytes=1024,
            ),
            Action(
                name=_WORK,
                description="Waits, then succeeds or fails as told; runs on one device happen in order.",
                arguments_schema=_WORK_SCHEMA,
                timeout_s=600.0,
                max_output_bytes=MAX_PAYLOAD_BYTES + 1024,
                ordering_key=_device,
            ),
        ]

    async def run(self, invocation: Invocation) -> Outcome:
        """Run either action. FAILED reasons: SIMULATED, TIMEOUT, LOG_FAILED. CANCELLED: STOPPED."""
        if self._log is None:
            return await self._do(invocation)
        try:
            await asyncio.to_thread(self._log.append, "start", invocation, "")
        except OSError as error:
            text = f"the run log cannot be written ({error.strerror}); nothing ran"
            return Outcome(OutcomeState.FAILED, {}, "LOG_FAILED", text)
        outcome = await self._do(invocation)
        try:
            await asyncio.to_thread(self._log.append, "end", invocation, outcome.state.value)
        except OSError as error:
            text = f"it ended as {outcome.state} but the run log cannot be written ({error.strerror})"
            return Outcome(OutcomeState.FAILED, {}, "LOG_FAILED", text)
        return outcome

    def sample(self) -> Iterator[Sample]:
        """As many series as configured: even ones a wave from 0 to 100, odd ones a count of the calls."""
        self._ticks += 1
        for number in range(self._series):
            labels = (("series", str(number)),)
            if number % 2:
                yield Sample("simulated.ticks", labels, "counter", "1", float(self._ticks))
            else:
                wave = 50 + 50 * math.sin((self._ticks + number) / 10)
                yield Sample("simulated.wave", labels, "gauge", "percent", wave)

    async def close(self) -> None:
        """Close the run log."""
        if self._log is not None:
            await asyncio.to_thread(self._log.close)

    async def _do(self, invocation: Invocation) -> Outcome:
        if invocation.stop.is_set():
            return Outcome(OutcomeState.CANCELLED, {}, "STOPPED", "stopped before it started")
        if invocation.action == _NOOP:
            return Outcome(OutcomeState.SUCCEEDED, {})
        arguments = invocation.arguments
        # Seeded by the command, not by a shared generator: the answer does not depend on what else runs.
        chance = random.Random(f"{self._seed}:{invocation.command_id.hex()}")  # noqa: S311  simulation
        work_s = (arguments.get("latency_ms", 0) + chance.uniform(0, arguments.get("jitter_ms", 0))) / 1000
        fails = chance.random() < arguments.get("fail_rate", 0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(work_s, invocation.timeout_s)):
                await invocation.stop.wait()
        if invocation.stop.is_set():
            return Outcome(OutcomeState.CANCELLED, {}, "STOPPED", "stopped while it worked")
        if work_s > invocation.timeout_s:
            text = f"the work takes {work_s:g} s and {invocation.timeout_s:g} s were given"
            return Outcome(OutcomeState.FAILED, {}, "TIMEOUT", text)
        if fails:
            return Outcome(OutcomeState.FAILED, {}, "SIMULATED", "fail_rate made it fail")
        return Outcome(OutcomeState.SUCCEEDED, {"payload": "x" * int(arguments.get("output_bytes", 0))})


class RunLog:
    """Appends one JSON line per event and has it on disk before returning. Blocking; safe from several
    threads.

    Args:
        path: created with mode 0600; existing lines stay.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._fd: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def append(self, event: str, invocation: Invocation, state: str) -> None:
        """Write one event.

        Args:
            event: "start" or "end".
            invocation: the run that it is about.
            state: outcome, for an end.

        Raises:
            OSError: it is not safely on disk.
        """
        line = {"event": event, "command_id": invocation.command_id.hex(), "action": invocation.action}
        device = invocation.arguments.get("device")
        if device is not None:
            line["device"] = device
        if state:
            line["state"] = state
        data = json.dumps(line).encode() + b"\n"
        with self._lock:
            if self._fd is None:
                raise OSError(errno.EBADF, "the run log is closed")
            # One write: lines of a node that is killed here are whole or absent, as the file is opened to
            # append.
            if os.write(self._fd, data) != len(data):
                raise OSError(errno.ENOSPC, "the disk is full")
            os.fsync(self._fd)

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None


def _device(arguments: Mapping[str, Any]) -> str | None:
    device: str | None = arguments.get("device")
    return device


_WORK_SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "latency_ms": {"type": "number", "minimum": 0, "maximum": 600_000, "default": 0},
        "jitter_ms": {
            "type": "number",
            "minimum": 0,
            "maximum": 600_000,
            "default": 0,
            "description": "Up to this many milliseconds are added, evenly spread.",
        },
        "fail_rate": {"type": "number", "minimum": 0, "maximum": 1, "default": 0},
        "output_bytes": {"type": "integer", "minimum": 0, "maximum": MAX_PAYLOAD_BYTES, "default": 0},
        "device": {
            "type": "string",
            "minLength": 1,
            "maxLength": 64,
            "description": "Runs that name the same device happen one after the other.",
        },
    },
    "additionalProperties": False,
}
