"""A driver whose runs a test starts, holds, releases and counts."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fleet_node.drivers.api import Action, Invocation, Outcome, OutcomeState, Sample

_ANY = {
    "type": "object",
    "properties": {"gate": {"type": "string"}, "device": {"type": "string"}, "value": {"type": "integer"}},
    "additionalProperties": False,
}


class ProbeDriver:
    """Actions: echo ends at once; gate ends when the test says so or when stopped; again is idempotent; the others are
    bad at one thing each."""

    latest: "ProbeDriver"

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.name = "probe"
        self.version = "1"
        self.runs: list[bytes] = []
        self.running = 0
        self.most_running = 0
        self._gates: dict[str, asyncio.Event] = {}
        self._changed = asyncio.Condition()
        ProbeDriver.latest = self

    def actions(self) -> Sequence[Action]:
        def action(name: str, **extra: Any) -> Action:
            return Action(f"probe.{name}", "A probe.", _ANY, **{"timeout_s": 30.0, "max_output_bytes": 256} | extra)

        return [
            action("echo", ordering_key=_device),
            action("gate", ordering_key=_device),
            action("again", idempotent=True),
            action("sealed", protected=True),
            action("boom"),
            action("large"),
            action("stubborn"),
            action("deaf"),
        ]

    async def run(self, invocation: Invocation) -> Outcome:
        self.runs.append(invocation.command_id)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        async with self._changed:
            self._changed.notify_all()
        try:
            return await self._act(invocation)
        finally:
            self.running -= 1

    def sample(self) -> Iterable[Sample]:
        return ()

    async def close(self) -> None:
        pass

    def release(self, gate: str) -> None:
        self._gate(gate).set()

    async def wait_started(self, count: int) -> None:
        async with asyncio.timeout(5), self._changed:
            await self._changed.wait_for(lambda: len(self.runs) >= count)

    def _gate(self, name: str) -> asyncio.Event:
        return self._gates.setdefault(name, asyncio.Event())

    async def _act(self, invocation: Invocation) -> Outcome:
        match invocation.action.removeprefix("probe."):
            case "boom":
                raise RuntimeError("password=hunter2")
            case "large":
                return Outcome(OutcomeState.SUCCEEDED, {"text": "x" * 1000})
            case "stubborn":
                await asyncio.Event().wait()
            case "deaf":
                while not self._gate("deaf").is_set():
                    try:
                        await self._gate("deaf").wait()
                    except asyncio.CancelledError:
                        continue
            case "again" if "gate" in invocation.arguments:
                return await self._wait_gate(invocation)
            case "gate":
                return await self._wait_gate(invocation)
        return Outcome(OutcomeState.SUCCEEDED, dict(invocation.arguments))

    async def _wait_gate(self, invocation: Invocation) -> Outcome:
        gate = asyncio.ensure_future(self._gate(invocation.arguments.get("gate", "")).wait())
        stop = asyncio.ensure_future(invocation.stop.wait())
        await asyncio.wait({gate, stop}, return_when=asyncio.FIRST_COMPLETED)
        gate.cancel()
        stop.cancel()
        if invocation.stop.is_set():
            return Outcome(OutcomeState.CANCELLED, {}, "STOPPED", "stopped")
        return Outcome(OutcomeState.SUCCEEDED, {})


def _device(arguments: Mapping[str, Any]) -> str | None:
    device: str | None = arguments.get("device")
    return device
