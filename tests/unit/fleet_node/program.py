"""`fleet-node` as a process of its own: started, ended, and what it said."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

FORBIDDEN = ("sqlalchemy", "typer", "rich", "alembic", "psycopg", "plotext", "pydantic")
MAIN = "from fleet_node.__main__ import main; main()"
SHOW_MODULES = "import atexit, sys; atexit.register(lambda: print('MODULES', *sys.modules, flush=True)); "
# Python would keep what fits of a module's bytecode, and fail over it ever after.
_SHORT_OF_ROOM = "import resource, sys; sys.dont_write_bytecode = True; resource.setrlimit(resource.RLIMIT_FSIZE, "
NO_FILES = _SHORT_OF_ROOM + "(0, 0)); "
SMALL_FILES = _SHORT_OF_ROOM + "(3000, 3000)); "  # a database is larger
HUNG_SAMPLE = (
    "import threading; from fleet_node.cli import run; from fleet_node.drivers.host import HostDriver; "
    "HostDriver.sample = lambda self: threading.Event().wait(); run.END_WITHIN_S = 1.0; "
)
# Root may write anywhere. Without this capability it may not, and a folder's mode counts for it too.
NO_OVERRIDE = (
    "import ctypes, os, sys\n"
    "for capability in (1, 2):\n"
    "    assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'fleet_node', *sys.argv[1:]])"
)


class Ended:
    """How a `fleet-node` ended and what it said."""

    def __init__(self, code: int, out: bytes, err: bytes) -> None:
        self.code = code
        self.out = out.decode()
        self.err = err.decode()


async def start(*args: str | Path, prelude: str = "", program: str = "") -> asyncio.subprocess.Process:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("FLEET_NODE_")}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program or prelude + MAIN,
        *map(str, args),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ | {"FLEET_NODE_METRICS_LISTEN": "127.0.0.1:0"},
    )


async def end(process: asyncio.subprocess.Process, stdin: bytes | None = None) -> Ended:
    try:
        async with asyncio.timeout(30):
            out, err = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return Ended(process.returncode, out, err)


async def fleet_node(*args: str | Path, stdin: bytes = b"", prelude: str = "", program: str = "") -> Ended:
    return await end(await start(*args, prelude=prelude, program=program), stdin)
