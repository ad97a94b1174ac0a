"""What a driver is: the types that a driver author writes against. See docs/drivers.md.

A driver class is found through the entry point group `fleet_node.drivers`, constructed once as
`DriverClass(settings)` with its own table of the node's config file (`[drivers.<name>]`), and lives as long
as the node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

MAX_ARGUMENTS_BYTES = 64 * 1024
"""Largest arguments of one command (docs/protocol.md, "Commands")."""

MAX_OUTPUT_BYTES = 256 * 1024
"""Largest output that any action may declare: reports travel in lists of at most 512 KiB."""

OrderingKey = Callable[[Mapping[str, Any]], str | None]
"""From an action's validated arguments to the thing that must not see commands out of order; None: no
order.
"""


class DriverConfigError(Exception):
    """A driver's settings are wrong. Says which setting, what is wrong with it, and what to do.

    Args:
        setting: full name in the config file, such as "drivers.exec.programs.uptime.path".
        problem: what is wrong, without the value of anything that may be a secret.
        remedy: what to do next, an imperative sentence.
    """

    def __init__(self, setting: str, problem: str, remedy: str) -> None:
        super().__init__(f"{setting}: {problem}. {remedy}")
        self.setting = setting
        self.problem = problem
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that a driver does.

    Args:
        name: "<driver>.<verb>", lower case.
        description: one sentence for people.
        arguments_schema: JSON Schema, draft 2020-12, of an object; `fleet_node.drivers.schema_rules` says
            what it may hold.
        idempotent: it may run again after an interruption; only say so when running twice does no harm.
        protected: it must not happen at the server's word alone: each run needs people's signed intent.
        timeout_s: default time limit; `Invocation.timeout_s` is what counts.
        max_output_bytes: largest output as `encode_output` writes it.
        ordering_key: commands with an equal key run one after the other, in seq order (per-device order).
    """

    name: str
    description: str
    arguments_schema: Mapping[str, Any]
    idempotent: bool = False
    protected: bool = False
    timeout_s: float = 60.0
    max_output_bytes: int = MAX_OUTPUT_BYTES
    ordering_key: OrderingKey | None = None


class Invocation(NamedTuple):
    """One run of an action.

    Args:
        command_id: 16 bytes; the same when an idempotent action runs again.
        action: full name of the action.
        arguments: parsed, and valid under the action's schema.
        timeout_s: time limit of this run.
        stop: set on cancel, timeout or shutdown; the driver then ends the work soon and returns what it has.
        actor: operator on whose behalf, as the server claims; no person signed it. For logs, and no ground to decide.
    """

    command_id: bytes
    action: str
    arguments: Mapping[str, Any]
    timeout_s: float
    stop: asyncio.Event
    actor: str


class OutcomeState(StrEnum):
    """How a run ended."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class Outcome(NamedTuple):
    """What a run came to.

    Args:
        state: how it ended.
        output: JSON-able; at most the action's `max_output_bytes`.
        reason: stable and machine-readable when not SUCCEEDED, such as "TIMEOUT" or "EXIT_STATUS"; upper
            case.
        error: sentence for a person, without secrets.
        truncated: something was left out of the output for its size.
    """

    state: OutcomeState
    output: Mapping[str, Any]
    reason: str = ""
    error: str = ""
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of one telemetry series, now. Name, labels, kind and unit name the series and do not change.

    Args:
        name: such as "host.cpu.percent".
        labels: at most 16 pairs, sorted by key.
        kind: "gauge" goes up and down, "counter" only grows but for restarts.
        unit: such as "percent", "bytes" or "seconds"; "1" for a bare number.
        value: finite.
    """

    name: str
    labels: tuple[tuple[str, str], ...]
    kind: Literal["gauge", "counter"]
    unit: str
    value: float


@runtime_checkable
class Driver(Protocol):
    """A named set of actions. One object serves every command of its actions.

    `name` is the name of its entry point; `version` is shown to operators.
    """

    name: str
    version: str

    def actions(self) -> Sequence[Action]:
        """The actions on offer. Called once, after construction; the answer stands until the node
        restarts.
        """
        ...

    async def run(self, invocation: Invocation) -> Outcome:
        """Do it. Called concurrently, on the node's event loop: blocking work belongs in a thread.

        Returns soon after `invocation.stop` is set. An exception becomes a FAILED outcome with reason
        DRIVER_ERROR.
        """
        ...

    def sample(self) -> Iterable[Sample]:
        """Telemetry of this moment. Called in a worker thread, one call at a time; sync and cheap. () when
        there is none. One that does not return silences this driver's telemetry, and is logged.
        """
        ...

    async def close(self) -> None:
        """Let go of everything. No run is in progress; a second call does nothing."""
        ...
