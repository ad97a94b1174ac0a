"""The drivers of this node: loads those that the config enables, checks every promise, and stands between
them and the rest.

A driver is somebody else's code inside the node. Whatever it does wrong while loading, running, sampling or
closing is caught here, reported (`problems`, and a log line) and never takes the node down. A driver that is
wrong anywhere is left out whole: half a driver would look like a working one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from itertools import islice
from typing import Any, Final, Self

import jsonschema_rs

from fleet.logs import get_logger
from fleet.v1 import gateway_pb2
from fleet_node.drivers.api import (
    Action,
    Driver,
    DriverConfigError,
    Invocation,
    Outcome,
    OutcomeState,
    Sample,
)
from fleet_node.drivers.json_text import ArgumentsError, encode_output, line_within, parse_arguments
from fleet_node.drivers.promises import (
    DRIVER_FAULTS,
    BrokenPromise,
    checked_actions,
    checked_driver,
    keeps_outcome_promise,
    keeps_sample_promise,
)
from fleet_node.drivers.protected import protected_by
from fleet_node.drivers.schema_rules import MAX_SCHEMA_BYTES

ENTRY_POINT_GROUP: Final = "fleet_node.drivers"
MAX_DRIVERS: Final = 64
MAX_SAMPLES_PER_DRIVER: Final = 2000
_CLOSE_LIMIT_S: Final = 10.0

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DriverProblem:
    """Why an enabled driver is not there.

    Args:
        driver: its name in the config.
        reason: NOT_INSTALLED, AMBIGUOUS, IMPORT_FAILED, BAD_SETTINGS, CONSTRUCTION_FAILED or BROKEN_PROMISE.
        detail: what is wrong and what to do.
    """

    driver: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class _Offer:
    """An action with all that is needed to take a command for it."""

    action: Action
    driver: Driver
    validator: jsonschema_rs.Draft202012Validator
    schema_bytes: bytes


class _LeftOut(Exception):
    """A driver cannot be loaded; carries the problem's reason and detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class DriverRegistry:
    """The loaded drivers and their actions. Build it with `load`."""

    def __init__(self) -> None:
        self._drivers: list[Driver] = []
        self._rejected: list[Driver] = []
        self._offers: dict[str, _Offer] = {}
        self._problems: list[DriverProblem] = []
        self._schema_bytes = 0
        self._silenced: set[str] = set()

    @classmethod
    def load(
        cls,
        enabled: Sequence[str],
        settings: Mapping[str, Mapping[str, Any]],
        *,
        installed: Sequence[EntryPoint] | None = None,
        place_of: Callable[[str], str] | None = None,
    ) -> Self:
        """Load the enabled drivers. Never raises for what a driver does; see `problems`.

        Args:
            enabled: names, in the order in which they share the limit for schemas. Nothing else is even
                imported.
            settings: a table for each driver, by name.
            installed: entry points to choose from; by default those of the installed packages.
            place_of: from a setting's full name to where it stands, for the person who corrects it.
        """
        found = tuple(entry_points(group=ENTRY_POINT_GROUP)) if installed is None else installed
        registry = cls()
        for name in dict.fromkeys(enabled):
            try:
                if len(registry._drivers) >= MAX_DRIVERS:
                    raise _LeftOut("TOO_MANY", f"more than {MAX_DRIVERS} drivers are enabled; enable fewer")
                registry._add(name, _construct(name, found, settings.get(name, {}), place_of or _nowhere))
            except _LeftOut as left_out:
                registry._problems.append(DriverProblem(name, left_out.reason, left_out.detail))
                _log.error("driver_left_out", driver=name, reason=left_out.reason, detail=left_out.detail)
        return registry

    @property
    def problems(self) -> tuple[DriverProblem, ...]:
        """The enabled drivers that are not there, and why."""
        return tuple(self._problems)

    @property
    def drivers(self) -> tuple[Driver, ...]:
        """The loaded drivers in the order of the config."""
        return tuple(self._drivers)

    def action(self, name: str) -> Action | None:
        """The action of that full name."""
        offer = self._offers.get(name)
        return None if offer is None else offer.action

    @property
    def actions(self) -> list[Action]:
        """All of them, in the order of the drivers."""
        return [offer.action for offer in self._offers.values()]

    def descriptors(self, protected: Sequence[str] = ()) -> list[gateway_pb2.DriverDescriptor]:
        """What `hello` says of the drivers (docs/protocol.md, "Hello").

        Args:
            protected: globs over actions that the node's configuration protects.
        """
        return [
            gateway_pb2.DriverDescriptor(
                name=driver.name,
                version=driver.version,
                actions=[_descriptor(offer, protected) for offer in self._offers.values() if offer.driver is driver],
            )
            for driver in self._drivers
        ]

    def validate(self, action: str, arguments: bytes) -> Mapping[str, Any]:
        """Parse a command's arguments and check them against the action's schema.

        Raises:
            ArgumentsError: UNKNOWN_ACTION, ARGUMENTS_TOO_LARGE, ARGUMENTS_MALFORMED or ARGUMENTS_INVALID.
        """
        offer = self._offers.get(action)
        if offer is None:
            detail = f"this node has no action {line_within(action, 80)!r}; `nodes show` lists its actions"
            raise ArgumentsError("UNKNOWN_ACTION", detail)
        parsed = parse_arguments(arguments)
        if not offer.validator.is_valid(parsed):
            error = next(offer.validator.iter_errors(parsed))
            raise ArgumentsError("ARGUMENTS_INVALID", _describe(error))
        return parsed

    def ordering_key(self, action: str, arguments: Mapping[str, Any]) -> str | None:
        """What must not see commands out of order, unique over drivers; None when the action has no order.

        An `ordering_key` that fails puts all commands of its action in one order: slower, never wrong.
        """
        offer = self._offers[action]
        if offer.action.ordering_key is None:
            return None
        try:
            key = offer.action.ordering_key(arguments)
        except DRIVER_FAULTS as error:
            self._report_once("driver_ordering_key_failed", offer.driver.name, error)
            key = action
        return None if key is None else f"{offer.driver.name}:{key}"

    async def run(self, invocation: Invocation) -> Outcome:
        """Run an action of a loaded driver; whatever the driver raises or returns becomes an outcome within
        the limits.
        """
        offer = self._offers[invocation.action]
        try:
            outcome = await offer.driver.run(invocation)
        except asyncio.CancelledError as error:
            if _cancelled_from_outside():
                raise
            return self._driver_raised(invocation, error)  # of its own: must not end the node's task
        except DRIVER_FAULTS as error:
            return self._driver_raised(invocation, error)
        return _within_limits(outcome, offer.action)

    def samplers(self) -> dict[str, Callable[[], list[Sample]]]:
        """What gives telemetry of each driver, now, by its name. Call it in a worker thread, one call at a time for one
        driver: one that hangs must not hold up the others.
        """
        return {driver.name: partial(self._sample, driver) for driver in self._drivers}

    def _sample(self, driver: Driver) -> list[Sample]:
        try:
            offered = list(islice(driver.sample(), MAX_SAMPLES_PER_DRIVER + 1))
            kept = [one for one in offered[:MAX_SAMPLES_PER_DRIVER] if keeps_sample_promise(one)]
        except DRIVER_FAULTS as error:
            self._report_once("driver_sample_failed", driver.name, error)
            return []
        if len(kept) != len(offered):
            self._report_once("driver_samples_left_out", driver.name, None, kept=len(kept))
        return kept

    async def close(self) -> None:
        """Close every driver, loaded or left out after construction; each gets ten seconds. A second call
        does nothing.
        """
        drivers, self._drivers, self._rejected = self._drivers + self._rejected, [], []
        self._offers.clear()
        await asyncio.gather(*(_close(driver) for driver in drivers))

    def _add(self, name: str, driver: Driver) -> None:
        self._rejected.append(driver)
        try:
            checked_driver(driver, name)
            promised = checked_actions(driver)
        except BrokenPromise as broken:
            raise _LeftOut("BROKEN_PROMISE", str(broken)) from None
        schema_bytes = sum(len(one.schema_bytes) for one in promised)
        if self._schema_bytes + schema_bytes > MAX_SCHEMA_BYTES:
            left = MAX_SCHEMA_BYTES - self._schema_bytes
            detail = f"its schemas take {schema_bytes} bytes, {left} are left; enable fewer drivers"
            raise _LeftOut("BROKEN_PROMISE", detail)
        self._schema_bytes += schema_bytes
        self._rejected.pop()
        self._drivers.append(driver)
        for one in promised:
            self._offers[one.action.name] = _Offer(one.action, driver, one.validator, one.schema_bytes)

    @staticmethod
    def _driver_raised(invocation: Invocation, error: BaseException) -> Outcome:
        # A stranger's exception text may hold secrets: the operator reads its type, the node's log the rest.
        command_id = invocation.command_id.hex()
        _log.error("driver_run_failed", action=invocation.action, command_id=command_id, exc_info=error)
        sentence = f"the driver raised {type(error).__name__}; the node's log has the details"
        return Outcome(OutcomeState.FAILED, {}, "DRIVER_ERROR", sentence)

    def _report_once(self, event: str, driver: str, error: BaseException | None, **fields: Any) -> None:
        """Log a driver's fault the first time: what fails at every interval must not fill the disk."""
        if f"{event}:{driver}" not in self._silenced:
            self._silenced.add(f"{event}:{driver}")
            _log.error(event, driver=driver, exc_info=error, **fields)


def _nowhere(_setting: str) -> str:
    return ""


def _construct(
    name: str, installed: Sequence[EntryPoint], settings: Mapping[str, Any], place_of: Callable[[str], str]
) -> Driver:
    found = {entry.value: entry for entry in installed if entry.name == name}
    if not found:
        raise _LeftOut(
            "NOT_INSTALLED", f"no installed package offers it; install one or remove {name!r} from the config"
        )
    if len(found) > 1:  # a package must not be able to take the name of another one's driver
        offers = ", ".join(sorted(found))
        raise _LeftOut("AMBIGUOUS", f"several packages offer it ({offers}); uninstall all but one")
    entry = next(iter(found.values()))
    try:
        driver_class = entry.load()
    except DRIVER_FAULTS as error:
        _log.warning("driver_import_failed", driver=name, exc_info=error)
        detail = f"importing {entry.value} raised {type(error).__name__}; the node's log has the details"
        raise _LeftOut("IMPORT_FAILED", detail) from None
    try:
        driver: Driver = driver_class(settings)
    except DriverConfigError as error:
        place = place_of(error.setting)
        raise _LeftOut("BAD_SETTINGS", f"{place}: {error}" if place else str(error)) from None
    except DRIVER_FAULTS as error:
        _log.warning("driver_construction_failed", driver=name, exc_info=error)
        detail = f"constructing {entry.value} raised {type(error).__name__}; the node's log has the details"
        raise _LeftOut("CONSTRUCTION_FAILED", detail) from None
    return driver


def _cancelled_from_outside() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _close(driver: Driver) -> None:
    try:
        async with asyncio.timeout(_CLOSE_LIMIT_S):
            await driver.close()
    except (asyncio.CancelledError, *DRIVER_FAULTS) as error:
        if isinstance(error, asyncio.CancelledError) and _cancelled_from_outside():
            raise
        _log.exception("driver_close_failed", driver=str(getattr(driver, "name", type(driver).__name__)))


def _within_limits(outcome: Outcome, action: Action) -> Outcome:
    """The outcome as it was returned, or one that says how it broke the driver's promise."""
    if not keeps_outcome_promise(outcome):
        _log.error("driver_outcome_broken", action=action.name, type=type(outcome).__name__)
        sentence = "the driver ran and returned no Outcome, or one of other types than declared; tell its author"
        return Outcome(OutcomeState.FAILED, {}, "DRIVER_ERROR", sentence)
    if not (outcome.reason.isascii() and outcome.error.isascii()):
        outcome = outcome._replace(reason=_carried(outcome.reason), error=_carried(outcome.error))
    if not outcome.output:
        return outcome
    try:
        size = len(encode_output(outcome.output))
    except ValueError as error:
        _log.error("driver_output_broken", action=action.name, detail=str(error))
        sentence = f"the driver ran and its {error}; tell its author"
        return Outcome(OutcomeState.FAILED, {}, "DRIVER_ERROR", sentence)
    if size > action.max_output_bytes:
        # What was done is done: the state stands, and only the output is lost.
        left_out = f"(its output of {size} bytes was left out; the limit is {action.max_output_bytes})"
        sentence = f"{outcome.error} {left_out}".strip()
        return Outcome(outcome.state, {}, outcome.reason or "OUTPUT_TOO_LARGE", sentence, truncated=True)
    return outcome


def _carried(text: str) -> str:
    """Text as UTF-8 carries it on: the name of a file may hold half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _descriptor(offer: _Offer, protected: Sequence[str]) -> gateway_pb2.ActionDescriptor:
    return gateway_pb2.ActionDescriptor(
        action=offer.action.name,
        arguments_schema=offer.schema_bytes,
        idempotent=offer.action.idempotent,
        protected=protected_by(offer.action, protected),
        description=offer.action.description,
        timeout_ms=round(offer.action.timeout_s * 1000),
    )


def _describe(error: jsonschema_rs.ValidationError) -> str:
    """Where and why, for a person. The validator masks values: arguments may hold secrets."""
    place = "/".join(str(part) for part in error.instance_path) or "the arguments"
    return line_within(f"{place}: {error.message}", 300)
