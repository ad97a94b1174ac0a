"""A driver may be missing, broken, lying or hostile: it is left out or contained, and the node goes on."""

import asyncio
import json
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from fleet_node.drivers.api import Action, DriverConfigError, Invocation, Outcome, OutcomeState, Sample
from fleet_node.drivers.json_text import ArgumentsError
from fleet_node.drivers.registry import MAX_SAMPLES_PER_DRIVER, DriverRegistry

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


@pytest.fixture
def offer() -> Iterator[Callable[..., EntryPoint]]:
    """Makes a class loadable, as an installed package would."""
    made: list[str] = []

    def make(driver: object, name: str = "arm") -> EntryPoint:
        module = f"planted_driver_{len(made)}"
        sys.modules[module] = types.ModuleType(module)
        sys.modules[module].Planted = driver  # type: ignore[attr-defined]
        made.append(module)
        return EntryPoint(name, f"{module}:Planted", GROUP)

    yield make
    for module in made:
        del sys.modules[module]


def load(*entries: EntryPoint, enabled: Sequence[str] = ("arm",), **settings: Any) -> DriverRegistry:
    return DriverRegistry.load(enabled, settings, installed=entries)


def only_problem(registry: DriverRegistry) -> str:
    assert registry.drivers == ()
    assert registry.descriptors() == []
    assert registry.action("arm.move") is None
    (problem,) = registry.problems
    assert problem.driver == "arm"
    assert problem.detail
    return problem.reason


def invocation(**arguments: Any) -> Invocation:
    return Invocation(b"\1" * 16, "arm.move", arguments, 1.0, asyncio.Event(), "ann")


def test_the_shipped_drivers_are_found_by_their_entry_points() -> None:
    registry = DriverRegistry.load(["host", "simulated"], {"host": {"telemetry": False}})
    assert registry.problems == ()
    assert [driver.name for driver in registry.drivers] == ["host", "simulated"]


def test_a_driver_gets_its_own_settings_and_is_described(offer: Callable[..., EntryPoint]) -> None:
    registry = load(offer(Arm), arm={"port": 5}, leg={"port": 6})
    (driver,) = registry.drivers
    assert isinstance(driver, Arm)
    assert driver.settings == {"port": 5}
    (described,) = registry.descriptors()
    (action,) = described.actions
    assert (described.name, described.version) == ("arm", "3.1")
    assert (action.action, action.description, action.timeout_ms) == ("arm.move", "Moves the arm.", 2500)
    assert (action.idempotent, action.protected) == (True, False)
    assert json.loads(action.arguments_schema) == SCHEMA


def test_what_is_not_enabled_is_not_even_imported(offer: Callable[..., EntryPoint]) -> None:
    registry = load(offer(Arm), EntryPoint("leg", "no.such.module:Leg", GROUP))
    assert registry.problems == ()


def test_a_missing_driver_is_a_problem_and_the_others_load(offer: Callable[..., EntryPoint]) -> None:
    registry = load(offer(Arm), enabled=["leg", "arm"])
    assert [(one.driver, one.reason) for one in registry.problems] == [("leg", "NOT_INSTALLED")]
    assert [driver.name for driver in registry.drivers] == ["arm"]


def test_no_package_may_take_the_name_of_anothers_driver(offer: Callable[..., EntryPoint]) -> None:
    assert only_problem(load(offer(Arm), offer(Arm))) == "AMBIGUOUS"


def test_one_package_listed_twice_is_one_driver(offer: Callable[..., EntryPoint]) -> None:
    entry = offer(Arm)
    assert load(entry, EntryPoint(entry.name, entry.value, GROUP)).problems == ()


def test_a_driver_that_cannot_be_imported_is_left_out() -> None:
    assert only_problem(load(EntryPoint("arm", "no.such.module:Arm", GROUP))) == "IMPORT_FAILED"


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("error", [RuntimeError("password=hunter2"), SystemExit(1)], ids=repr)
def test_a_driver_that_cannot_be_constructed_is_left_out(
    offer: Callable[..., EntryPoint], error: BaseException
) -> None:
    registry = load(offer(bent(__init__=raising(error))))
    assert only_problem(registry) == "CONSTRUCTION_FAILED"
    assert "hunter2" not in registry.problems[0].detail


def test_bad_settings_are_told_in_the_drivers_own_words(offer: Callable[..., EntryPoint]) -> None:
    error = DriverConfigError("drivers.arm.port", "is not a port", "Name one.")
    registry = load(offer(bent(__init__=raising(error))))
    assert only_problem(registry) == "BAD_SETTINGS"
    assert registry.problems[0].detail == "drivers.arm.port: is not a port. Name one."
    placed = DriverRegistry.load(
        ["arm"], {}, installed=[offer(bent(__init__=raising(error)))], place_of=lambda setting: f"line 7 ({setting})"
    )
    assert placed.problems[0].detail.startswith("line 7 (drivers.arm.port): drivers.arm.port: is not a port")


def act(**changes: Any) -> tuple[Action, ...]:
    fields: dict[str, Any] = {"name": "arm.move", "description": "Moves.", "arguments_schema": SCHEMA}
    return (Action(**{**fields, **changes}),)


class Renamed(Arm):
    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self.name = "host"


class Unversioned(Arm):
    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self.version = ""


LIES: dict[str, object] = {
    "no driver at all": lambda settings: object(),
    "another driver's name": Renamed,
    "no version": Unversioned,
    "a run that is no coroutine": bent(run=lambda self, invocation: None),
    "actions that raise": bent(actions=raising(RuntimeError("x"))),
    "actions that end the process": bent(actions=raising(SystemExit(1))),
    "actions that are no actions": bent(actions_now=[("arm.move", {})]),
    "actions that are nothing": bent(actions_now=None),
    "an action twice": bent(actions_now=(MOVE, MOVE)),
    "an action of another driver": bent(actions_now=act(name="host.info")),
    "an action without a verb": bent(actions_now=act(name="arm")),
    "an action with two dots": bent(actions_now=act(name="arm.move.now")),
    "an action whose name is no string": bent(actions_now=act(name=5)),
    "no description": bent(actions_now=act(description="")),
    "a description of two lines": bent(actions_now=act(description="a\nb")),
    "a truthy idempotent": bent(actions_now=act(idempotent="no")),
    "no time": bent(actions_now=act(timeout_s=0)),
    "more seconds than a double holds": bent(actions_now=act(timeout_s=10**400)),
    "endless time": bent(actions_now=act(timeout_s=float("inf"))),
    "not a number of seconds": bent(actions_now=act(timeout_s=float("nan"))),
    "more output than a report holds": bent(actions_now=act(max_output_bytes=10**9)),
    "an ordering key that is no function": bent(actions_now=act(ordering_key="device")),
    "a schema that is a string": bent(actions_now=act(arguments_schema="{}")),
    "a schema with a pattern": bent(actions_now=act(arguments_schema={"type": "object", "pattern": "x"})),
    "a schema that is not valid": bent(actions_now=act(arguments_schema={"type": "object", "required": 5})),
    "a schema that is not JSON": bent(actions_now=act(arguments_schema={"type": "object", "default": {1}})),
    "a schema over the limit": bent(actions_now=act(arguments_schema={"type": "object", "description": "x" * 65536})),
}


@pytest.mark.parametrize("driver", LIES.values(), ids=LIES.keys())
def test_a_driver_that_lies_is_left_out(offer: Callable[..., EntryPoint], driver: object) -> None:
    assert only_problem(load(offer(driver))) == "BROKEN_PROMISE"


def test_schemas_of_all_drivers_share_one_limit(offer: Callable[..., EntryPoint]) -> None:
    def named(name: str) -> type[Arm]:
        schema = {"type": "object", "description": "x" * 40_000}

        def init(self: Arm, settings: Mapping[str, Any]) -> None:
            Arm.__init__(self, settings)
            self.name = name

        return bent(__init__=init, actions_now=act(name=f"{name}.move", arguments_schema=schema))

    registry = load(offer(named("arm"), "arm"), offer(named("leg"), "leg"), enabled=["arm", "leg"])
    assert [driver.name for driver in registry.drivers] == ["arm"]
    assert [(one.driver, one.reason) for one in registry.problems] == [("leg", "BROKEN_PROMISE")]


def test_a_schema_cannot_be_changed_after_it_was_checked(offer: Callable[..., EntryPoint]) -> None:
    schema: dict[str, Any] = {"type": "object", "additionalProperties": False}
    registry = load(offer(bent(actions_now=act(arguments_schema=schema))))
    before = registry.descriptors()
    schema["pattern"] = "x"
    schema["additionalProperties"] = True
    assert registry.descriptors() == before
    with pytest.raises(ArgumentsError):
        registry.validate("arm.move", b'{"a":1}')


def test_valid_arguments_are_parsed(offer: Callable[..., EntryPoint]) -> None:
    assert load(offer(Arm)).validate("arm.move", b'{"device":"a"}') == {"device": "a"}


@pytest.mark.parametrize(
    ("action", "arguments", "reason"),
    [
        ("arm.fold", b"{}", "UNKNOWN_ACTION"),
        ("\x1b[2J" * 1000, b"{}", "UNKNOWN_ACTION"),
        ("arm.move", b"{", "ARGUMENTS_MALFORMED"),
        ("arm.move", b'{"device":"a","device":"b"}', "ARGUMENTS_MALFORMED"),
        ("arm.move", b'{"device":"' + b"a" * 65536 + b'"}', "ARGUMENTS_TOO_LARGE"),
        ("arm.move", b"", "ARGUMENTS_INVALID"),
        ("arm.move", b'{"device":5}', "ARGUMENTS_INVALID"),
        ("arm.move", b'{"device":"a","speed":1}', "ARGUMENTS_INVALID"),
    ],
)
def test_bad_arguments_are_refused_with_a_reason(
    offer: Callable[..., EntryPoint], action: str, arguments: bytes, reason: str
) -> None:
    with pytest.raises(ArgumentsError) as refused:
        load(offer(Arm)).validate(action, arguments)
    assert refused.value.reason == reason
    assert refused.value.detail.isprintable()
    assert len(refused.value.detail) <= 400


def test_a_refusal_names_the_place_and_not_the_value(offer: Callable[..., EntryPoint]) -> None:
    with pytest.raises(ArgumentsError) as refused:
        load(offer(Arm)).validate("arm.move", b'{"device":"a","password":"hunter2hunter2"}')
    assert refused.value.detail.startswith("password:")
    assert "hunter2" not in str(refused.value)


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
    assert registry.samples() == [gauge(1.0), gauge(2.0)]


def test_a_driver_with_endless_samples_is_cut_short(offer: Callable[..., EntryPoint]) -> None:
    class Endless(Arm):
        def sample(self) -> Iterator[Sample]:
            while True:
                yield gauge(1.0)

    assert len(load(offer(Endless)).samples()) == MAX_SAMPLES_PER_DRIVER


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
    assert registry.samples() == [gauge(7.0)]


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
    async def fail(self: Arm) -> None:
        raise error

    await load(offer(bent(close=fail))).close()
