"""Faults of the machine around a program: no descriptors, no memory."""

import asyncio
import errno
import os
import resource
import sys

import psutil
import pytest

from fleet_node.drivers import guard
from tests.unit.fleet_node.drivers.programs import driver, run


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_no_descriptors_left_is_told_and_nothing_leaks() -> None:
    made = driver("/bin/echo")
    await run(made)  # what is opened once and for all is open now
    me = psutil.Process()
    before, children = me.num_fds(), me.children()  # one forks programs for the tests
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for spare in range(1, 9):
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + spare, hard))
        try:
            outcome = await run(made)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert outcome.reason in {"SPAWN_FAILED", ""}
        await asyncio.sleep(0)
        assert me.num_fds() == before
    assert me.children() == children


def test_a_guard_that_cannot_fork_says_that_nothing_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(guard.os, "fork", fork)
    status_read, status_write = os.pipe()
    try:
        assert guard._spawn({}, status_write) == (0, errno.EAGAIN)
    finally:
        os.close(status_write)
        with open(status_read, "rb") as status:
            assert status.read() == b""
