"""A driver may be missing, broken, lying or hostile: it is left out, and the node goes on."""

import json
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from fleet_node.drivers.api import DriverConfigError
from fleet_node.drivers.json_text import ArgumentsError
from fleet_node.drivers.registry import DriverRegistry
from tests.unit.fleet_node.drivers.arm import GROUP, MOVE, SCHEMA, Arm, act, bent, load, raising


def only_problem(registry: DriverRegistry) -> str:
    assert registry.drivers == ()
    assert registry.descriptors() == []
    assert registry.action("arm.move") is None
    (problem,) = registry.problems
    assert problem.driver == "arm"
    assert problem.detail
    return problem.reason


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
