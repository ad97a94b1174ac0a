"""sd_notify(3) against a real datagram socket."""

import asyncio
import os
from pathlib import Path

import pytest

from fleet import service_manager
from fleet.service_manager import ServiceManager, from_environment
from tests.fakes.service_manager import Told


@pytest.mark.parametrize("abstract", [False, True])
def test_what_is_told_and_what_children_are_not_handed(tmp_path: Path, abstract: bool) -> None:
    told = Told(f"@fleet-test-{os.getpid()}" if abstract else str(tmp_path / "notify"))
    environment = {
        "NOTIFY_SOCKET": told.address,
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
        "A": "b",
    }
    manager = from_environment(environment)
    assert environment == {"A": "b"}
    assert manager.watchdog_s == 3.0
    manager.extend(1.5)
    manager.ready("ready:\n2 streams")
    manager.reloading("one by one")
    manager.stopping("draining")
    manager.alive()
    told.wait("WATCHDOG")
    told.close()
    lines = told.lines
    assert lines.pop(4).startswith("MONOTONIC_USEC=")
    assert lines == [
        *("EXTEND_TIMEOUT_USEC=1500000", "READY=1", "STATUS=ready: 2 streams"),
        *("RELOADING=1", "STATUS=one by one", "STOPPING=1", "STATUS=draining", "WATCHDOG=1"),
    ]


@pytest.mark.parametrize(
    "environment",
    [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}, {"WATCHDOG_USEC": "1", "NOTIFY_SOCKET": "notify"}],
)
def test_nobody_waits(environment: dict[str, str]) -> None:
    manager = from_environment(environment)
    manager.ready("told to nobody")
    assert (manager.listens, manager.watchdog_s) == (False, 0.0)


@pytest.mark.parametrize(("usec", "pid"), [("", ""), ("soon", ""), ("-5", ""), ("5000000", "1")])
def test_a_watchdog_that_is_none_or_another_process_s(tmp_path: Path, usec: str, pid: str) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}
    manager = from_environment(environment)
    manager.alive()  # to a socket that is not there, which fails nothing
    assert (manager.listens, manager.watchdog_s) == (True, 0.0)


async def test_signs_of_life_stop_while_it_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bytes] = []
    turns = asyncio.Queue[float]()

    async def sleep(seconds: float) -> None:
        turns.put_nowait(seconds)
        await asyncio.Event().wait() if turns.qsize() > 2 else None

    monkeypatch.setattr(service_manager.asyncio, "sleep", sleep)
    healthy = iter([True, False, True])
    running = asyncio.ensure_future(ServiceManager(told.append, 8.0).run(lambda: next(healthy), lambda: "well"))
    assert [await turns.get() for _ in range(3)] == [4.0] * 3
    running.cancel()
    assert told == [b"WATCHDOG=1", b"STATUS=well", b"STATUS=well", b"WATCHDOG=1", b"STATUS=well"]
