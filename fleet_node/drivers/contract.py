"""The test suite that every driver passes, ours and yours. For pytest; the daemon never imports it.

    class TestGpuDriver(DriverContract):
        examples = (Example("gpu.reset", {"device": "0"}),)
        long_running = Example("gpu.burn", {"seconds": 3600})

        def make_driver(self, tmp_path: Path) -> Driver:
            return GpuDriver({"log": str(tmp_path / "log")})

Each `test_` method builds its own driver, runs it on an event loop of its own, and closes it. Nothing here
judges by the time that something took: a driver that does not stop fails by not coming back within
STOP_LIMIT_S.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fleet_node.drivers.api import Action, Driver, Invocation, Outcome, OutcomeState, Sample
from fleet_node.drivers.json_text import encode_output
from fleet_node.drivers.promises import checked_actions, checked_driver, keeps_sample_promise
from fleet_node.drivers.registry import MAX_SAMPLES_PER_DRIVER
from fleet_node.drivers.schema_rules import MAX_SCHEMA_BYTES

STOP_LIMIT_S = 30.0
"""How long a driver may take to come back in these tests before it counts as hung."""

CONCURRENT_RUNS = 8

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Example:
    """A run that works on the machine under test.

    Args:
        action: full name.
        arguments: valid under its schema.
        state: what it comes to.
    """

    action: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    state: OutcomeState = OutcomeState.SUCCEEDED


class DriverContract(ABC):
    """Subclass it with a name that pytest collects, and fill in the three members below."""

    examples: tuple[Example, ...]
    """At least one for every action."""

    long_running: Example | None = None
    """A run that would outlast any test unless it is stopped; None when the driver has no such action."""

    @abstractmethod
    def make_driver(self, tmp_path: Path) -> Driver:
        """A new driver with settings that suit the examples."""

    def test_keeps_the_promises_of_its_types(self, tmp_path: Path) -> None:
        """Names, limits, schemas and signatures are those that the registry takes."""
        driver = self.make_driver(tmp_path)
        checked_driver(driver, driver.name)
        promised = checked_actions(driver)
        size = sum(len(one.schema_bytes) for one in promised)
        _hold(size <= MAX_SCHEMA_BYTES, f"schemas take {size} bytes of {MAX_SCHEMA_BYTES}")
        _finish(driver)

    def test_describes_the_same_actions_each_time(self, tmp_path: Path) -> None:
        """What was advertised stays true, and does not depend on who asks first."""
        driver, other = self.make_driver(tmp_path / "a"), self.make_driver(tmp_path / "b")
        first = _described(driver)
        _hold(_described(driver) == first, "a second call of actions() differs from the first")
        _hold(_described(other) == first, "another object with the same settings has other actions")
        _finish(driver)
        _finish(other)

    def test_examples_cover_every_action_and_fit_its_schema(self, tmp_path: Path) -> None:
        """The examples are what the other tests stand on."""
        driver = self.make_driver(tmp_path)
        validators = {one.action.name: one.validator for one in checked_actions(driver)}
        for example in self._all_examples():
            valid = validators[example.action].is_valid(dict(example.arguments))
            _hold(valid, f"an example of {example.action} does not fit its schema")
        uncovered = set(validators) - {example.action for example in self._all_examples()}
        _hold(not uncovered, f"no example for {sorted(uncovered)}")
        _finish(driver)

    def test_runs_end_with_an_outcome_within_the_limits(self, tmp_path: Path) -> None:
        """Every example ends as it says, with output that is JSON and not larger than declared."""

        async def each(driver: Driver) -> None:
            for example in self.examples:
                outcome = await _run(driver, example, asyncio.Event())
                _check_outcome(outcome, _action(driver, example))
                _hold(outcome.state is example.state, f"{example.action} ended as {outcome.state}: {outcome}")

        self._with_driver(tmp_path, each)

    def test_runs_are_concurrent(self, tmp_path: Path) -> None:
        """Several runs at once all end, each with an outcome of its own."""

        async def crowd(driver: Driver) -> None:
            for example in self.examples:
                runs = (_run(driver, example, asyncio.Event(), number) for number in range(CONCURRENT_RUNS))
                for outcome in await asyncio.gather(*runs):
                    _check_outcome(outcome, _action(driver, example))
                    _hold(outcome.state is example.state, f"{example.action} ended as {outcome.state}")

        self._with_driver(tmp_path, crowd)

    def test_comes_back_when_stopped_before_the_start(self, tmp_path: Path) -> None:
        """A cancel that arrives first is seen: the run comes back, with a proper outcome."""

        async def stopped(driver: Driver) -> None:
            stop = asyncio.Event()
            stop.set()
            for example in self._all_examples():
                _check_outcome(await _run(driver, example, stop), _action(driver, example))

        self._with_driver(tmp_path, stopped)

    def test_comes_back_when_stopped_in_the_middle(self, tmp_path: Path) -> None:
        """A cancel ends a long run, which says so."""
        example = self.long_running
        if example is None:
            return

        async def stopped(driver: Driver) -> None:
            stop = asyncio.Event()
            run = asyncio.create_task(_run(driver, example, stop))
            for _ in range(50):  # well into the run, without waiting for any clock
                await asyncio.sleep(0)
            _hold(not run.done(), f"the long run {example.action} ended by itself: {run}")
            stop.set()
            outcome = await run
            _check_outcome(outcome, _action(driver, example))
            _hold(outcome.state is OutcomeState.CANCELLED, f"ended as {outcome.state} and not CANCELLED")

        self._with_driver(tmp_path, stopped)

    def test_comes_back_when_its_task_is_cancelled(self, tmp_path: Path) -> None:
        """A node that gives up on a run cancels the task; the driver lets go."""
        example = self.long_running
        if example is None:
            return

        async def cancelled(driver: Driver) -> None:
            run = asyncio.create_task(_run(driver, example, asyncio.Event()))
            for _ in range(50):
                await asyncio.sleep(0)
            run.cancel()
            await asyncio.wait({run}, timeout=STOP_LIMIT_S)
            _hold(run.cancelled(), "the cancellation was swallowed")

        self._with_driver(tmp_path, cancelled)

    def test_samples_are_finite_and_their_series_do_not_change(self, tmp_path: Path) -> None:
        """Each call gives well-formed values of the same series, each series once."""
        driver = self.make_driver(tmp_path)
        first, second = list(driver.sample()), list(driver.sample())
        for sample in (*first, *second):
            _hold(keeps_sample_promise(sample), f"cannot be sent: {sample}")
        series = [_series(sample) for sample in first]
        names = {one[:2] for one in series}
        _hold(len(names) == len(series), "one call gives two values of one series")
        _hold(series == [_series(sample) for sample in second], "the series differ from call to call")
        _hold(len(series) <= MAX_SAMPLES_PER_DRIVER, f"more than {MAX_SAMPLES_PER_DRIVER} series")
        _finish(driver)

    def test_close_may_be_called_twice(self, tmp_path: Path) -> None:
        """A node that stops while it starts closes what may be closed already."""

        async def twice(driver: Driver) -> None:
            await driver.close()
            await driver.close()

        self._with_driver(tmp_path, twice)

    def _all_examples(self) -> tuple[Example, ...]:
        return self.examples if self.long_running is None else (*self.examples, self.long_running)

    def _with_driver(self, tmp_path: Path, test: Callable[[Driver], Awaitable[None]]) -> None:
        async def scene() -> None:
            driver = self.make_driver(tmp_path)
            try:
                async with asyncio.timeout(STOP_LIMIT_S):
                    await test(driver)
            finally:
                await driver.close()

        asyncio.run(scene())


def _hold(condition: bool, otherwise: str) -> None:
    """An assertion that explains itself outside pytest's rewriting, too."""
    if not condition:
        raise AssertionError(otherwise)


def _finish(driver: Driver) -> None:
    asyncio.run(_closed(driver.close()))


async def _closed(closing: Awaitable[_T]) -> _T:
    return await closing


def _described(driver: Driver) -> list[tuple[object, ...]]:
    return [
        (
            action.name,
            action.description,
            json.dumps(action.arguments_schema),
            action.idempotent,
            action.protected,
            action.timeout_s,
            action.max_output_bytes,
            action.ordering_key is None,
        )
        for action in driver.actions()
    ]


def _action(driver: Driver, example: Example) -> Action:
    return next(action for action in driver.actions() if action.name == example.action)


async def _run(driver: Driver, example: Example, stop: asyncio.Event, number: int = 0) -> Outcome:
    return await driver.run(
        Invocation(
            command_id=number.to_bytes(16, "big"),
            action=example.action,
            arguments=dict(example.arguments),
            timeout_s=_action(driver, example).timeout_s,
            stop=stop,
            actor="contract",
        )
    )


def _check_outcome(outcome: object, action: Action) -> None:
    if not isinstance(outcome, Outcome):
        raise AssertionError(f"{action.name} returned {type(outcome).__name__} and not an Outcome")
    _hold(isinstance(outcome.state, OutcomeState), f"{action.name}: state is {outcome.state!r}")
    size = len(encode_output(outcome.output))
    _hold(size <= action.max_output_bytes, f"{action.name}: output of {size} bytes, {action.max_output_bytes=}")
    if outcome.state is OutcomeState.SUCCEEDED:
        return
    stable = outcome.reason.isupper() and outcome.reason.replace("_", "").isalnum()
    _hold(stable, f"{action.name}: a reason is upper case with underscores, not {outcome.reason!r}")
    _hold(bool(outcome.error), f"{action.name}: {outcome.state} without a sentence for the operator")


def _series(sample: Sample) -> tuple[str, tuple[tuple[str, str], ...], str, str]:
    return sample.name, sample.labels, sample.kind, sample.unit
