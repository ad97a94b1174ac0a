import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from fleet_node.drivers.api import DriverConfigError, Invocation, Outcome, OutcomeState
from fleet_node.drivers.simulated import SimulatedDriver


def invocation(number: int = 1, action: str = "simulated.work", **arguments: Any) -> Invocation:
    return Invocation(number.to_bytes(16, "big"), action, arguments, 60.0, asyncio.Event(), "ann")


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def outcomes(seed: int, **arguments: Any) -> list[OutcomeState]:
    driver = SimulatedDriver({"seed": seed})
    return [(await driver.run(invocation(number, **arguments))).state for number in range(200)]


async def test_the_same_seed_fails_the_same_commands() -> None:
    first = await outcomes(1, fail_rate=0.3)
    assert await outcomes(1, fail_rate=0.3) == first
    assert await outcomes(2, fail_rate=0.3) != first
    assert 30 <= first.count(OutcomeState.FAILED) <= 90


async def test_output_has_the_size_that_was_asked_for() -> None:
    outcome = await SimulatedDriver({}).run(invocation(output_bytes=1000))
    assert len(outcome.output["payload"]) == 1000


async def test_work_longer_than_its_limit_times_out() -> None:
    driver = SimulatedDriver({})
    short = Invocation(b"\1" * 16, "simulated.work", {"latency_ms": 600_000}, 0.0, asyncio.Event(), "ann")
    outcome = await driver.run(short)
    assert (outcome.state, outcome.reason) == (OutcomeState.FAILED, "TIMEOUT")


async def test_every_run_is_on_disk_when_it_starts_and_when_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "runs.log"
    driver = SimulatedDriver({"log_path": str(path)})
    await driver.run(invocation(1, "simulated.noop"))
    await driver.run(invocation(2, device="pump", fail_rate=1))
    await driver.close()
    one, two = (number.to_bytes(16, "big").hex() for number in (1, 2))
    assert lines(path) == [
        {"event": "start", "command_id": one, "action": "simulated.noop"},
        {"event": "end", "command_id": one, "action": "simulated.noop", "state": "SUCCEEDED"},
        {"event": "start", "command_id": two, "action": "simulated.work", "device": "pump"},
        {"event": "end", "command_id": two, "action": "simulated.work", "device": "pump", "state": "FAILED"},
    ]
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_restart_appends_to_the_log(tmp_path: Path) -> None:
    path = tmp_path / "runs.log"
    for number in (1, 2):
        driver = SimulatedDriver({"log_path": str(path)})
        await driver.run(invocation(number, "simulated.noop"))
        await driver.close()
    assert len(lines(path)) == 4


async def test_concurrent_runs_write_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "runs.log"
    driver = SimulatedDriver({"log_path": str(path)})
    await asyncio.gather(*(driver.run(invocation(number, "simulated.noop")) for number in range(50)))
    await driver.close()
    started = {line["command_id"] for line in lines(path) if line["event"] == "start"}
    ended = {line["command_id"] for line in lines(path) if line["event"] == "end"}
    assert len(started) == 50
    assert started == ended


async def test_nothing_runs_that_cannot_be_logged(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    driver = SimulatedDriver({"log_path": "/dev/full"})
    outcome: Outcome = await driver.run(invocation(1, "simulated.noop"))
    assert (outcome.state, outcome.reason) == (OutcomeState.FAILED, "LOG_FAILED")
    await driver.close()


def test_runs_on_one_device_are_ordered() -> None:
    noop, work = SimulatedDriver({}).actions()
    assert work.ordering_key is not None
    assert work.ordering_key({"device": "pump"}) == "pump"
    assert work.ordering_key({}) is None
    assert noop.ordering_key is None


@pytest.mark.parametrize(
    ("settings", "blamed"),
    [
        ({"log_path": "runs.log"}, "drivers.simulated.log_path"),
        ({"log_path": "/no/such/folder/runs.log"}, "drivers.simulated.log_path"),
        ({"series": -1}, "drivers.simulated.series"),
        ({"seed": "x"}, "drivers.simulated.seed"),
        ({"latency": 5}, "drivers.simulated.latency"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], blamed: str) -> None:
    with pytest.raises(DriverConfigError) as wrong:
        SimulatedDriver(settings)
    assert wrong.value.setting == blamed
