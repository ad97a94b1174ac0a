"""What the supervisor decides, with workers that are no processes."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from fleet.backoff import BackoffPolicy
from fleet.clock import SystemClock
from fleet.service_manager import ServiceManager
from fleet_server.workers import rules, supervisor
from fleet_server.workers.plan import Plan, WorkerSpec
from fleet_server.workers.process import WorkerProcess
from fleet_server.workers.rules import Failures, Phase
from fleet_server.workers.supervisor import Supervisor

PLAN = Plan(count=2, arguments=[], log_level="info", log_format="json", probe="", locks=[])
KILLED = -9


class Worker:
    """One life of a worker."""

    def __init__(self, number: int, changed: Callable[[], None]) -> None:
        self.number = self.pid = number
        self.phase = Phase.STARTING
        self.said = f"{number}: well"
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.serving = asyncio.Event()
        self.left_s = self.lived_s = 1.0
        self.told: list[str] = []
        self._changed = changed

    def serve(self) -> None:
        self.phase = Phase.READY
        self.serving.set()
        self._changed()

    def end(self, code: int) -> None:
        self.phase = Phase.GONE
        self._changed()
        self.ended.set_result(code)

    def stop(self, *, all_end: bool = False) -> None:
        self.phase = Phase.ENDING
        self.told.append("stop all" if all_end else "stop")

    def excuse(self, seconds: float) -> None:
        self.told.append("excuse")

    def hurry(self) -> None:
        self.told.append("hurry")

    def kill(self) -> None:
        self.left_s = 1.0
        self.told.append("kill")


class Supervised(Supervisor):
    """`lives` holds every worker that was started."""

    def __init__(self, told: list[str]) -> None:
        super().__init__(
            PLAN, ServiceManager(lambda datagram: told.extend(datagram.decode().splitlines())), SystemClock()
        )
        self.lives: list[Worker] = []
        self._launched = asyncio.Event()

    def launch(self, number: int) -> WorkerProcess:
        worker: Any = Worker(number, self._changed)
        self.lives.append(worker)
        self._launched.set()
        return worker  # type: ignore[no-any-return]

    async def wait_lives(self, count: int) -> Sequence[Worker]:
        async with asyncio.timeout(10):
            while len(self.lives) < count:
                self._launched.clear()
                await self._launched.wait()
        return self.lives


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_RESTARTS", BackoffPolicy(initial_s=0.001, maximum_s=0.001))


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
async def whole(told: list[str]) -> Supervised:
    return Supervised(told)


async def settle() -> None:
    """Let every task come as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def begin(whole: Supervised) -> tuple[asyncio.Task[int], Worker, Worker]:
    running = asyncio.create_task(whole.run())
    one, two = await whole.wait_lives(2)
    one.serve()
    two.serve()
    return running, one, two


async def test_it_is_ready_once_all_are_and_ends_when_told(whole: Supervised, told: list[str]) -> None:
    running = asyncio.create_task(whole.run())
    one, two = await whole.wait_lives(2)
    one.serve()
    assert not whole.readyz().ok
    assert "READY=1" not in told
    two.serve()
    assert told.count("READY=1") == 1
    assert (whole.readyz().ok, whole.readyz().detail) == (True, "2 of 2 workers ready; 1: well; 2: well")
    whole._signalled()
    assert not whole.readyz().ok
    whole._signalled()
    assert one.told == two.told == ["stop all", "hurry"]
    one.end(0)
    two.end(-15)  # before it could take the signal
    assert await running == 0
    assert "STOPPING=1" in told


@pytest.mark.parametrize(("code", "expected"), [(2, 2), (3, 3), (4, 4), (KILLED, 1)])
async def test_until_all_have_served_one_that_fails_ends_all(whole: Supervised, code: int, expected: int) -> None:
    running = asyncio.create_task(whole.run())
    one, two = await whole.wait_lives(2)
    one.serve()
    two.end(code)
    await settle()
    one.end(0)
    assert await running == expected
    assert one.told == ["stop all"]


async def test_one_that_dies_is_started_again_and_a_crash_loop_ends_once_nobody_serves(whole: Supervised) -> None:
    running, one, two = await begin(whole)
    one.end(KILLED)
    for number in range(3, 12):
        third = (await whole.wait_lives(number))[-1]
        assert third.number == 1
        assert whole.readyz().ok, "the other one serves"
        third.end(1)
    again = (await whole.wait_lives(12))[-1]
    two.end(1)
    await whole.wait_lives(13)
    again.end(1)
    whole.lives[-1].end(0)
    assert await running == 1


async def test_a_database_that_is_away_is_no_crash_loop() -> None:
    failures = Failures()
    for _ in range(100):
        failures.ended(rules.DATABASE_AWAY, 1.0)
    assert not failures.is_crash_loop([Phase.GONE])
    for _ in range(rules.CRASH_LOOP):
        failures.ended(1, 1.0)
    assert failures.is_crash_loop([Phase.GONE])
    failures.ended(1, rules.STABLE_S)
    assert not failures.is_crash_loop([Phase.GONE])


async def test_a_roll_replaces_one_after_the_other_and_stops_where_a_new_one_fails(
    whole: Supervised, told: list[str]
) -> None:
    running, one, two = await begin(whole)
    whole._roll()
    await asyncio.sleep(0)
    assert (one.told, two.told) == (["stop"], [])
    assert "RELOADING=1" in told
    one.end(0)
    third = (await whole.wait_lives(3))[-1]
    assert two.told == []
    third.serve()
    await settle()
    assert two.told == ["stop"]
    two.end(0)
    (await whole.wait_lives(4))[-1].end(2)
    (await whole.wait_lives(5))[-1].serve()
    await settle()
    assert told.count("READY=1") == 2
    assert third.told == []
    whole._signalled()
    third.end(0)
    whole.lives[-1].end(0)
    assert await running == 0


async def test_one_that_an_operator_drained_comes_back_as_does_one_that_could_not_be_started(
    whole: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, one, two = await begin(whole)
    launch, refusals = whole.launch, [OSError("no memory")]

    def launch_late(number: int) -> WorkerProcess:
        if refusals:
            raise refusals.pop()
        return launch(number)

    monkeypatch.setattr(whole, "launch", launch_late)
    one.end(0)
    third = (await whole.wait_lives(3))[-1]
    assert (third.number, refusals) == (1, [])
    assert whole._keepers[0].failures.in_a_row == 1, "what was drained is no failure"
    whole._signalled()
    third.end(0)
    two.end(0)
    assert await running == 0


async def test_nobody_hangs_for_that_the_whole_machine_stood_still(
    whole: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_LOOK_S", 0.001)
    monkeypatch.setattr(supervisor, "_STOOD_STILL_S", -1.0)
    running, one, two = await begin(whole)
    async with asyncio.timeout(10):
        while not (one.told and two.told):
            await asyncio.sleep(0)
    assert {*one.told, *two.told} == {"excuse"}
    whole._signalled()
    one.end(0)
    two.end(0)
    assert await running == 0


async def test_one_that_hangs_is_killed_and_named(whole: Supervised, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_LOOK_S", 0.001)
    running, one, two = await begin(whole)
    two.left_s = -1.0
    assert not whole.healthz().ok
    assert "worker 2 hangs" in whole.healthz().detail
    async with asyncio.timeout(10):
        while not two.told:
            await asyncio.sleep(0)
    assert two.told == ["kill"]
    assert whole.healthz().ok
    whole._signalled()
    one.end(0)
    two.end(KILLED)
    assert await running == 1, "not all ended well"


def test_what_stands_on_the_command_line() -> None:
    assert Plan.read(PLAN.command_line()[-1]) == PLAN
    spec = WorkerSpec(2, 17, 7.5)
    assert WorkerSpec.read(spec.show()) == spec


def test_a_worker_is_killed_before_the_service_manager_would_kill_all() -> None:
    assert rules.watchdog_s(0) == rules.WATCHDOG_S
    assert rules.watchdog_s(8) == 6
    assert rules.watchdog_s(3600) == rules.WATCHDOG_S
    assert rules.describe(KILLED) == "killed by SIGKILL"
    assert rules.describe(-64) == "killed by SIGRTMAX"
    assert rules.describe(3) == "exit code 3"
