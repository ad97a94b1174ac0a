"""Whatever a loaded driver does while it runs, samples or closes is contained, and the node goes on."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from fleet_node.drivers.api import Invocation, Outcome, OutcomeState, Sample
from fleet_node.drivers.registry import MAX_SAMPLES_PER_DRIVER, DriverRegistry
from tests.unit.fleet_node.drivers.arm import Arm, act, bent, invocation, load, raising


async def test_runs_go_to_the_driver(offer: Callable[..., EntryPoint]) -> None:
    outcome = await load(offer(Arm)).run(invocation(device="a"))
    assert outcome == Outcome(OutcomeState.SUCCEEDED, {"moved": True})


@pytest.mark.parametrize("error", [RuntimeError("password=hunter2"), SystemExit(3), asyncio.CancelledError()], ids=repr)
async def test_what_a_driver_raises_becomes_an_outcome(offer: Callable[..., EntryPoint], error: BaseException) -> None:
    outcome = await load(offer(bent(run_now=raising(error)))).run(invocation())
    assert (outcome.state, outcome.reason) == (OutcomeState.FAILED, "DRIVER_ERROR")
    assert "hunter2" not in outcome.error


async def test_cancelling_the_task_cancels_the_run(offer: Callable[..., EntryPoint]) -> None:
    class Waits(Arm):
        async def run(self, invocation: Invocation) -> Outcome:
            await invocation.stop.wait()
            raise AssertionError

    run = asyncio.create_task(load(offer(Waits)).run(invocation()))
    await asyncio.sleep(0)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


@pytest.mark.parametrize(
    "returned",
    [None, {"moved": True}, Outcome(OutcomeState.SUCCEEDED, {"a": float("nan")}),
     Outcome(OutcomeState.SUCCEEDED, {"a": {1}}), Outcome(OutcomeState.SUCCEEDED, ["a"]),  # type: ignore[arg-type]
     Outcome("DONE", {}), Outcome(OutcomeState.FAILED, {}, None, "x"),  # type: ignore[arg-type]
     Outcome(OutcomeState.FAILED, {}, "X", OSError("gone")), Outcome(OutcomeState.FAILED, {}, "X", "x", 3)],  # type: ignore[arg-type]
    ids=["nothing", "a bare dict", "NaN", "a set", "a list", "another state", "no reason", "an exception", "a number"],
)  # fmt: skip
async def test_what_is_no_outcome_becomes_one(offer: Callable[..., EntryPoint], returned: object) -> None:
    outcome = await load(offer(bent(run_now=staticmethod(lambda _: returned)))).run(invocation())
    assert (outcome.state, outcome.reason, outcome.output) == (OutcomeState.FAILED, "DRIVER_ERROR", {})


async def test_text_that_utf_8_cannot_carry_is_replaced_and_the_state_stands(offer: Callable[..., EntryPoint]) -> None:
    cancelled = Outcome(OutcomeState.CANCELLED, {}, "STOPPED", "no file caf\udce9")
    outcome = await load(offer(bent(run_now=staticmethod(lambda _: cancelled)))).run(invocation())
    assert outcome == Outcome(OutcomeState.CANCELLED, {}, "STOPPED", "no file caf?")


async def test_output_over_the_limit_is_dropped_and_the_state_stands(offer: Callable[..., EntryPoint]) -> None:
    huge = Outcome(OutcomeState.SUCCEEDED, {"a": "x" * 1000})
    outcome = await load(offer(bent(run_now=staticmethod(lambda _: huge)))).run(invocation())
    assert outcome.state is OutcomeState.SUCCEEDED
    assert outcome.output == {}
    assert outcome.truncated
    assert outcome.reason == "OUTPUT_TOO_LARGE"


def test_ordering_keys_of_different_drivers_never_meet(offer: Callable[..., EntryPoint]) -> None:
    actions = act(ordering_key=lambda arguments: arguments.get("device"))
    registry = load(offer(bent(actions_now=actions)))
    assert registry.ordering_key("arm.move", {"device": "a"}) == "arm:a"
    assert registry.ordering_key("arm.move", {}) is None
    assert load(offer(Arm)).ordering_key("arm.move", {"device": "a"}) is None


@pytest.mark.parametrize("error", [KeyError("device"), SystemExit(1)], ids=repr)
def test_an_ordering_key_that_fails_orders_the_whole_action(
    offer: Callable[..., EntryPoint], error: BaseException
) -> None:
    registry = load(offer(bent(actions_now=act(ordering_key=raising(error)))))
    assert registry.ordering_key("arm.move", {}) == registry.ordering_key("arm.move", {"device": "a"})


def gauge(value: float, **changes: Any) -> Sample:
    return Sample(**{"name": "arm.angle", "labels": (), "kind": "gauge", "unit": "1", "value": value, **changes})


def sampled(registry: DriverRegistry) -> list[Sample]:
    """Telemetry of all drivers."""
    return [sample for sampler in registry.samplers().values() for sample in sampler()]


def test_samples_that_cannot_be_sent_are_left_out(offer: Callable[..., EntryPoint]) -> None:
    bad = [
        gauge(float("nan")),
        gauge(10**400),
        gauge(1, name=""),
        gauge(1, kind="histogram"),
        gauge(1, labels=(("a", "\udc80"),)),
        gauge(1, labels=(("a", "b"),) * 17),
        gauge(1, labels=(("a",),)),
        "arm.angle 1",
    ]
    registry = load(offer(bent(samples_now=[gauge(1.0), *bad, gauge(2.0)])))
    assert sampled(registry) == [gauge(1.0), gauge(2.0)]


def test_a_driver_with_endless_samples_is_cut_short(offer: Callable[..., EntryPoint]) -> None:
    class Endless(Arm):
        def sample(self) -> Iterator[Sample]:
            while True:
                yield gauge(1.0)

    assert len(sampled(load(offer(Endless)))) == MAX_SAMPLES_PER_DRIVER


@pytest.mark.parametrize("error", [OSError("gone"), SystemExit(1)], ids=repr)
def test_a_driver_whose_samples_fail_does_not_silence_the_others(
    offer: Callable[..., EntryPoint], error: BaseException
) -> None:
    class Leg(Arm):
        samples_now = (gauge(7.0),)

        def __init__(self, settings: Mapping[str, Any]) -> None:
            super().__init__(settings)
            self.name = "leg"
            self.actions_now = act(name="leg.move")

    broken = bent(sample=raising(error))
    registry = load(offer(broken), offer(Leg, "leg"), enabled=["arm", "leg"])
    assert sampled(registry) == [gauge(7.0)]


async def test_close_reaches_every_driver_once_even_those_left_out(offer: Callable[..., EntryPoint]) -> None:
    built: list[Arm] = []

    def remember(self: Arm, settings: Mapping[str, Any]) -> None:
        Arm.__init__(self, settings)
        built.append(self)

    liar = bent(__init__=remember, actions_now=None)
    registry = load(offer(bent(__init__=remember)), offer(liar, "leg"), enabled=["arm", "leg"])
    await registry.close()
    await registry.close()
    assert [driver.closed for driver in built] == [1, 1]


@pytest.mark.parametrize("error", [RuntimeError(), SystemExit(1), asyncio.CancelledError()], ids=repr)
async def test_a_driver_that_fails_to_close_does_not_stop_the_others(
    offer: Callable[..., EntryPoint], error: BaseException
) -> None:
    class Leg(Arm):
        def __init__(self, settings: Mapping[str, Any]) -> None:
            super().__init__(settings)
            self.name = "leg"
            self.actions_now = act(name="leg.move")

    async def fail(self: Arm) -> None:
        raise error

    registry = load(offer(bent(close=fail)), offer(Leg, "leg"), enabled=["arm", "leg"])
    _, leg = registry.drivers
    await registry.close()
    assert isinstance(leg, Leg)
    assert leg.closed == 1
