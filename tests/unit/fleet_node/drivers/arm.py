"""A driver that a test bends in one place, and a registry to load it with."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint
from typing import Any

from fleet_node.drivers.api import Action, Invocation, Outcome, OutcomeState, Sample
from fleet_node.drivers.registry import DriverRegistry

GROUP = "fleet_node.drivers"
SCHEMA = {
    "type": "object",
    "properties": {"device": {"type": "string"}, "password": {"type": "string", "maxLength": 8}},
    "required": ["device"],
    "additionalProperties": False,
}
MOVE = Action("arm.move", "Moves the arm.", SCHEMA, idempotent=True, timeout_s=2.5, max_output_bytes=1000)

Run = Callable[[Invocation], Any]


class Arm:
    """A well-behaved driver that a test bends in one place."""

    actions_now: Any = (MOVE,)
    run_now: Run = staticmethod(lambda _: Outcome(OutcomeState.SUCCEEDED, {"moved": True}))
    samples_now: Any = ()

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.name = "arm"
        self.version = "3.1"
        self.settings = settings
        self.closed = 0

    def actions(self) -> Sequence[Action]:
        return self.actions_now  # type: ignore[no-any-return]

    async def run(self, invocation: Invocation) -> Outcome:
        return self.run_now(invocation)  # type: ignore[no-any-return]

    def sample(self) -> Iterator[Sample]:
        yield from self.samples_now

    async def close(self) -> None:
        self.closed += 1


def bent(**attributes: Any) -> type[Arm]:
    return type("Bent", (Arm,), attributes)


def load(*entries: EntryPoint, enabled: Sequence[str] = ("arm",), **settings: Any) -> DriverRegistry:
    return DriverRegistry.load(enabled, settings, installed=entries)


def invocation(**arguments: Any) -> Invocation:
    return Invocation(b"\1" * 16, "arm.move", arguments, 1.0, asyncio.Event(), "ann")


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise error

    return fail


def act(**changes: Any) -> tuple[Action, ...]:
    fields: dict[str, Any] = {"name": "arm.move", "description": "Moves.", "arguments_schema": SCHEMA}
    return (Action(**{**fields, **changes}),)
