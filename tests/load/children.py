"""The parent's side of a load process (`child.py`): start it, ask it, read its cost, end it."""

import asyncio
import json
import os
import sys
from typing import Any

import psutil

_CALL_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 10.0
_MAX_LINE_BYTES = 8 * 1024 * 1024


class Child:
    """One load process."""

    def __init__(self, role: str, process: asyncio.subprocess.Process) -> None:
        self.role = role
        self._process = process
        self._measured = psutil.Process(process.pid)

    @classmethod
    async def start(cls, role: str, *, uvloop: bool = False) -> "Child":
        """Start `MODULE:CLASS` in a process of its own."""
        argv = [sys.executable, "-m", "tests.load.child", role, *(["--uvloop"] if uvloop else [])]
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_MAX_LINE_BYTES,
            env={**os.environ, "GRPC_VERBOSITY": "NONE"},  # rows kill servers on purpose: no news
        )
        return cls(role, process)

    async def call(self, do: str, **args: Any) -> dict[str, Any]:
        """Have the child's object do one thing, and return its answer.

        Raises:
            ChildProcessError: the child failed at it or has ended; the text holds its traceback.
            TimeoutError: no answer in two minutes.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, "args": args}).encode() + b"\n")
        async with asyncio.timeout(_CALL_TIMEOUT_S):
            line = await self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "it ended"}
        if "error" in answer:
            raise ChildProcessError(f"{self.role} failed to {do}: {answer['error']}")
        return dict(answer["answer"] or {})

    def cpu_s(self) -> float:
        """CPU seconds that the process has used, all its threads, user and system."""
        times = self._measured.cpu_times()
        return times.user + times.system

    def rss_bytes(self) -> int:
        """Resident memory now."""
        return self._measured.memory_info().rss

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def end(self) -> None:
        """Close its standard input, which ends it; kill it when it does not."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_END_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            await self.kill()
